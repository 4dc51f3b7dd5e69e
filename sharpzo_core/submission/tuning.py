"""Accepting a tuning job: every check that a request must pass, without HTTP."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import sqlalchemy as sa

from sharpzo_core.backbones import BackboneSpec
from sharpzo_core.errors import (
    ConfigMismatch,
    CoreError,
    LevelMissing,
    NotFound,
    StateConflict,
    StorageUnavailable,
    TooManyJobs,
    ValidationFailed,
)
from sharpzo_core.json_safety import json_pointer, unsafe_paths
from sharpzo_core.records.checkpoints import FILES, checkpoint_prefix
from sharpzo_core.records.datasets import DatasetRecord, DatasetStatus
from sharpzo_core.records.jobs import Job, JobKind, JobStatus, NewJob, Origin
from sharpzo_core.schemas.jobs import JobCreate
from sharpzo_core.settings import Settings
from sharpzo_core.storage.artifact_store import ArtifactStore
from sharpzo_core.stores.dataset_store import DatasetStore
from sharpzo_core.stores.job_store import UNKNOWN, JobStore
from sharpzo_engine.clip.level import Level
from sharpzo_engine.config import EXTENDABLE, PRESETS, TuningConfig, differing, merge
from sharpzo_engine.data.dataset import UNLABELLED_PER_CLASS
from sharpzo_engine.data.layout import Part, labels_of
from sharpzo_engine.errors import ConfigError

DEFAULT_PRESET = "default"
RETRY_SECONDS = 60  # before a request to a full queue is worth a retry


def submit_job(
    request: JobCreate,
    *,
    settings: Settings,
    jobs: JobStore,
    datasets: DatasetStore,
    artifacts: ArtifactStore,
    origin: Origin = UNKNOWN,
    in_transaction: Callable[[sa.Connection, Job], None] | None = None,
) -> Job:
    """Check the request and store the job, with what `in_transaction` writes; notify no worker.

    Raises:
        ValidationFailed: the backbone is not offered, the configuration is wrong, the dataset has
            no labels or fewer images of a class than shots, the unlabelled images are too few, or
            the job to continue is not tuning.
        NotFound: there is no such dataset, or no such job to continue.
        LevelMissing: the backbone gives no derivatives, and the method needs them.
        StateConflict: a dataset is not ready, or the checkpoint is not available.
        ConfigMismatch: a run cannot continue from that checkpoint in this way.
        TooManyJobs: the tenant's queue is full.
        QuotaExceeded: the tenant may not have this job now.
    """
    source = None if request.from_checkpoint is None else jobs.get(request.from_checkpoint)
    if source is not None and source.kind is not JobKind.TUNING:
        message = f"only tuning jobs can be continued from a checkpoint (this is a {source.kind})"
        raise ValidationFailed([("/from_checkpoint", message)])
    name = request.backbone or (source.backbone if source else None)
    spec = settings.backbone(name)
    backbone = spec.name
    config = _parse(request, source)
    _check_level(spec, config)
    dataset = datasets.get(request.dataset_id)
    check_dataset(dataset, config.shots, config.classes)
    if request.unlabelled_dataset_id is not None:
        _check_unlabelled(datasets.get(request.unlabelled_dataset_id), dataset, config)
    _check_extra_classes(spec, dataset, config)
    if source is not None:
        _check_continues(source, dataset.id, backbone, config)
    check_queue(jobs, settings)
    new = NewJob(
        dataset_id=dataset.id,
        unlabelled_dataset_id=request.unlabelled_dataset_id,
        backbone=backbone,
        config=config.model_dump(mode="json"),
        name=request.name,
        metadata=request.metadata,
        from_checkpoint=source.id if source else None,
        checkpoint=source.checkpoint if source else None,
        charged_passes=source.forward_passes if source else 0,
    )
    try:
        if source is not None:
            _copy_checkpoint(artifacts, source, new.id)
        return jobs.create(new, origin, in_transaction)
    except StorageUnavailable:
        raise  # perhaps only the answer was lost, and the job needs its files
    except CoreError:
        artifacts.delete_prefix(checkpoint_prefix(new.id))
        raise


def _check_level(spec: BackboneSpec, config: TuningConfig) -> None:
    # Below `contexts`, residuals of embeddings are searched, which have exact derivatives.
    if config.needs_derivatives and spec.level is Level.CONTEXTS:
        raise LevelMissing(
            f"{config.needs_derivatives} needs a backbone of level {Level.TANGENTS}, {spec.name} "
            f"gives {spec.level} (leave it out, or choose another backbone)"
        )


def _check_extra_classes(spec: BackboneSpec, dataset: DatasetRecord, config: TuningConfig) -> None:
    labels = labels_of(config.classes, len(dataset.classes or ()))
    names = (dataset.classes or ())[labels.start : labels.stop]
    validated = bool(dataset.splits["val"]) and config.validation != "holdout"
    try:
        config.check_extra_classes(
            names,
            has_texts=spec.level.includes(Level.TEXTS),
            has_judges=config.shots > 1 or validated,
        )
    except ConfigError as error:
        raise _at_config(error) from error


def check_queue(jobs: JobStore, settings: Settings) -> None:
    """Check that the tenant may queue one more job.

    Raises:
        TooManyJobs: its queue is full.
    """
    if jobs.count_by_status()[JobStatus.QUEUED] >= settings.max_queued_jobs:
        raise TooManyJobs(f"{settings.max_queued_jobs} jobs are queued", RETRY_SECONDS)


def _parse(request: JobCreate, source: Job | None) -> TuningConfig:
    """The request's configuration, over that of the job whose checkpoint is continued."""
    if source is None:
        return parse_config(request.config, request.preset or DEFAULT_PRESET)
    if request.preset is not None:
        message = "cannot be combined with from_checkpoint, whose job has a configuration"
        raise ValidationFailed([("/preset", message)])
    return parse_config(merge(source.config, request.config), DEFAULT_PRESET)


