"""The record of a published prompt; its file is in the artifact store."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from sharpzo_core.database.tenants import DEFAULT_TENANT

#: Names of prompts and jobs: they appear in URLs, before `:version` or `@alias`.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


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
    bytes: int = 0  #: Of the file; 0 in rows from before it was stored
    lineage: Mapping[str, Any] = field(default_factory=dict)
    """What is known of its origin, see `lineage.py`; {} in rows from before it was stored."""


@dataclass(frozen=True, kw_only=True)
class PromptRecord(NewPrompt):
    tenant: str = DEFAULT_TENANT
    version: int
    created_at: datetime
    pinned: bool = False  #: Every API process keeps it in memory
    aliases: tuple[str, ...] = ()  #: The aliases that point to it now, sorted


def prompt_key(prompt_id: str) -> str:
    return f"prompts/{prompt_id}.safetensors"


def report_key(job_id: str, form: Literal["html", "json"]) -> str:
    return f"jobs/{job_id}/report.{form}"
