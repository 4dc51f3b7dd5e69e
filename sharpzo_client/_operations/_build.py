"""Builders of operations; the other modules import this one as `api`."""

from __future__ import annotations

import os
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from sharpzo_client._files import write_verified
from sharpzo_client._operation import Blocking, Flow, Operation
from sharpzo_client._response import File, reads, reads_file, reads_nothing, reads_page
from sharpzo_client.models import Model, Page

M = TypeVar("M", bound=Model)


def path(*segments: str) -> str:
    """The path below `/v1`; every segment is quoted."""
    return "/".join(("/v1", *(quote(segment, safe=":@") for segment in segments)))


def get(model: type[M], *segments: str) -> Operation[M]:
    return Operation(method="GET", path=path(*segments), read=reads(model))


def delete(*segments: str) -> Operation[None]:
    return Operation(method="DELETE", path=path(*segments), read=reads_nothing)


def create(
    model: type[M], *segments: str, body: object, idempotency_key: str | None = None
) -> Operation[M]:
    """A POST of JSON that may be repeated without doing its work twice."""
    return Operation(
        method="POST",
        path=path(*segments),
        json=body,
        headers=idempotency(idempotency_key),
        read=reads(model),
    )


def first_page(
    item: type[M], *segments: str, page_size: int, **params: str | int | None
) -> Operation[Page[M]]:
    return Operation(
        method="GET",
        path=path(*segments),
        params={"limit": page_size, **without_none(params)},
        read=reads_page(item),
    )


def next_page(operation: Operation[Page[M]], page: Page[M]) -> Operation[Page[M]] | None:
    """The call for the page after this one, if there is one."""
    if not page.has_more or page.next is None:
        return None
    return replace(operation, params={**operation.params, "after": page.next})


def idempotency(key: str | None) -> dict[str, str]:
    """The header by which the service recognizes a repeated call; one key per operation."""
    return {"Idempotency-Key": key or uuid.uuid4().hex}


def without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def file(*segments: str, accept: str, **params: str) -> Operation[File]:
    return Operation(
        method="GET",
        path=path(*segments),
        params=params,
        headers={"Accept": accept},
        read=reads_file,
    )


def save(
    operation: Operation[File], target: str | os.PathLike[str], sha256: str | None = None
) -> Flow[Path]:
    """Write a file to `target` completely, or leave `target` unchanged.

    Raises:
        DownloadError: the SHA-256 is not the expected one (`sha256`, or the answer's own).
        InputError: `target` cannot be written.
    """
    received = yield from operation
    expected = sha256 or received.sha256
    return (yield from Blocking(lambda: write_verified(Path(target), received.content, expected)))
