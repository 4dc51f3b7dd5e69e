"""The service's answers, typed.

Models are frozen and lenient: a field that a newer service adds is kept as an extra attribute, and
`status`, `phase`, `type` and the like are plain strings, so that a new value does not break a
client. Accuracies are fractions from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

T = TypeVar("T")

#: Statuses of jobs that have ended.
TERMINAL_STATUSES = frozenset({"succeeded", "failed", "cancelled"})


class Model(BaseModel):
    """Base of all answers."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=(), defer_build=True)

    _request_id: str | None = PrivateAttr(default=None)

    def __eq__(self, other: object) -> bool:
        """Compare the fields, but not the request that returned them."""
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
            pydantic.ValidationError: A required field is missing or has another type.
        """
        model = cls.model_validate(data)
        model._request_id = request_id  # noqa: SLF001 - this class's own attribute
        return model


class Page(Model, Generic[T]):
    """One page of a list; `next` is the cursor of the next page."""

    data: tuple[T, ...]
    has_more: bool = False
    next: str | int | None = None


class ErrorInfo(Model):
    """Why a job, dataset or image failed: a stable code and a message."""

    code: str | None = None
    message: str = ""


class Dataset(Model):
    """An uploaded dataset; it can be used once its `status` is `ready`."""

    id: str
    name: str | None = None
    status: str
    """processing, ready or failed"""
    labelled: bool = True
    """whether its images have classes; if false, the dataset can only be classified"""
    images: int | None = None
    classes: tuple[str, ...] | None = None
    splits: Mapping[str, Any] | None = None
    """split (train, val, test) -> number of images"""
    sha256: str | None = None
    report: Mapping[str, Any] | None = None
    error: ErrorInfo | None = None
    created_at: datetime | None = None


class Progress(Model):
    """The progress of a job."""

    step: int = 0
    total_steps: int | None = None
    forward_passes: int = 0
    eta_seconds: float | None = None
    """estimated seconds until it ends"""


class Metrics(Model):
    """Results of a job or prompt; None: not measured (yet)."""

    zero_shot_accuracy: float | None = None
    """accuracy of the hand-written prompt on test images, or on validation images without them"""
    zero_shot_accuracy_low: float | None = None
    """lower bound of its 95 % interval, by Wilson's score; None without test images"""
    zero_shot_accuracy_high: float | None = None
    val_accuracy: float | None = None
    test_accuracy: float | None = None
    """accuracy on test images, including the head"""
    test_accuracy_low: float | None = None
    """lower bound of its 95 % interval, by Wilson's score"""
    test_accuracy_high: float | None = None
    test_images: int | None = None
    validation_images: int | None = None
    prompt_test_accuracy: float | None = None
    """accuracy on test images without the head"""
    loss: float | None = None
    selected_step: int | None = None
    """step that the prompt was taken from; 0 is the hand-written prompt"""
    accuracy: float | None = None
    """accuracy of an evaluation; the following fields too are of evaluations"""
    accuracy_low: float | None = None
    """lower bound of its 95 % interval, by Wilson's score"""
    accuracy_high: float | None = None
    macro_accuracy: float | None = None
    top5_accuracy: float | None = None
    nll: float | None = None
    ece: float | None = None
    """expected calibration error"""
    calibrated_nll: float | None = None
    """negative log-likelihood at the prompt's temperature"""
    calibrated_ece: float | None = None
    zero_shot_ece: float | None = None
    images: int | None = None
    errors: int | None = None
    """images that could not be read"""


class Checkpoint(Model):
    """The checkpoint that a job continues from when it is resumed."""

    step: int
    saved_at: datetime | None = None


class Job(Model):
    """A job, which tunes a prompt, evaluates one, or labels images with one."""

    id: str
    kind: str = "tuning"
    """tuning, evaluation or classification"""
    status: str
    """queued, running, pausing, paused, cancelling, succeeded, failed or cancelled"""
    phase: str | None = None
    """preparing, stage1, stage2 or evaluating, while the job is running"""
    phase_label: str | None = None
    """the phase in words, with the optimiser of a stage: Preparing, Gauss-Newton"""
    progress: Progress = Field(default_factory=Progress)
    metrics: Metrics = Field(default_factory=Metrics)
    prompt_id: str | None = None
    """the prompt that a tuning job has published, or that another job applies"""
    finishing: bool = False
    """asked to end its search and to publish its best prompt so far"""
    stopped_by: str | None = None
    """what ended the search: completed, enough, max_forward_passes, max_seconds or finished"""
    error: ErrorInfo | None = None
    attempt: int = 0
    checkpoint: Checkpoint | None = None
    from_checkpoint: str | None = None
    """the job whose checkpoint it started from"""
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    config: Mapping[str, Any] | None = None
    dataset_id: str | None = None
    unlabelled_dataset_id: str | None = None
    """the dataset whose images it learns from without labels"""
    backbone: str | None = None
    name: str | None = None
    metadata: Mapping[str, Any] | None = None

    @property
    def is_terminal(self) -> bool:
        """Whether the job has ended, successfully or not."""
        return self.status in TERMINAL_STATUSES


class JobEvent(Model):
    """An event of a job; `seq` counts from 1 without gaps."""

    seq: int
    type: str
    level: str = "info"
    message: str = ""
    data: Mapping[str, Any] | None = None
    created_at: datetime | None = None


