"""Calls about tuned prompts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from sharpzo_client._files import artifact_part
from sharpzo_client._operation import Blocking, Flow, Operation
from sharpzo_client._operations import _build as api
from sharpzo_client._response import reads
from sharpzo_client.models import Job, Page, Prompt

ExportFormat = Literal["npy", "onnx"]


def get_prompt(ref: str) -> Operation[Prompt]:
    return api.get(Prompt, "prompts", ref)


def list_prompts(name: str | None, page_size: int) -> Operation[Page[Prompt]]:
    return api.first_page(Prompt, "prompts", page_size=page_size, name=name)


def pin_prompt(ref: str, *, pinned: bool) -> Operation[Prompt]:
    method = "PUT" if pinned else "DELETE"
    return Operation(method=method, path=api.path("prompts", ref, "pin"), read=reads(Prompt))


def delete_prompt(ref: str) -> Operation[None]:
    return api.delete("prompts", ref)


def import_prompt(source: str | os.PathLike[str] | bytes, name: str | None) -> Flow[Prompt]:
    part = yield from Blocking(lambda: artifact_part(source))
    operation = Operation(
        method="POST",
        path=api.path("prompts"),
        fields={"name": name} if name else {},
        parts=(part,),
        headers=api.idempotency(None),
        read=reads(Prompt),
    )
    return (yield from operation)


def download_prompt(ref: str, path: str | os.PathLike[str]) -> Flow[Path]:
    prompt = yield from get_prompt(ref)  # by id: a name may point to another version meanwhile
    download = api.file("prompts", prompt.id, "download", accept="*/*")
    return (yield from api.save(download, path, prompt.sha256))


def export_prompt(
    ref: str, path: str | os.PathLike[str], form: ExportFormat, *, calibrated: bool
) -> Flow[Path]:
    export = api.file(
        "prompts", ref, "export", accept="*/*", format=form, calibrated=str(calibrated).lower()
    )
    return api.save(export, path)


def apply_prompt(
    ref: str,
    action: Literal["evaluate", "batch"],
    *,
    idempotency_key: str | None,
    **body: object,
) -> Operation[Job]:
    """Submit a job that applies a prompt to a dataset."""
    return api.create(
        Job, "prompts", ref, action, body=api.without_none(body), idempotency_key=idempotency_key
    )
