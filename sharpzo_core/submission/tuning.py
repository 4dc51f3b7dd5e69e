"""Accepting a job: every check that a request to tune must pass, without HTTP."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sharpzo_core.errors import (
    ConfigMismatch,
    CoreError,
    NotFound,
    StateConflict,
    StorageUnavailable,
    TooManyJobs,
    ValidationFailed,
)
from sharpzo_core.ids import Prefix, new_id
from sharpzo_core.json_values import unsafe_paths
from sharpzo_core.records.checkpoints import checkpoint_prefix, copy_checkpoint
from sharpzo_core.records.datasets import DatasetRecord, DatasetStatus
from sharpzo_core.records.jobs import Job, JobKind, JobStatus
from sharpzo_core.schemas import JobCreate
from sharpzo_engine.config import EXTENDABLE, PRESETS, TuningConfig, differing, merge
from sharpzo_engine.data.layout import Part, labels_of
from sharpzo_engine.errors import ConfigError

if TYPE_CHECKING:
    import sqlalchemy as sa

    from sharpzo_core.settings import Settings
    from sharpzo_core.storage.artifact_store import ArtifactStore
    from sharpzo_core.stores.dataset_store import DatasetStore
    from sharpzo_core.stores.job_store import JobStore

DEFAULT_PRESET = "default"
RETRY_SECONDS = 60  # when a full queue is worth another try


def submit_job(
    request: JobCreate,
    *,
    settings: Settings,
    jobs: JobStore,
    datasets: DatasetStore,
    artifacts: ArtifactStore,
    key_id: str | None = None,
    request_id: str | None = None,
    in_transaction: Callable[[sa.Connection, Job], None] | None = None,
) -> Job:
    """Check the request and store the job, with what `in_transaction` writes; notify no worker.

    `key_id` is the API key that asks, `request_id` the request that it asks with.

    Raises:
        ValidationFailed: the backbone is not offered, the configuration is wrong, the dataset has
            no labels or fewer images of a class than shots, or the job to begin with tunes nothing.
        NotFound: there is no such dataset, or no such job to begin with.
        StateConflict: the dataset is not ready, or the checkpoint is not to be had.
        ConfigMismatch: a run cannot go on from that checkpoint in this way.
        TooManyJobs: the tenant's queue is full.
        QuotaExceeded: the tenant may not have this job now.
    """
    origin = None if request.from_checkpoint is None else jobs.get(request.from_checkpoint)
    if origin is not None and origin.kind is not JobKind.TUNING:
        message = f"its kind is {origin.kind}: only a tuning job can be gone on from"
        raise ValidationFailed([("/from_checkpoint", message)])
    name = request.backbone or (origin.backbone if origin else None)
    backbone = settings.backbone(name).name
    config = _parse(request, origin)
    dataset = datasets.get(request.dataset_id)
    check_dataset(dataset, config.shots, config.classes)
    if origin is not None:
        _check_continues(origin, dataset.id, backbone, config)
    check_queue(jobs, settings)
    job_id = new_id(Prefix.JOB)
    try:
        if origin is not None:
            _copy_checkpoint(artifacts, origin, job_id)
        return jobs.create(
            dataset_id=dataset.id,
            backbone=backbone,
            config=config.model_dump(mode="json"),
            name=request.name,
            metadata=request.metadata,
            job_id=job_id,
            origin=origin,
            key_id=key_id,
            request_id=request_id,
            in_transaction=in_transaction,
        )
    except StorageUnavailable:
        raise  # perhaps only the answer was lost, and the job needs its files
    except CoreError:
        artifacts.delete_prefix(checkpoint_prefix(job_id))
        raise


def check_queue(jobs: JobStore, settings: Settings) -> None:
    """There is room for one more job of the tenant.

    Raises:
        TooManyJobs: its queue is full.
    """
    if jobs.count_by_status()[JobStatus.QUEUED] >= settings.max_queued_jobs:
        raise TooManyJobs(f"{settings.max_queued_jobs} jobs are queued", RETRY_SECONDS)


def _parse(request: JobCreate, origin: Job | None) -> TuningConfig:
    """The request's configuration; that of the job to begin with is what it is laid over."""
    if origin is None:
        return parse_config(request.config, request.preset or DEFAULT_PRESET)
    if request.preset is not None:
        message = "goes without from_checkpoint, whose job has a configuration already"
        raise ValidationFailed([("/preset", message)])
    return parse_config(merge(origin.config, request.config), DEFAULT_PRESET)


