"""What a published prompt is to the service: a record; its file is in the artifact store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime


@dataclass(frozen=True, kw_only=True)
class NewPrompt:
    """A prompt that is about to be published; its file is already stored."""

    id: str
    name: str
    job_id: str | None
    backbone: Mapping[str, str | None]  #: name, pretrained, fingerprint
    classes: tuple[str, ...]
    metrics: Mapping[str, float | None]
    sha256: str  #: Of the file


@dataclass(frozen=True, kw_only=True)
class PromptRecord(NewPrompt):
    """One row of the table `prompts`: an immutable version."""

    version: int
    created_at: datetime


def prompt_key(prompt_id: str) -> str:
    """Where the artifact store keeps the prompt's file."""
    return f"prompts/{prompt_id}.safetensors"


def report_key(job_id: str, form: Literal["html", "json"]) -> str:
    """Where the artifact store keeps the report of the job: the page, or the same as JSON."""
    return f"jobs/{job_id}/report.{form}"
