"""Datasets of a service: `sharpzo datasets upload`, `show`, `delete` and `list --remote`."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from sharpzo_cli.formatting import show_dataset, show_datasets
from sharpzo_cli.output import print_json, say, tell_deleted
from sharpzo_cli.remote import service

if TYPE_CHECKING:
    from pathlib import Path


def list_uploaded(url: str, limit: int, *, as_json: bool) -> None:
    """List what was uploaded, newest first."""
    with service(url) as client:
        found = list(islice(client.datasets.list(), limit))
    if as_json:
        print_json({"datasets": [dataset.model_dump(mode="json") for dataset in found]})
    else:
        show_datasets(found)


def upload_dataset(
    url: str, path: Path, name: str | None, *, labelled: bool, wait: bool, as_json: bool
) -> None:
    """Upload a folder or an archive and print its id."""
    with service(url) as client:
        dataset = client.datasets.upload(path, name, labelled=labelled, wait=wait)
    if as_json:
        print_json(dataset.model_dump(mode="json"))
    else:
        say(dataset.id)


def show_uploaded(url: str, dataset_id: str, *, as_json: bool) -> None:
    """Show one."""
    with service(url) as client:
        dataset = client.datasets.get(dataset_id)
    if as_json:
        print_json(dataset.model_dump(mode="json"))
    else:
        show_dataset(dataset)


def delete_uploaded(url: str, dataset_id: str, *, as_json: bool) -> None:
    """Delete one."""
    with service(url) as client:
        client.datasets.delete(dataset_id)
    tell_deleted(dataset_id, as_json=as_json)
