"""Calls about datasets."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import BinaryIO

from sharpzo_client._files import BINARY, archive_name, open_archive
from sharpzo_client._operation import Blocking, Flow, Operation, Part, Sleep
from sharpzo_client._operations import _build as api
from sharpzo_client._response import reads
from sharpzo_client.errors import DatasetFailed, WaitTimeoutError
from sharpzo_client.models import Dataset, Page


def create_dataset(
    archive: BinaryIO, filename: str, name: str, *, labelled: bool
) -> Operation[Dataset]:
    """Upload an open archive."""
    return Operation(
        method="POST",
        path=api.path("datasets"),
        fields={"name": name} | ({} if labelled else {"unlabelled": "true"}),
        parts=(Part("file", filename, archive, BINARY),),
        headers=api.idempotency(None),
        read=reads(Dataset),
    )


def get_dataset(dataset_id: str) -> Operation[Dataset]:
    return api.get(Dataset, "datasets", dataset_id)


def list_datasets(page_size: int) -> Operation[Page[Dataset]]:
    return api.first_page(Dataset, "datasets", page_size=page_size)


def contact_sheet(dataset_id: str, path: str | os.PathLike[str]) -> Flow[Path]:
    return api.save(api.file("datasets", dataset_id, "contact-sheet", accept="image/jpeg"), path)


def delete_dataset(dataset_id: str) -> Operation[None]:
    return api.delete("datasets", dataset_id)


def upload_dataset(
    path: str | os.PathLike[str],
    name: str | None,
    *,
    labelled: bool,
    wait: bool,
    timeout: float,
    poll: float,
) -> Flow[Dataset]:
    """Pack a folder, upload it, and wait until the service has processed it."""
    source = Path(path)
    archive = yield from Blocking(lambda: open_archive(source))
    with archive:
        title = name or source.resolve().name
        dataset = yield from create_dataset(archive, archive_name(source), title, labelled=labelled)
    return (yield from wait_for_dataset(dataset.id, timeout, poll)) if wait else dataset


def wait_for_dataset(dataset_id: str, timeout: float, poll: float) -> Flow[Dataset]:
    """Poll until the dataset is ready.

    Raises:
        DatasetFailed: the service rejected it.
        WaitTimeoutError: it was still being processed after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        dataset = yield from get_dataset(dataset_id)
        if dataset.status == "failed":
            raise DatasetFailed(dataset)
        if dataset.status == "ready":
            return dataset
        if time.monotonic() >= deadline:
            raise WaitTimeoutError(f"dataset {dataset_id} is still {dataset.status}")
        yield Sleep(poll)
