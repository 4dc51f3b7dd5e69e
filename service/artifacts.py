"""Prompt files as they were published, or not at all."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from service.errors import Unavailable
from sharpzo_core.errors import NotFound
from sharpzo_core.prompts import prompt_key

if TYPE_CHECKING:
    from sharpzo_core.artifact_store import ArtifactStore
    from sharpzo_core.prompts import PromptRecord


def fetch_artifact(artifacts: ArtifactStore, prompt: PromptRecord) -> bytes:
    """The prompt's file, checked against the hash it was published with.

    Raises:
        Unavailable: it is damaged or missing.
        StorageUnavailable: the store does not answer.
    """
    try:
        data = artifacts.get_bytes(prompt_key(prompt.id))
    except NotFound:
        raise corrupt(prompt, "is missing") from None
    if hashlib.sha256(data).hexdigest() != prompt.sha256:
        raise corrupt(prompt, "is damaged")
    return data


def corrupt(prompt: PromptRecord, what: str) -> Unavailable:
    """The error of an artifact that cannot be used."""
    detail = f"the artifact of {prompt.name}:{prompt.version} ({prompt.id}) {what}"
    return Unavailable("artifact_corrupt", detail)
