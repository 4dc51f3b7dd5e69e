"""What the service answers with, typed.

Models are frozen and lenient: a field that a newer service adds is kept as an extra attribute, and
words (`status`, `phase`, `type`) are plain strings, so that a new one does not break a client.
Accuracies are fractions from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

T = TypeVar("T")

#: Statuses that never change any more.
TERMINAL_STATUSES = frozenset({"succeeded", "failed", "cancelled"})


class Model(BaseModel):
    """Base of every answer."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=(), defer_build=True)

    _request_id: str | None = PrivateAttr(default=None)

    def __eq__(self, other: object) -> bool:
        """Equal by what it says, whichever request brought it."""
        return (
            isinstance(other, Model)
            and type(self) is type(other)
            and self.__dict__ == other.__dict__
            and self.model_extra == other.model_extra
        )

    def __hash__(self) -> int:
        return hash((type(self), getattr(self, "id", None)))

    @classmethod
    def read(cls, data: object, request_id: str | None = None) -> Self:
        """Validate decoded JSON.

        Raises:
            pydantic.ValidationError: a promised field is missing or of another type.
        """
        model = cls.model_validate(data)
        model._request_id = request_id  # noqa: SLF001 - its own class
        return model


class Page(Model, Generic[T]):
    """One page of a list; `next` is the cursor of the page that follows."""

    data: tuple[T, ...]
    has_more: bool = False
    next: str | int | None = None


class ErrorInfo(Model):
    """Why a job, dataset or image failed: a stable code and a sentence."""

    code: str | None = None
    message: str = ""


class Dataset(Model):
    """An uploaded dataset; it can be tuned on once `status` is `ready`."""

    id: str
    name: str | None = None
    status: str
    """processing, ready or failed"""
    labelled: bool = True
    """whether its images have classes; without, it can be classified, no more"""
    images: int | None = None
    classes: tuple[str, ...] | None = None
    splits: Mapping[str, Any] | None = None
    """split (train, val, test) -> images, in all or by class"""
    sha256: str | None = None
    report: Mapping[str, Any] | None = None
    error: ErrorInfo | None = None
    created_at: datetime | None = None


class Progress(Model):
    """How far a job is."""

    step: int = 0
    total_steps: int | None = None
    forward_passes: int = 0
    eta_seconds: float | None = None


class Metrics(Model):
    """Figures of a job or prompt; None where not measured (yet)."""

    zero_shot_accuracy: float | None = None
    val_accuracy: float | None = None
    test_accuracy: float | None = None
    """of what the prompt answers, its head included"""
    prompt_test_accuracy: float | None = None
    """without the head"""
    loss: float | None = None
    accuracy: float | None = None
    """of an evaluation, as what follows"""
    macro_accuracy: float | None = None
    top5_accuracy: float | None = None
    nll: float | None = None
    ece: float | None = None
    """expected calibration error"""
    calibrated_nll: float | None = None
    """at the prompt's own temperature"""
    calibrated_ece: float | None = None
    zero_shot_ece: float | None = None
    images: int | None = None
    errors: int | None = None
    """images that could not be read"""


class Checkpoint(Model):
    """What a job goes on from when it is resumed."""

    step: int
    saved_at: datetime | None = None


class Job(Model):
    """A job: it tunes a prompt, measures one, or labels images with one."""

    id: str
    kind: str = "tuning"
    """tuning, evaluation or classification"""
    status: str
    """queued, running, pausing, paused, cancelling, succeeded, failed or cancelled"""
    phase: str | None = None
    """preparing, stage1, stage2 or evaluating, while it runs"""
    phase_label: str | None = None
    """the phase in words, with the optimiser that a stage uses: Preparing, Gauss-Newton"""
    progress: Progress = Field(default_factory=Progress)
    metrics: Metrics = Field(default_factory=Metrics)
    prompt_id: str | None = None
    """what a tuning job has published, or another job applies"""
    error: ErrorInfo | None = None
    attempt: int = 0
    checkpoint: Checkpoint | None = None
    from_checkpoint: str | None = None
    """the job whose checkpoint it began with"""
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    config: Mapping[str, Any] | None = None
    dataset_id: str | None = None
    backbone: str | None = None
    name: str | None = None
    metadata: Mapping[str, Any] | None = None

    @property
    def is_terminal(self) -> bool:
        """Whether the job has ended, well or not."""
        return self.status in TERMINAL_STATUSES


class JobEvent(Model):
    """Something that happened to a job; `seq` counts from 1 without gaps."""

    seq: int
    type: str
    level: str = "info"
    message: str = ""
    data: Mapping[str, Any] | None = None
    created_at: datetime | None = None


class StepRecord(Model):
    """One step of a tuning run."""

    step: int
    phase: str | None = None
    loss: float | None = None
    val_loss: float | None = None
    val_accuracy: float | None = None
    sigma: float | None = None
    sharpness: float | None = None
    forward_passes: int | None = None
    seconds: float | None = None


class PromptBackbone(Model):
    """The model that a prompt was tuned on."""

    name: str
    pretrained: str | None = None
    fingerprint: str | None = None


