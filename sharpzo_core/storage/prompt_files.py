"""Reading prompt files, with a check that they are as published."""

import hashlib

from sharpzo_core.errors import NotFound
from sharpzo_core.records.prompts import PromptRecord, prompt_key
from sharpzo_core.storage.artifact_store import ArtifactStore
from sharpzo_engine.errors import ArtifactError


def read_prompt_file(artifacts: ArtifactStore, prompt: PromptRecord) -> bytes:
    """The prompt's file, checked against the hash it was published with.

    Raises:
        ArtifactError: it is damaged or missing.
        StorageUnavailable: the store does not answer.
    """
    try:
        data = artifacts.get_bytes(prompt_key(prompt.id))
    except NotFound:
        raise ArtifactError(f"{describe_file(prompt)} is missing") from None
    if hashlib.sha256(data).hexdigest() != prompt.sha256:
        raise ArtifactError(f"{describe_file(prompt)} is damaged")
    return data


def describe_file(prompt: PromptRecord) -> str:
    return f"the artifact of {prompt.name}:{prompt.version} ({prompt.id})"
