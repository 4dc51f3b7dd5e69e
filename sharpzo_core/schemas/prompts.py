"""Prompts and backbones on the wire."""

from datetime import datetime
from typing import Any, Literal, Self

from sharpzo_core.records.prompts import PromptRecord
from sharpzo_core.schemas.base import PublicModel
from sharpzo_engine.clip.level import Level


class BackbonePublic(PublicModel):
    """A backbone that jobs may ask for."""

    name: str
    default: bool
    loaded: bool
    level: Level
    """what it can answer: `tangents` includes everything that `contexts` gives"""
    runtime: Literal["torch", "onnxruntime", "remote"]
    precision: str | None
    """of the image encoder; null if its folder cannot be read, or it is remote and not loaded"""
    agreement: float | None
    """share of pictures with the original's label: of photos at export, of generated pictures when
    a model in torch is loaded in another precision than float32; null if unmeasured"""


class PromptBackbone(PublicModel):
    """The backbone that a prompt was tuned on."""

    name: str
    pretrained: str | None
    fingerprint: str | None


class LineagePublic(PublicModel):
    """Where a prompt comes from; null where that is unknown."""

    source: Literal["job", "import"]
    job_id: str | None
    dataset_id: str | None
    dataset_name: str | None
    dataset_sha256: str | None
    backbone: PromptBackbone
    config: dict[str, Any] | None
    """The hyperparameters that it was tuned with."""

    seed: int | None
    engine_version: str | None
    from_checkpoint: str | None
    """The job whose checkpoint the tuning job continued."""

    parent: str | None
    """The prompt that this job had published."""

    @classmethod
    def from_record(cls, prompt: PromptRecord) -> Self:
        stored: dict[str, Any] = {
            name: prompt.lineage.get(name)
            for name in cls.model_fields.keys() - {"source", "job_id", "backbone"}
        }
        return cls(
            source="import" if prompt.job_id is None else "job",
            job_id=prompt.job_id,
            backbone=PromptBackbone.model_validate(prompt.backbone),
            **stored,
        )


class ResidencyPublic(PublicModel):
    """Whether the API process that answers has a prompt in memory."""

    resident: bool
    """Whether its matrix is in memory."""

    used_at: datetime | None
    """When it was last used or loaded."""


class PromptPublic(PublicModel):
    """One version of a tuned prompt."""

    id: str
    job_id: str | None
    name: str
    version: int
    aliases: list[str]
    """The aliases of its name that point to this version."""

    pinned: bool
    """Whether every API process keeps it in memory."""

    backbone: PromptBackbone
    classes: list[str]
    metrics: dict[str, float | None]
    lineage: LineagePublic
    sha256: str
    created_at: datetime
    residency: ResidencyPublic | None = None
    """Only for a single prompt, not in lists."""

    @classmethod
    def from_record(cls, prompt: PromptRecord) -> Self:
        return cls.from_fields(prompt, lineage=LineagePublic.from_record(prompt), residency=None)