class Lineage(Model):
    """Where a prompt comes from; None is what is not known."""

    source: str | None = None
    """job or import"""
    job_id: str | None = None
    dataset_id: str | None = None
    dataset_name: str | None = None
    dataset_sha256: str | None = None
    backbone: PromptBackbone | None = None
    config: Mapping[str, Any] | None = None
    """the hyperparameters that it was tuned with"""
    seed: int | None = None
    engine_version: str | None = None
    from_checkpoint: str | None = None
    """the job that the tuning job went on from"""
    parent: str | None = None
    """the prompt that that job had published"""


class Residency(Model):
    """How the process that answered has a prompt."""

    resident: bool = False
    """whether its matrix is in memory"""
    used_at: datetime | None = None


class Prompt(Model):
    """A tuned prompt in the registry."""

    id: str
    job_id: str | None = None
    name: str | None = None
    version: int | None = None
    aliases: tuple[str, ...] = ()
    """those that point to this version"""
    pinned: bool = False
    """whether every API process keeps it in memory"""
    backbone: PromptBackbone | None = None
    classes: tuple[str, ...] = ()
    metrics: Metrics = Field(default_factory=Metrics)
    lineage: Lineage = Field(default_factory=Lineage)
    sha256: str | None = None
    created_at: datetime | None = None
    residency: Residency | None = None
    """told of a single prompt, not in lists"""


class AliasChange(Model):
    """One line of an alias's history; `seq` counts from 1 without gaps."""

    seq: int
    action: str
    """set, rollback or deleted"""
    prompt_id: str | None = None
    """in force from here on; None: none"""
    version: int | None = None
    previous_prompt_id: str | None = None
    comment: str | None = None
    gate: Mapping[str, Any] | None = None
    """what was asked for and measured, if the move was gated"""
    created_at: datetime | None = None


class Alias(Model):
    """A movable name for one version of a prompt."""

    name: str
    alias: str
    ref: str
    """name@alias, which leads to the prompt"""
    prompt_id: str
    version: int
    seq: int | None = None
    """of the entry of its history that put it there"""
    updated_at: datetime | None = None
    history: tuple[AliasChange, ...] = ()
    """newest first, where it was asked for; `client.aliases.history` gives all of a long one"""
    has_more: bool = False
    next: str | int | None = None

    @property
    def page(self) -> Page[AliasChange]:
        """The history as a page of a list."""
        return Page[AliasChange](data=self.history, has_more=self.has_more, next=self.next)


class ApiKey(Model):
    """An API key without the key itself."""

    id: str
    name: str
    tenant: str
    prefix: str
    """what the key begins with"""
    scopes: tuple[str, ...] = ()
    rate_limit: str | None = None
    created_at: datetime | None = None
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None


class NewApiKey(ApiKey):
    """A key that was just made."""

    key: str | None = Field(default=None, repr=False)
    """told once; not part of `repr`, which may end up in a log"""


class AuditEntry(Model):
    """A request that was refused or changed something."""

    id: str
    at: datetime
    method: str
    status: int
    route: str | None = None
    object_id: str | None = None
    key_id: str | None = None
    code: str | None = None
    request_id: str | None = None
    address: str | None = None


class Quota(Model):
    """How much of something is used; without a limit `limit` is None."""

    used: int
    limit: int | None = None


class Usage(Model):
    """What a tenant has used."""

    tenant: str
    month: str
    """in UTC, that forward passes are counted in"""
    active_jobs: Quota
    storage_bytes: Quota
    forward_passes: Quota


class Prediction(Model):
    """One label for one image; scores of all labels add up to 1."""

    label: str
    index: int
    score: float


class ImageResult(Model):
    """The answer for one image: its best labels, or why there are none."""

    predictions: tuple[Prediction, ...] = ()
    zero_shot: tuple[Prediction, ...] = ()
    """what the hand-written prompt says, if it was asked for"""
    error: ErrorInfo | None = None

    @property
    def best(self) -> Prediction | None:
        """The most likely label, if the image could be classified."""
        return self.predictions[0] if self.predictions else None


class ImageRecord(ImageResult):
    """One image of a classified dataset: its best labels, or why there are none."""

    index: int
    file: str
    """its path in what was uploaded"""
    split: str | None = None
    label: str | None = None
    """its true class, where that is known"""


class Classification(Model):
    """Answer to a classify request: one result per image, in the order sent."""

    prompt_id: str
    name: str | None = None
    version: int | None = None
    results: tuple[ImageResult, ...]


class PromptAnswer(Model):
    """What one of several prompts says of the images, or why it cannot be used."""

    ref: str
    prompt_id: str | None = None
    name: str | None = None
    version: int | None = None
    results: tuple[ImageResult, ...] = ()
    error: ErrorInfo | None = None


class PromptAnswers(Model):
    """The answers of several prompts."""

    answers: tuple[PromptAnswer, ...]


class Backbone(Model):
    """A backbone that a job may name."""

    name: str
    loaded: bool | None = None


class Health(Model):
    """State of the service."""

    status: str = "ok"