def _check_continues(origin: Job, dataset_id: str, backbone: str, config: TuningConfig) -> None:
    """The checkpoint of `origin` can be continued in this way."""
    if origin.checkpoint is None:
        raise StateConflict("the job to begin with has no checkpoint yet")
    changed = differing(origin.config, config.model_dump(mode="json", exclude=set(EXTENDABLE)))
    changed += ["dataset_id"] * (dataset_id != origin.dataset_id)
    changed += ["backbone"] * (backbone != origin.backbone)
    if changed:
        raise ConfigMismatch(
            f"a run that goes on from a checkpoint may change {', '.join(EXTENDABLE)} alone; "
            f"this request changes {', '.join(changed)}"
        )
    if config.total_steps <= origin.checkpoint.step:
        message = f"the checkpoint is at step {origin.checkpoint.step} already (give more)"
        raise ValidationFailed([("/config/total_steps", message)])
    if (config.max_forward_passes or math.inf) <= origin.forward_passes:
        message = f"the job to begin with took {origin.forward_passes} already (give more)"
        raise ValidationFailed([("/config/max_forward_passes", message)])


def _copy_checkpoint(artifacts: ArtifactStore, origin: Job, job_id: str) -> None:
    try:
        copy_checkpoint(artifacts, origin, job_id)
    except NotFound:
        raise StateConflict("the checkpoint is being replaced at this moment (try again)") from None


def parse_config(values: Mapping[str, Any], preset: str) -> TuningConfig:
    """The whole effective configuration.

    Raises:
        ValidationFailed: with a JSON pointer to each fault.
    """
    if preset not in PRESETS:
        known = ", ".join(PRESETS)
        raise ValidationFailed([("/preset", f"unknown preset (choose one of: {known})")])
    unsafe = unsafe_paths(values, ("config",))
    if unsafe:
        raise ValidationFailed([(_pointer(path), "not a value a job can hold") for path in unsafe])
    try:
        return TuningConfig.parse(values, preset)
    except ConfigError as error:
        faults = [(_pointer(("config", *path)), message) for path, message in error.errors]
        raise ValidationFailed(faults or [("/config", str(error))]) from error


def check_dataset(dataset: DatasetRecord, shots: int, classes: Part = "all") -> None:
    """The dataset can be tuned on with so many images of each of these classes.

    Raises:
        StateConflict: it is not ready.
        ValidationFailed: it has no labels, fewer than two such classes, or a class has fewer
            training images.
    """
    if dataset.status is not DatasetStatus.READY:
        raise StateConflict(f"the dataset is {dataset.status}, not ready")
    if not dataset.labelled:
        message = "the dataset has no labels to tune on (upload it with a folder per class)"
        raise ValidationFailed([("/dataset_id", message)])
    labels = labels_of(classes, len(dataset.classes))
    if classes != "all" and len(labels) < 2:
        message = f"the dataset has {len(labels)} {classes} classes (a classifier needs two)"
        raise ValidationFailed([("/config/classes", message)])
    train = dataset.counts.get("train", {})
    wanted = (dataset.classes[label] for label in labels)
    short = [name for name in wanted if train.get(name, 0) < shots]
    if short:
        raise ValidationFailed(
            [("/config/shots", _too_few(name, train.get(name, 0), shots)) for name in short]
        )


def _too_few(name: str, images: int, shots: int) -> str:
    return f"class {name!r} has {images} training images, fewer than {shots} shots"


def _pointer(path: Sequence[str]) -> str:
    """A JSON pointer (RFC 6901)."""
    return "".join("/" + key.replace("~", "~0").replace("/", "~1") for key in path)