class StepRecord(Model):
    """One step of a tuning job."""

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
    """Where a prompt comes from; None: not known."""

    source: str | None = None
    """job or import"""
    job_id: str | None = None
    dataset_id: str | None = None
    dataset_name: str | None = None
    dataset_sha256: str | None = None
    backbone: PromptBackbone | None = None
    config: Mapping[str, Any] | None = None
    """the hyperparameters it was tuned with"""
    seed: int | None = None
    engine_version: str | None = None
    from_checkpoint: str | None = None
    """the job whose checkpoint the tuning job started from"""
    parent: str | None = None
    """the prompt that this other job had published"""


class Residency(Model):
    """Whether the process that answered has a prompt in memory."""

    resident: bool = False
    """whether the prompt's class embeddings are in memory"""
    used_at: datetime | None = None


class Prompt(Model):
    """A tuned prompt in the registry."""

    id: str
    job_id: str | None = None
    name: str | None = None
    version: int | None = None
    aliases: tuple[str, ...] = ()
    """aliases that point to this version"""
    pinned: bool = False
    """whether every API process keeps it in memory"""
    backbone: PromptBackbone | None = None
    classes: tuple[str, ...] = ()
    metrics: Metrics = Field(default_factory=Metrics)
    lineage: Lineage = Field(default_factory=Lineage)
    sha256: str | None = None
    created_at: datetime | None = None
    residency: Residency | None = None
    """only for a single prompt, not in lists"""


class AliasChange(Model):
    """One entry of an alias's history; `seq` counts from 1 without gaps."""

    seq: int
    action: str
    """set, rollback or deleted"""
    prompt_id: str | None = None
    """the prompt that the alias points to from then on; None: none"""
    version: int | None = None
    previous_prompt_id: str | None = None
    comment: str | None = None
    gate: Mapping[str, Any] | None = None
    """the required and measured values, if there was a gate"""
    created_at: datetime | None = None


class Alias(Model):
    """A name that points to one version of a prompt, and can be moved to another."""

    name: str
    alias: str
    ref: str
    """name@alias, which can be used wherever a prompt is named"""
    prompt_id: str
    version: int
    seq: int | None = None
    """`seq` of the newest entry of its history"""
    updated_at: datetime | None = None
    history: tuple[AliasChange, ...] = ()
    """newest first, only from `client.aliases.get`; `client.aliases.history` returns all of it"""
    has_more: bool = False
    next: str | int | None = None

    @property
    def page(self) -> Page[AliasChange]:
        """The history as one page of a list."""
        return Page[AliasChange](data=self.history, has_more=self.has_more, next=self.next)


class ApiKey(Model):
    """An API key without the key itself."""

    id: str
    name: str
    tenant: str
    prefix: str
    """the first characters of the key"""
    scopes: tuple[str, ...] = ()
    rate_limit: str | None = None
    created_at: datetime | None = None
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None


class NewApiKey(ApiKey):
    """An API key that was just created, with the key itself."""

    key: str | None = Field(default=None, repr=False)
    """returned only once; not part of `repr`, which may end up in a log"""


class AuditEntry(Model):
    """A request that was rejected or changed something."""

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
    """How much of a resource is used; `limit` is None if it is unlimited."""

    used: int
    limit: int | None = None


class Usage(Model):
    """The usage of a tenant."""

    tenant: str
    month: str
    """the month (UTC) in which `forward_passes` are counted"""
    active_jobs: Quota
    storage_bytes: Quota
    forward_passes: Quota


class Prediction(Model):
    """One label for one image; the scores of all labels add up to 1."""

    label: str
    index: int
    score: float


class ImageResult(Model):
    """The result for one image: its best labels, or an error."""

    predictions: tuple[Prediction, ...] = ()
    zero_shot: tuple[Prediction, ...] = ()
    """predictions of the hand-written prompt, if requested"""
    error: ErrorInfo | None = None

    @property
    def best(self) -> Prediction | None:
        """The most likely label; None if the image could not be classified."""
        return self.predictions[0] if self.predictions else None


class ImageRecord(ImageResult):
    """The result for one image of a classified dataset: its best labels, or an error."""

    index: int
    file: str
    """its path in the uploaded dataset"""
    split: str | None = None
    label: str | None = None
    """its true class, if known"""


class Classification(Model):
    """The answer to a classify request: one result per image, in the order sent."""

    prompt_id: str
    name: str | None = None
    version: int | None = None
    results: tuple[ImageResult, ...]


class PromptAnswer(Model):
    """The results of one of several prompts, or why it cannot be used."""

    ref: str
    prompt_id: str | None = None
    name: str | None = None
    version: int | None = None
    results: tuple[ImageResult, ...] = ()
    error: ErrorInfo | None = None


class PromptAnswers(Model):
    """The answers of several prompts, in the order they were named."""

    answers: tuple[PromptAnswer, ...]


class Backbone(Model):
    """A backbone that a job may name."""

    name: str
    default: bool | None = None
    """whether jobs that name no backbone use it"""
    loaded: bool | None = None
    level: str | None = None
    """what it can answer: `tangents` or `contexts`"""
    runtime: str | None = None
    precision: str | None = None
    agreement: float | None = None
    """share of pictures with the original's label, at export or when loaded in less than float32"""


class Health(Model):
    """The state of the service."""

    status: str = "ok"
