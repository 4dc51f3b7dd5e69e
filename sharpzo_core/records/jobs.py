"""What a job is: its states, the legal moves between them, and the record itself."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from sharpzo_core.database.tenants import DEFAULT_TENANT
from sharpzo_core.ids import Prefix, new_id


class JobKind(StrEnum):
    TUNING = "tuning"  #: Searches for a prompt and publishes it
    EVALUATION = "evaluation"  #: Measures a prompt on labelled images
    CLASSIFICATION = "classification"  #: Labels images with a prompt


#: Kind -> format of its rows. Workers leave rows of a format that they do not know to others.
FORMATS: Mapping[JobKind, int] = {
    JobKind.TUNING: 1,
    JobKind.EVALUATION: 2,
    JobKind.CLASSIFICATION: 2,
}
#: Raise it when older workers would misread or refuse a new kind of row.
JOB_FORMAT = max(FORMATS.values())


class JobStatus(StrEnum):
    QUEUED = "queued"  #: Waits for a worker
    RUNNING = "running"  #: A worker holds its lease
    PAUSING = "pausing"  #: Its worker has been asked to pause it
    PAUSED = "paused"  #: Stopped at a checkpoint until it is resumed
    CANCELLING = "cancelling"  #: Its worker has been asked to stop it
    SUCCEEDED = "succeeded"  #: Its prompt is published, or its results are stored
    FAILED = "failed"  #: It ended with an error; it may be resumed
    CANCELLED = "cancelled"  #: It was stopped; it may be resumed


class Request(StrEnum):
    PAUSE = "pause"
    RESUME = "resume"
    CANCEL = "cancel"
    FINISH = "finish"


class Phase(StrEnum):
    PREPARING = "preparing"  #: Loads the backbone and the dataset, encodes images
    STAGE1 = "stage1"  #: Sharpness-aware CMA-ES
    STAGE2 = "stage2"  #: Gauss-Newton or zeroth-order descent
    EVALUATING = "evaluating"  #: Measures the result on test data, or labels the images


class EventType(StrEnum):
    QUEUED = "queued"  #: Accepted, waits for a worker
    STARTED = "started"  #: A worker claimed it
    PHASE = "phase"  #: Entered another phase
    MESSAGE = "message"  #: Information for the reader of the log
    PAUSING = "pausing"  #: Pause requested
    PAUSED = "paused"
    RESUMED = "resumed"  #: Resume requested, or continued at a checkpoint's step
    CANCELLING = "cancelling"  #: Cancel requested
    FINISHING = "finishing"  #: Finish requested
    RELEASED = "released"  #: Its worker shut down and released it
    WORKER_LOST = "worker_lost"  #: Its worker, or the process that ran it, is gone
    CHECKPOINT_FAILED = (
        "checkpoint_failed"  #: A checkpoint could not be written; the previous one is still valid
    )
    CHECKPOINT_CORRUPT = "checkpoint_corrupt"  #: A checkpoint is damaged and was not used
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


#: Status -> the statuses it may change to. Nothing else ever happens to a job.
TRANSITIONS: Mapping[JobStatus, frozenset[JobStatus]] = {
    JobStatus.QUEUED: frozenset({JobStatus.RUNNING, JobStatus.PAUSED, JobStatus.CANCELLED}),
    JobStatus.RUNNING: frozenset(
        {
            JobStatus.QUEUED,  # its worker shut down or was lost
            JobStatus.PAUSING,
            JobStatus.CANCELLING,
            JobStatus.SUCCEEDED,
            JobStatus.FAILED,
        }
    ),
    JobStatus.PAUSING: frozenset(
        {
            JobStatus.RUNNING,  # resumed before its worker noticed
            JobStatus.PAUSED,
            JobStatus.CANCELLING,
            JobStatus.SUCCEEDED,  # it was done before its worker noticed
            JobStatus.FAILED,
        }
    ),
    JobStatus.PAUSED: frozenset({JobStatus.QUEUED, JobStatus.CANCELLED}),
    # A job that is being cancelled never publishes, even if it was done when the request came.
    JobStatus.CANCELLING: frozenset({JobStatus.CANCELLED, JobStatus.FAILED}),
    JobStatus.SUCCEEDED: frozenset(),
    JobStatus.FAILED: frozenset({JobStatus.QUEUED}),
    JobStatus.CANCELLED: frozenset({JobStatus.QUEUED}),
}

#: Request -> status of the job -> its next status. The same status means that nothing changes; a
#: missing status means that the request is refused.
REQUESTS: Mapping[Request, Mapping[JobStatus, JobStatus]] = {
    Request.PAUSE: {
        JobStatus.QUEUED: JobStatus.PAUSED,
        JobStatus.RUNNING: JobStatus.PAUSING,
        JobStatus.PAUSING: JobStatus.PAUSING,
        JobStatus.PAUSED: JobStatus.PAUSED,
    },
    Request.RESUME: {
        JobStatus.QUEUED: JobStatus.QUEUED,
        JobStatus.PAUSING: JobStatus.RUNNING,
        JobStatus.PAUSED: JobStatus.QUEUED,
        JobStatus.FAILED: JobStatus.QUEUED,
        JobStatus.CANCELLED: JobStatus.QUEUED,
    },
    Request.CANCEL: {
        JobStatus.QUEUED: JobStatus.CANCELLED,
        JobStatus.RUNNING: JobStatus.CANCELLING,
        JobStatus.PAUSING: JobStatus.CANCELLING,
        JobStatus.PAUSED: JobStatus.CANCELLED,
        JobStatus.CANCELLING: JobStatus.CANCELLING,
        JobStatus.CANCELLED: JobStatus.CANCELLED,
    },
    # Of a job that has been asked already, see `Job.finishing`, this asks for nothing new.
    Request.FINISH: {
        JobStatus.RUNNING: JobStatus.RUNNING,
        JobStatus.PAUSING: JobStatus.RUNNING,  # instead of pausing
        JobStatus.PAUSED: JobStatus.QUEUED,  # the next worker only finishes it
    },
}

#: Why a job with this status cannot be finished, and what to do.
NOT_FINISHED: Mapping[JobStatus, str] = {
    JobStatus.QUEUED: "no worker has it (cancel it, or ask again once it runs)",
    JobStatus.CANCELLING: "the request to cancel comes first (resume it once it is cancelled)",
    JobStatus.SUCCEEDED: "it has published its prompt already",
    JobStatus.FAILED: "it has ended (resume it, then ask again once it runs)",
    JobStatus.CANCELLED: "it has ended (resume it, then ask again once it runs)",
}

#: Statuses in which a worker holds the job's lease.
LEASED = (JobStatus.RUNNING, JobStatus.PAUSING, JobStatus.CANCELLING)
#: Statuses that only a request to resume can change; they end the event stream.
TERMINAL = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED})
#: The last event of every ended job is one of these.
TERMINAL_EVENTS = frozenset({EventType.SUCCEEDED, EventType.FAILED, EventType.CANCELLED})


def is_terminal(status: JobStatus) -> bool:
    return status in TERMINAL


def sources(target: JobStatus) -> list[JobStatus]:
    """The statuses that may change to `target`."""
    return [status for status, targets in TRANSITIONS.items() if target in targets]


@dataclass(frozen=True)
class CheckpointRef:
    #: Name below the job's checkpoints. Every claim of a tuning job writes to its own folder; the
    #: claims of a job that applies a prompt share their parts, see `sharpzo_core.records.results`.
    folder: str
    step: int  #: The step at which a run continues from it
    saved_at: datetime


@dataclass(frozen=True)
class Origin:
    """Who asked for something: the API key, if there is one, and the request."""

    key_id: str | None = None
    request_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class NewJob:
    id: str = field(default_factory=lambda: new_id(Prefix.JOB))
    kind: JobKind = JobKind.TUNING
    name: str | None = None
    dataset_id: str
    unlabelled_dataset_id: str | None = None  #: Whose images are learned from without labels
    backbone: str  #: As the request named it
    config: Mapping[str, Any]  #: The whole effective TuningConfig, or the parameters of other kinds
    metadata: Mapping[str, str] = field(default_factory=dict)
    prompt_id: str | None = None  #: The prompt that it published, or the one that it applies
    from_checkpoint: str | None = None  #: Id of the job whose checkpoint this one began with
    checkpoint: CheckpointRef | None = None  #: The newest one that is known to be durable
    charged_passes: int = 0  #: The largest number of forward passes that it ever reported

    @property
    def dataset_ids(self) -> tuple[str, ...]:
        """The datasets that it reads."""
        ids = (self.dataset_id, self.unlabelled_dataset_id)
        return tuple(found for found in ids if found is not None)


@dataclass(frozen=True, kw_only=True)
class Job(NewJob):
    tenant: str = DEFAULT_TENANT
    key_id: str | None = None  #: The API key that submitted it
    request_id: str | None = None  #: The request that created it
    status: JobStatus
    phase: Phase | None = None  #: None until a worker reports one
    phase_label: str | None = None  #: The phase in words, with the optimiser that a stage uses
    format: int = FORMATS[JobKind.TUNING]  #: Workers that do not know it leave the job to others
    step: int = 0  #: Of the search, or images done
    total_steps: int = 0
    forward_passes: int = 0
    eta_seconds: float | None = None
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    finishing: bool = False  #: Asked to end its search and publish its best prompt so far
    stopped_by: str | None = None  #: What ended the search of a job that has succeeded
    result_folder: str | None = None  #: Below the job's results; that of the claim that ended it
    error_code: str | None = None
    error_message: str | None = None
    attempt: int = 0  #: Claims so far that did not end in a release
    losses: int = 0  #: Workers lost since the last checkpoint or request
    crashes: int = 0  #: Of these, processes that ended while their supervisor lived on
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    lease_owner: str | None = None  #: Id of the worker that runs it
    lease_process: str | None = None  #: `process_identity` of the process that runs it
    lease_token: str | None = None  #: Fencing token, new at every claim
    lease_expires_at: datetime | None = None
    rings: int = 0  #: Times its message was sent again
    rung_at: datetime | None = None
    last_event: int = 0  #: `seq` of its newest event


@dataclass(frozen=True)
class Lease:
    job_id: str
    attempt: int
    token: str


@dataclass(frozen=True)
class JobEvent:
    """One line of a job's history; `seq` counts from 1 without gaps."""

    seq: int
    type: str  #: An `EventType`, or one of a newer version of the service
    level: str  #: info, warning or error
    message: str
    data: Mapping[str, Any]
    created_at: datetime


@dataclass(frozen=True)
class JobStep:
    """One recorded step of the search; the fields are those of the engine's StepRecord."""

    step: int
    phase: Phase
    loss: float | None
    val_loss: float | None
    val_accuracy: float | None
    sigma: float | None
    sharpness: float | None
    forward_passes: int
    seconds: float


@dataclass(frozen=True)
class JobProgress:
    phase: Phase
    step: int
    total_steps: int
    forward_passes: int
    eta_seconds: float | None = None
    phase_label: str | None = None
