"""Jobs on the wire: requests of each kind, the job itself, its events and its steps."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import Field

from sharpzo_core.records.jobs import (
    CheckpointRef,
    Job,
    JobEvent,
    JobKind,
    JobStatus,
    JobStep,
    Phase,
)
from sharpzo_core.schemas.base import (
    ErrorPublic,
    Label,
    Metadata,
    ObjectId,
    PublicModel,
    RequestModel,
    SafeText,
    Slug,
)
from sharpzo_core.schemas.classification import TopK

Split = Literal["train", "val", "test"]


class JobCreate(RequestModel):
    """Tune a prompt."""

    dataset_id: ObjectId
    """A dataset that is ready."""

    unlabelled_dataset_id: ObjectId | None = None
    """A dataset that is ready, with more images of the same classes, five per class or more, that
    refine the GDA head. Its labels are not read; of a dataset with splits the training images are
    used. It may be the same dataset, whose images beyond the shots are used then."""

    backbone: Annotated[SafeText, Field(min_length=1, max_length=100)] | None = None
    """One of `GET /v1/backbones`; default: the operator's choice."""

    preset: ObjectId | None = None
    """Named hyperparameters that `config` overrides; default: `default`."""

    config: dict[str, Any] = Field(default_factory=dict)
    """Fields of TuningConfig."""

    name: Slug | None = None
    """Name of the prompt; jobs of one name publish its versions 1, 2, 3, …"""

    metadata: Metadata = Field(default_factory=dict)
    """Free labels, stored and returned."""

    from_checkpoint: ObjectId | None = None
    """Id of a job, ended or not, whose last checkpoint this one continues. `config` overrides that
    job's configuration; budgets (which include what has been done) and the head may differ, dataset
    and backbone must be the same."""


class ApplyRequest(RequestModel):
    """Apply a prompt to the images of a dataset."""

    dataset_id: ObjectId
    """A dataset that is ready."""

    name: Label | None = None
    """Name of the job."""

    metadata: Metadata = Field(default_factory=dict)
    """Free labels, stored and returned."""

    def parameters(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude=set(ApplyRequest.model_fields))


class EvaluationCreate(ApplyRequest):
    """Measure a prompt."""

    split: Split = "test"
    """The images to measure it on."""

    zero_shot: bool = True
    """Also measure the hand-written prompt that tuning began with."""

    classes: Literal["all", "base", "new"] | None = None
    """Use only images of these classes of the dataset, and choose among these classes alone: all,
    the first half (base), or the others (new). If some are new to the prompt, its tuned context is
    put before their names, without its head. By default the dataset's classes must be the prompt's.
    """


class BatchCreate(ApplyRequest):
    """Classify the images of a dataset."""

    split: Split | None = None
    """The images to classify; default: all."""

    top_k: TopK = 5
    """Classes per image."""

    calibrated: bool = False
    """Divide the logits by the temperature that was fitted when the prompt was tuned."""

    zero_shot: bool = False
    """Also return the predictions of the hand-written prompt that tuning began with."""


class ProgressPublic(PublicModel):
    """How far a job is; `eta_seconds` is null where it would be a guess.

    Steps of a job that applies a prompt are images.
    """

    step: int
    total_steps: int
    forward_passes: int
    eta_seconds: float | None


class CheckpointPublic(PublicModel):
    """What a job continues from when it is resumed."""

    step: int
    saved_at: datetime

    @classmethod
    def from_record(cls, checkpoint: CheckpointRef | None) -> Self | None:
        return None if checkpoint is None else cls.from_fields(checkpoint)


class MetricsPublic(PublicModel):
    """What a job has reached; accuracies are fractions from 0 to 1.

    `accuracy` and what follows belong to evaluations, `images` and `errors` to classifications too.
    Fields named `_low` and `_high` are the 95 % interval of an accuracy (Wilson's score), which
    covers which images happened to be drawn for the test.
    """

    zero_shot_accuracy: float | None = None
    """On the test images; if there are none, on the validation images, and without an interval."""

    zero_shot_accuracy_low: float | None = None
    zero_shot_accuracy_high: float | None = None
    val_accuracy: float | None = None
    test_accuracy: float | None = None
    """Of the prompt with its head."""

    test_accuracy_low: float | None = None
    test_accuracy_high: float | None = None
    test_images: int | None = None
    validation_images: int | None = None
    prompt_test_accuracy: float | None = None
    """Without the head."""

    loss: float | None = None
    selected_step: int | None = None
    """The step that the prompt was taken from; 0 is the hand-written prompt."""

    accuracy: float | None = None
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    macro_accuracy: float | None = None
    """Mean over the classes."""

    top5_accuracy: float | None = None
    nll: float | None = None
    """Mean negative log-likelihood of the true class."""

    ece: float | None = None
    """Expected calibration error."""

    calibrated_nll: float | None = None
    """At the prompt's own temperature, like all fields named `calibrated_`."""

    calibrated_ece: float | None = None
    zero_shot_ece: float | None = None
    images: int | None = None
    errors: int | None = None
    """Images that could not be read."""

    @classmethod
    def from_record(cls, metrics: Mapping[str, float | None]) -> Self:
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

    finishing: bool
    """It has been asked to end its search, and to publish its best prompt so far."""

    stopped_by: str | None
    """What ended the search of a job that has succeeded: `completed` (all steps), `enough` (more
    passes would hardly change the result), `max_forward_passes`, `max_seconds`, or `finished` by
    request."""

    error: ErrorPublic | None
    attempt: int
    """How often a worker has started it, not counting attempts that ended in a clean release."""

    checkpoint: CheckpointPublic | None
    from_checkpoint: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    config: dict[str, Any]
    dataset_id: str
    unlabelled_dataset_id: str | None
    backbone: str
    name: str | None
    metadata: dict[str, str]

    @classmethod
    def from_record(cls, job: Job) -> Self:
        return cls.from_fields(
            job,
            progress=ProgressPublic.from_fields(job),
            metrics=MetricsPublic.from_record(job.metrics),
            error=ErrorPublic.from_columns(job.error_code, job.error_message),
            checkpoint=CheckpointPublic.from_record(job.checkpoint),
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
    def from_record(cls, event: JobEvent) -> Self:
        return cls.from_fields(event)


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
    def from_record(cls, step: JobStep) -> Self:
        return cls.from_fields(step)