def _check_continues(source: Job, dataset_id: str, backbone: str, config: TuningConfig) -> None:
    if source.checkpoint is None:
        raise StateConflict("the job to continue has no checkpoint yet")
    changed = differing(source.config, config.model_dump(mode="json", exclude=set(EXTENDABLE)))
    changed += ["dataset_id"] * (dataset_id != source.dataset_id)
    changed += ["backbone"] * (backbone != source.backbone)
    if changed:
        raise ConfigMismatch(
            f"a run that continues from a checkpoint may only change {', '.join(EXTENDABLE)}; "
            f"this request changes {', '.join(changed)}"
        )
    if config.total_steps <= source.checkpoint.step:
        message = f"the checkpoint is at step {source.checkpoint.step} already (give more)"
        raise ValidationFailed([("/config/total_steps", message)])
    if config.pass_limit <= source.forward_passes:
        message = f"the job to continue took {source.forward_passes} already (give more)"
        raise ValidationFailed([("/config/max_forward_passes", message)])


def _copy_checkpoint(artifacts: ArtifactStore, source: Job, job_id: str) -> None:
    """Give the job `job_id` a copy of the checkpoint of `source`.

    Raises:
        StateConflict: it is being replaced at this moment.
        StorageFull, StorageUnavailable: the store failed.
    """
    assert source.checkpoint is not None  # noqa: S101 - see `_check_continues`
    old = checkpoint_prefix(source.id, source.checkpoint.folder)
    new = checkpoint_prefix(job_id, source.checkpoint.folder)
    found: dict[str, bytes] = {}
    for name in FILES:
        with suppress(NotFound):
            found[name] = artifacts.get_bytes(f"{old}/{name}")
    if not found:
        raise StateConflict("the checkpoint is being replaced at this moment (try again)")
    for name, data in found.items():
        artifacts.put_bytes(f"{new}/{name}", data)


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
        raise ValidationFailed(
            [(json_pointer(path), "not a value that a job can store") for path in unsafe]
        )
    try:
        return TuningConfig.parse(values, preset)
    except ConfigError as error:
        raise _at_config(error) from error


def _at_config(error: ConfigError) -> ValidationFailed:
    faults = [(json_pointer(("config", *path)), message) for path, message in error.errors]
    return ValidationFailed(faults or [("/config", str(error))])


def check_dataset(dataset: DatasetRecord, shots: int, classes: Part = "all") -> None:
    """Check that the dataset has `shots` training images of each of these classes.

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


def _check_unlabelled(more: DatasetRecord, dataset: DatasetRecord, config: TuningConfig) -> None:
    """Check that a dataset has enough images to learn from without labels.

    Raises:
        StateConflict: it is not ready.
        ValidationFailed: it has fewer than five images per class that is tuned on, or what is to be
            served learns nothing from them.
    """
    if more.status is not DatasetStatus.READY:
        raise StateConflict(f"the dataset of unlabelled images is {more.status}, not ready")
    try:
        config.check_unlabelled()
    except ConfigError as error:
        raise _at_config(error) from error
    classes = len(labels_of(config.classes, len(dataset.classes)))
    images = more.splits["train"] if more.labelled else more.images
    if more.id == dataset.id:
        images -= config.shots * classes
    wanted = UNLABELLED_PER_CLASS * classes
    if images < wanted:
        message = f"has {images} images to learn from, fewer than {wanted} ({classes} classes)"
        raise ValidationFailed([("/unlabelled_dataset_id", message)])


def _too_few(name: str, images: int, shots: int) -> str:
    return f"class {name!r} has {images} training images, fewer than {shots} shots"
