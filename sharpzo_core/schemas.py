"""What travels: the bodies of requests and answers. Stored records are elsewhere."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from sharpzo_core.ids import Prefix, id_pattern, is_id
from sharpzo_core.rates import RATE_PATTERN, write_rate
from sharpzo_core.records.aliases import AliasAction, AliasHistory, AliasRecord, Expected, Gate
from sharpzo_core.records.datasets import DatasetRecord, DatasetStatus
from sharpzo_core.records.jobs import (
    CheckpointRef,
    Job,
    JobEvent,
    JobKind,
    JobStatus,
    JobStep,
    Phase,
)
from sharpzo_core.records.keys import Scope
from sharpzo_core.records.prompts import NAME_PATTERN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sharpzo_core.records.aliases import AliasChange
    from sharpzo_core.records.keys import ApiKey, NewKey
    from sharpzo_core.records.prompts import PromptRecord
    from sharpzo_core.stores.audit import AuditEntry
    from sharpzo_core.stores.quotas import Quotas, Usage

T = TypeVar("T")

MAX_KEY_SECONDS = 10 * 366 * 86_400
MAX_GRACE_SECONDS = 30 * 86_400
MAX_METADATA_KEYS = 16
MAX_LABEL = 200  # characters of a free text name
MAX_TOP_K = 1000  # classes per image


def is_safe_text(text: str) -> bool:
    """Whether every store and log can hold the text: no control characters, no lone surrogates."""
    return (text.isprintable() and text.isascii()) or not any(
        ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 or 0xD800 <= ord(char) < 0xE000
        for char in text
    )


def _check_text(text: str) -> str:
    if not is_safe_text(text):
        raise ValueError("must not contain control characters or lone surrogates")
    return text


# The pattern is for the document: surrogates, which no UTF-8 holds, need not be told there.
_SAFE = {"pattern": r"^[^\x00-\x1f\x7f-\x9f]*$"}
SafeText = Annotated[str, AfterValidator(_check_text), Field(json_schema_extra=_SAFE)]
Label = Annotated[SafeText, Field(min_length=1, max_length=MAX_LABEL)]
Slug = Annotated[str, Field(pattern=NAME_PATTERN)]
MetadataKey = Annotated[str, AfterValidator(_check_text), Field(min_length=1, max_length=64)]
MetadataValue = Annotated[SafeText, Field(max_length=512)]
_METADATA = {"propertyNames": {"minLength": 1, "maxLength": 64, **_SAFE}}
Metadata = Annotated[
    dict[MetadataKey, MetadataValue],
    Field(max_length=MAX_METADATA_KEYS, json_schema_extra=_METADATA),
]
Rate = Annotated[str, Field(pattern=RATE_PATTERN), AfterValidator(write_rate)]
KeyScope = Annotated[Scope, Field(strict=False)]  # text in JSON
Split = Literal["train", "val", "test"]


class RequestModel(BaseModel):
    """Strict, and closed to unknown fields."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class PublicModel(BaseModel):
    """An answer."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Page(PublicModel, Generic[T]):
    """One page of a list; ask for the following one with `after=next`."""

    data: list[T]
    has_more: bool
    next: str | None


class ErrorPublic(PublicModel):
    """Why something failed; `code` is stable."""

    code: str
    message: str


class FieldError(PublicModel):
    """One wrong field; `pointer` is a JSON pointer into the request."""

    pointer: str
    message: str


class Problem(PublicModel):
    """An error answer, `application/problem+json` (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str | None = None
    errors: list[FieldError] | None = None


class SplitsPublic(PublicModel):
    """Images per split."""

    train: int = 0
    val: int = 0
    test: int = 0


class DatasetImport(RequestModel):
    """Ask for a dataset from a place that the operator allows."""

    name: Label
    uri: Annotated[SafeText, Field(min_length=1, max_length=2000)]

    unlabelled: bool = False
    """Take every image, in whatever folder it is; such a dataset can be classified, no more."""


class DatasetPublic(PublicModel):
    """A dataset."""

    id: str
    name: str
    status: DatasetStatus
    labelled: bool
    """Whether its images have classes; without, it can be classified, no more."""

    classes: list[str]
    images: int
    """In all, those included that cannot be read."""

    splits: SplitsPublic
    sha256: str | None
    report: dict[str, Any] | None
    error: ErrorPublic | None
    created_at: datetime

    @classmethod
    def from_record(cls, dataset: DatasetRecord) -> DatasetPublic:
        """What a client sees of the record."""
        return cls(
            id=dataset.id,
            name=dataset.name,
            status=dataset.status,
            labelled=dataset.labelled,
            classes=list(dataset.classes),
            images=dataset.images,
            splits=SplitsPublic(**dataset.splits),
            sha256=dataset.sha256,
            report=None if dataset.report is None else dict(dataset.report),
            error=_error(dataset.error_code, dataset.error_message),
            created_at=dataset.created_at,
        )


class JobCreate(RequestModel):
    """Ask for a prompt to be tuned."""

    dataset_id: Annotated[SafeText, Field(max_length=100)]
    """A dataset that is ready."""

    backbone: Annotated[SafeText, Field(min_length=1, max_length=100)] | None = None
    """One of `GET /v1/backbones`; default: the operator's choice."""

    preset: Annotated[SafeText, Field(max_length=100)] | None = None
    """Named hyperparameters that `config` is laid over; without it `default`."""

    config: dict[str, Any] = Field(default_factory=dict)
    """Fields of TuningConfig."""

    name: Slug | None = None
    """Name of the prompt; jobs of one name publish its versions 1, 2, 3, …"""

    metadata: Metadata = Field(default_factory=dict)
    """Free labels, kept and returned."""

    from_checkpoint: Annotated[SafeText, Field(max_length=100)] | None = None
    """Id of a job, ended or not, whose last checkpoint this one goes on from. Its configuration is
    what `config` is laid over; budgets (which count what was done before) and the head may differ,
    dataset and backbone must be the same."""


class ApplyRequest(RequestModel):
    """Ask for a prompt to be applied to the images of a dataset."""

    dataset_id: Annotated[SafeText, Field(max_length=100)]
    """A dataset that is ready."""

    name: Label | None = None
    """What to call the job."""

    metadata: Metadata = Field(default_factory=dict)
    """Free labels, kept and returned."""

    def parameters(self) -> dict[str, Any]:
        """What the job's `config` holds."""
        return self.model_dump(mode="json", exclude=set(ApplyRequest.model_fields))


class EvaluationCreate(ApplyRequest):
    """Ask for a prompt to be measured."""

    split: Split = "test"
    """The images to measure it on."""

    zero_shot: bool = True
    """Measure the hand-written prompt that tuning began with beside it."""

    classes: Literal["all", "base", "new"] | None = None
    """Measure it on images of these classes of the dataset, and tell them apart from each other
    alone: the first half, the others, or all. If some are new to the prompt, its tuned context is
    put before their names, without its head. By default the dataset's classes must be the prompt's.
    """


class BatchCreate(ApplyRequest):
    """Ask for the images of a dataset to be classified."""

    split: Split | None = None
    """The images to classify; without it all."""

    top_k: Annotated[int, Field(ge=1, le=MAX_TOP_K)] = 5
    """Classes per image."""

    calibrated: bool = False
    """Divide the logits by the temperature that was fitted when the prompt was tuned."""

    zero_shot: bool = False
    """Add what the hand-written prompt that tuning began with would have answered."""


class ProgressPublic(PublicModel):
    """How far a job is; `eta_seconds` is null where it would be a guess.

    Steps of a job that applies a prompt are images.
    """

    step: int
    total_steps: int
    forward_passes: int
    eta_seconds: float | None


class CheckpointPublic(PublicModel):
    """What a job goes on from when it is resumed."""

    step: int
    saved_at: datetime


class MetricsPublic(PublicModel):
    """What a job has reached; accuracies are fractions from 0 to 1.

    `accuracy` and what follows belong to evaluations, `images` and `errors` to classifications too.
    """

    zero_shot_accuracy: float | None = None
    val_accuracy: float | None = None
    test_accuracy: float | None = None
    """Of what the prompt answers, its head included."""

    prompt_test_accuracy: float | None = None
    """Without the head."""

    loss: float | None = None
    accuracy: float | None = None
    macro_accuracy: float | None = None
    """Mean over the classes."""

    top5_accuracy: float | None = None
    nll: float | None = None
    """Mean negative log-likelihood of the true class."""

    ece: float | None = None
    """Expected calibration error."""

    calibrated_nll: float | None = None
    """At the prompt's own temperature, as everything `calibrated_`."""

    calibrated_ece: float | None = None
    zero_shot_ece: float | None = None
    images: int | None = None
    errors: int | None = None
    """Images that could not be read."""

    @classmethod
    def from_record(cls, metrics: Mapping[str, float | None]) -> MetricsPublic:
        """The public ones among the recorded metrics."""
        return cls(**{name: metrics.get(name) for name in cls.model_fields})


class JobPublic(PublicModel):
    """A job: it tunes a prompt, measures one, or labels images with one."""

    id: str
    kind: JobKind
    status: JobStatus
    phase: Phase | None
    phase_label: str | None
    """The phase in words, with the optimiser that a stage uses: `Preparing`, `Gauss-Newton`."""

    progress: ProgressPublic
    metrics: MetricsPublic
    prompt_id: str | None
    """The prompt that a tuning job has published, or that another job applies."""

    error: ErrorPublic | None
    attempt: int
    """How often a worker has begun with it; one that gives it back unharmed does not count."""

    checkpoint: CheckpointPublic | None
    from_checkpoint: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    config: dict[str, Any]
    dataset_id: str
    backbone: str
    name: str | None
    metadata: dict[str, str]

    @classmethod
    def from_record(cls, job: Job) -> JobPublic:
        """What a client sees of the record."""
        return cls(
            id=job.id,
            kind=job.kind,
            status=job.status,
            phase=job.phase,
            phase_label=job.phase_label,
            progress=ProgressPublic(
                step=job.step,
                total_steps=job.total_steps,
                forward_passes=job.forward_passes,
                eta_seconds=job.eta_seconds,
            ),
            metrics=MetricsPublic.from_record(job.metrics),
            prompt_id=job.prompt_id,
            error=_error(job.error_code, job.error_message),
            attempt=job.attempt,
            checkpoint=_checkpoint(job.checkpoint),
            from_checkpoint=job.from_checkpoint,
            created_at=job.created_at,
            started_at=job.started_at,
            finished_at=job.finished_at,
            config=dict(job.config),
            dataset_id=job.dataset_id,
            backbone=job.backbone,
            name=job.name,
            metadata=dict(job.metadata),
        )


class EventPublic(PublicModel):
    """One line of a job's history."""

    seq: int
    type: str
    level: str
    message: str
    data: dict[str, Any]
    created_at: datetime

    @classmethod
    def from_record(cls, event: JobEvent) -> EventPublic:
        """What a client sees of the record."""
        return cls(**vars(event) | {"data": dict(event.data)})


class StepPublic(PublicModel):
    """One recorded step of a job's search."""

    step: int
    phase: Phase
    loss: float | None
    val_loss: float | None
    val_accuracy: float | None
    sigma: float | None
    sharpness: float | None
    forward_passes: int
    seconds: float

    @classmethod
    def from_record(cls, step: JobStep) -> StepPublic:
        """What a client sees of the record."""
        return cls(**vars(step))


class PromptBackbone(PublicModel):
    """The backbone that a prompt was tuned on."""

    name: str
    pretrained: str | None
    fingerprint: str | None


class LineagePublic(PublicModel):
    """Where a prompt comes from; null is what is not known."""

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
    """The job that the tuning job went on from."""

    parent: str | None
    """The prompt that that job had published."""

    @classmethod
    def from_record(cls, prompt: PromptRecord) -> LineagePublic:
        """What the row knows, and what was kept beside it."""
        kept: dict[str, Any] = {
            name: prompt.lineage.get(name)
            for name in cls.model_fields.keys() - {"source", "job_id", "backbone"}
        }
        return cls(
            source="import" if prompt.job_id is None else "job",
            job_id=prompt.job_id,
            backbone=PromptBackbone.model_validate(prompt.backbone),
            **kept,
        )


class ResidencyPublic(PublicModel):
    """How the process that answers has a prompt."""

    resident: bool
    """Whether its matrix is in memory."""

    used_at: datetime | None
    """When it was last asked for, or loaded."""


class PromptPublic(PublicModel):
    """One version of a tuned prompt."""

    id: str
    job_id: str | None
    name: str
    version: int
    aliases: list[str]
    """Those of its name that point to this version."""

    pinned: bool
    """Whether every API process keeps it in memory."""

    backbone: PromptBackbone
    classes: list[str]
    metrics: dict[str, float | None]
    lineage: LineagePublic
    sha256: str
    created_at: datetime
    residency: ResidencyPublic | None = None
    """Told of a single prompt, not in lists."""

    @classmethod
    def from_record(cls, prompt: PromptRecord) -> PromptPublic:
        """What a client sees of the record."""
        return cls(
            id=prompt.id,
            job_id=prompt.job_id,
            name=prompt.name,
            version=prompt.version,
            aliases=list(prompt.aliases),
            pinned=prompt.pinned,
            backbone=PromptBackbone.model_validate(prompt.backbone),
            classes=list(prompt.classes),
            metrics=dict(prompt.metrics),
            lineage=LineagePublic.from_record(prompt),
            sha256=prompt.sha256,
            created_at=prompt.created_at,
        )


def _check_prompt_id(text: str) -> str:
    if not is_id(Prefix.PROMPT, text):
        raise ValueError("must be the id of a prompt, prm_…; GET /v1/prompts/{ref} tells it")
    return text


_PROMPT_ID = {"pattern": id_pattern(Prefix.PROMPT)}
PromptId = Annotated[str, AfterValidator(_check_prompt_id), Field(json_schema_extra=_PROMPT_ID)]
Comment = Annotated[SafeText, Field(max_length=500)]


class AliasGate(RequestModel):
    """What a prompt must score; `min`, `min_improvement` or both.

    Of `loss` and `val_loss` less is better: at most `min`, and lower by `min_improvement`.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"required": [name], "properties": {name: {"type": "number"}}}
                for name in ("min", "min_improvement")
            ]
        }
    )

    metric: Annotated[SafeText, Field(min_length=1, max_length=100)]
    """One of the prompt's recorded `metrics`."""

    min: float | None = None
    min_improvement: float | None = None
    """Over the prompt that the alias points to now; the first one has nothing to improve on."""

    @model_validator(mode="after")
    def _has_a_bound(self) -> Self:
        if self.min is None and self.min_improvement is None:
            raise ValueError("give min, min_improvement or both")
        return self


class AliasMove(RequestModel):
    """What the requests that move an alias have in common."""

    expected_prompt_id: PromptId | None = None
    """If given: nothing is changed unless the alias points there now; null: nowhere."""

    comment: Comment | None = None

    @property
    def expected(self) -> Expected | None:
        """The expectation, if the request has one."""
        given = "expected_prompt_id" in self.model_fields_set
        return Expected(self.expected_prompt_id) if given else None


class AliasRollback(AliasMove):
    """Go back to what was in force before."""


class AliasSet(AliasMove):
    """Point an alias to a prompt."""

    prompt_id: PromptId

    gate: AliasGate | None = None
    """Without it, any prompt will do."""

    @property
    def required(self) -> Gate | None:
        """The gate, if the request has one."""
        return None if self.gate is None else Gate(**self.gate.model_dump())


class AliasPublic(PublicModel):
    """A movable name for one version of a prompt."""

    name: str
    alias: str
    ref: str
    """`name@alias`, which leads to the prompt wherever a prompt is asked for."""

    prompt_id: str
    version: int
    seq: int
    """Of the entry of its history that put it there."""

    updated_at: datetime

    @classmethod
    def from_record(cls, alias: AliasRecord) -> AliasPublic:
        """What a client sees of the record."""
        return cls(**_alias_fields(alias))


class GatePublic(PublicModel):
    """A gate that was passed, and what was measured."""

    metric: str
    min: float | None
    min_improvement: float | None
    found: float
    current: float | None
    """What the prompt before scored, if that was asked for."""


class AliasChangePublic(PublicModel):
    """One line of an alias's history."""

    seq: int
    action: AliasAction
    prompt_id: str | None
    """In force from here on; null: none."""

    version: int | None
    previous_prompt_id: str | None
    comment: str | None
    gate: GatePublic | None
    created_at: datetime

    @classmethod
    def from_record(cls, change: AliasChange) -> AliasChangePublic:
        """What a client sees of the record."""
        return cls.model_validate({name: getattr(change, name) for name in cls.model_fields})


class AliasHistoryPublic(AliasPublic):
    """An alias and a page of its history, newest first; the following one is at `after=next`."""

    history: list[AliasChangePublic]
    has_more: bool
    next: str | None

    @classmethod
    def from_history(cls, found: AliasHistory) -> AliasHistoryPublic:
        """What a client sees of the records."""
        return cls(
            **_alias_fields(found.alias),
            history=[AliasChangePublic.from_record(change) for change in found.changes.items],
            has_more=found.changes.has_more,
            next=found.changes.next,
        )


def _alias_fields(alias: AliasRecord) -> dict[str, Any]:
    return vars(alias) | {"ref": alias.ref}


class BackbonePublic(PublicModel):
    """A backbone that jobs may ask for."""

    name: str
    default: bool
    loaded: bool


class PredictionPublic(PublicModel):
    """One class and its probability."""

    label: str
    index: int
    score: float


class ClassifyResult(PublicModel):
    """What one image is, or why it could not be told."""

    predictions: list[PredictionPublic] | None = None
    zero_shot: list[PredictionPublic] | None = None
    """What the hand-written prompt says, if it was asked for."""

    error: ErrorPublic | None = None


class ClassifyAnswer(PublicModel):
    """The images' classes, in the order of the request."""

    prompt_id: str
    name: str
    version: int
    results: list[ClassifyResult]


class PromptAnswer(PublicModel):
    """What one of several prompts says, or why it cannot be used."""

    ref: str
    """As the request gave it."""

    prompt_id: str | None = None
    name: str | None = None
    version: int | None = None
    results: list[ClassifyResult] | None = None
    error: ErrorPublic | None = None


class ClassifyAnswers(PublicModel):
    """The answers of several prompts, in the order of the request."""

    answers: list[PromptAnswer]


def _checkpoint(checkpoint: CheckpointRef | None) -> CheckpointPublic | None:
    if checkpoint is None:
        return None
    return CheckpointPublic(step=checkpoint.step, saved_at=checkpoint.saved_at)


def _error(code: str | None, message: str | None) -> ErrorPublic | None:
    return None if code is None else ErrorPublic(code=code, message=message or "")


class KeyCreate(RequestModel):
    """Ask for an API key of the caller's tenant."""

    name: Label
    """What it is for."""

    scopes: Annotated[list[KeyScope], Field(min_length=1, max_length=len(Scope))]
    """What it may do."""

    expires_in_seconds: Annotated[int, Field(ge=1, le=MAX_KEY_SECONDS)] | None = None
    """How long it is valid; without it until it is revoked."""

    rate_limit: Annotated[str, Field(pattern=RATE_PATTERN), AfterValidator(write_rate)] | None = (
        None
    )
    """Requests that it may send, such as `600/minute`; default: the service's own limit."""


class KeyRotate(RequestModel):
    """Ask for a key to be replaced."""

    grace_seconds: Annotated[int, Field(ge=0, le=MAX_GRACE_SECONDS)] = 0
    """How long the old key is still valid."""


class KeyPublic(PublicModel):
    """An API key without the key itself."""

    id: str
    name: str
    tenant: str
    prefix: str
    """What the key begins with."""

    scopes: list[Scope]
    rate_limit: str | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    """To the minute or so."""

    @classmethod
    def from_record(cls, key: ApiKey) -> Self:
        """What an admin sees of the record."""
        return cls(**_public_key(key))


class KeyCreated(KeyPublic):
    """A new API key."""

    key: str | None
    """The key, told once; null where the answer is repeated."""

    @classmethod
    def with_secret(cls, made: NewKey) -> KeyCreated:
        """The answer to whoever asked for it."""
        return cls(**_public_key(made.record), key=made.text)

    @classmethod
    def without_secret(cls, made: NewKey) -> KeyCreated:
        """The answer as it may be kept."""
        return cls(**_public_key(made.record), key=None)


def _public_key(key: ApiKey) -> dict[str, Any]:
    hidden = ("sha256",)
    values = {name: value for name, value in vars(key).items() if name not in hidden}
    return values | {"scopes": sorted(key.scopes)}


class AuditPublic(PublicModel):
    """A request that was refused or changed something."""

    id: str
    at: datetime
    key_id: str | None
    method: str
    route: str | None
    object_id: str | None
    status: int
    code: str | None
    request_id: str
    address: str | None

    @classmethod
    def from_record(cls, entry: AuditEntry) -> AuditPublic:
        """What an admin sees of the record."""
        return cls(**{name: value for name, value in vars(entry).items() if name != "tenant"})


class QuotaPublic(PublicModel):
    """How much of something is used; `limit` is null if there is none."""

    used: int
    limit: int | None


class UsagePublic(PublicModel):
    """What a tenant has used."""

    tenant: str
    month: str
    """The month in UTC that forward passes are counted in, such as 2026-01."""

    active_jobs: QuotaPublic
    storage_bytes: QuotaPublic
    forward_passes: QuotaPublic

    @classmethod
    def from_record(cls, usage: Usage, quotas: Quotas) -> UsagePublic:
        """What a client sees."""
        return cls(
            tenant=usage.tenant,
            month=usage.month,
            active_jobs=QuotaPublic(used=usage.active_jobs, limit=quotas.max_active_jobs),
            storage_bytes=QuotaPublic(used=usage.storage_bytes, limit=quotas.max_storage_bytes),
            forward_passes=QuotaPublic(used=usage.forward_passes, limit=quotas.max_forward_passes),
        )
