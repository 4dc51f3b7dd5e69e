"""Reading prompt files for requests: a damaged file is a 503 for its prompt only."""

from service.errors import Unavailable
from sharpzo_core.records.prompts import PromptRecord
from sharpzo_core.storage.artifact_store import ArtifactStore
from sharpzo_core.storage.prompt_files import describe_file, read_prompt_file
from sharpzo_engine.errors import ArtifactError

_CODE = "artifact_corrupt"


def fetch_artifact(artifacts: ArtifactStore, prompt: PromptRecord) -> bytes:
    """The prompt's file, checked against the hash it was published with.

    Raises:
        Unavailable: it is damaged or missing.
        StorageUnavailable: the store does not answer.
    """
    try:
        return read_prompt_file(artifacts, prompt)
    except ArtifactError as error:
        raise Unavailable(_CODE, str(error)) from error


def corrupt(prompt: PromptRecord, what: str) -> Unavailable:
    return Unavailable(_CODE, f"{describe_file(prompt)} {what}")
