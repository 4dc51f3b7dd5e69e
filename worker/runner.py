"""`run_job`: one job from its claim to its end, with everything it needs as an argument."""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, Protocol

from sharpzo_core.errors import LeaseLost, ValidationFailed
from sharpzo_core.ids import Prefix, new_id
from sharpzo_core.lineage import tuned_lineage
from sharpzo_core.logging import job_context
from sharpzo_core.records.jobs import JobKind, JobStatus
from sharpzo_core.records.prompts import NewPrompt, prompt_key, report_key
from sharpzo_core.stores.job_leases import JobLeases, lease_of, new_token
from sharpzo_engine.config import TuningConfig
from sharpzo_engine.errors import BackboneError, EncoderAway, TuningInterrupted
from worker.checkpoints import CheckpointKeeper, ClaimFolder
from worker.error_codes import describe
from worker.heartbeat import Heartbeat
from worker.processes import lease_process
from worker.progress_writer import Reporter, finite_numbers
from worker.retry import with_retries

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from sharpzo_core.backbones import BackboneSpec
    from sharpzo_core.broker.queue import JobQueue
    from sharpzo_core.records.datasets import DatasetRecord
    from sharpzo_core.records.jobs import Job, Lease
    from sharpzo_core.settings import Settings
    from sharpzo_core.storage.artifact_store import ArtifactStore
    from sharpzo_core.stores.dataset_store import DatasetStore
    from sharpzo_core.stores.prompt_store import PromptStore
    from sharpzo_engine import Encoder, TuneResult
    from sharpzo_engine.data.dataset import Dataset
    from worker.dataset_files import Materials

logger = logging.getLogger(__name__)


class Tune(Protocol):
    """`sharpzo_engine.tune`."""

    def __call__(
        self,
        dataset: Dataset,
        backbone: Encoder,
        config: TuningConfig,
        *,
        on_step: Reporter,
        checkpoint_dir: Path,
        checkpoint_seconds: float,
        resume: bool,
        on_checkpoint: CheckpointKeeper,
        cache_dir: Path,
        unlabelled: Sequence[Path] | None,
    ) -> TuneResult:
        """Tune a prompt."""


class Apply(Protocol):
    """`worker.prompt_jobs.apply_prompt`."""

    def __call__(self, job: Job, lease: Lease, report: Reporter, deps: RunnerDeps) -> Job:
        """Apply the job's prompt to its dataset, and end the job."""


@dataclass(frozen=True)
class RunnerDeps:
    owner: str  #: Id of the worker
    settings: Settings
    leases: JobLeases
    datasets: DatasetStore
    prompts: PromptStore
    artifacts: ArtifactStore
    materials: Materials
    queue: JobQueue
    load_backbone: Callable[[BackboneSpec], Encoder]
    tune: Tune
    apply: Apply
    draining: Callable[[], bool]  #: Whether the worker shuts down
    ticks: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


def run_job(job_id: str, deps: RunnerDeps) -> JobStatus | None:
    """Claim the job and run it; returns its status afterwards, or None if it is not ours.

    If another tenant has waited longer, its job is run instead; see `JobLeases.whose_turn`.

    Raises:
        StorageUnavailable: the database does not answer; the lease will expire.
    """
    job = _claim(job_id, deps)
    if job is None:
        extra = {"action": "claim_lost", "job_id": job_id}
        logger.info("job %s is not claimed: taken, finished or deleted", job_id, extra=extra)
        return None
    with job_context(job):
        return _run_claimed(job, deps)


def _run_claimed(job: Job, deps: RunnerDeps) -> JobStatus | None:
    logger.info("job %s: attempt %d", job.id, job.attempt, extra={"action": "job_claimed"})
    lease = lease_of(job)
    try:
        with Heartbeat(deps.leases, lease, deps.settings.heartbeat_seconds) as heartbeat:
            ended = _run(job, lease, heartbeat, deps)
    except LeaseLost:
        logger.warning("job %s was taken by another worker", job.id, extra={"action": "lease_lost"})
        return None
    logger.info(
        "job %s is %s", job.id, ended.status, extra={"action": "job_left", "status": ended.status}
    )
    if ended.status is JobStatus.QUEUED:
        deps.queue.notify(ended.id)
    return ended.status


def _claim(job_id: str, deps: RunnerDeps) -> Job | None:
    """Claim the job, or another tenant's whose turn it is; then notify for the job again."""
    chosen = with_retries(lambda: deps.leases.whose_turn(job_id), deps.sleep)
    token = new_token()
    job = with_retries(
        lambda: deps.leases.claim(chosen, deps.owner, lease_process(), token), deps.sleep
    )
    if chosen != job_id:
        deps.queue.notify(job_id)
    return job


def _run(job: Job, lease: Lease, heartbeat: Heartbeat, deps: RunnerDeps) -> Job:
    report = Reporter(lease, deps.leases, heartbeat, deps.draining, deps.ticks)
    try:
        if job.kind is not JobKind.TUNING:
            return deps.apply(job, lease, report, deps)
        result = _tune(job, lease, report, deps)
        return _publish(job, lease, result, deps)
    except LeaseLost:
        raise
    except TuningInterrupted:
        return with_retries(lambda: deps.leases.release(lease), deps.sleep)
    except EncoderAway as error:  # it was asked for a while, and is again by the next attempt
        extra = {"action": "encoder_away"}
        logger.warning("job %s is returned to the queue: %s", job.id, error, extra=extra)
        return with_retries(lambda: deps.leases.release(lease), deps.sleep)
    except Exception as error:  # of any kind: the job must end, and the worker survive
        code, message = describe(error)
        logger.exception(
            "job %s failed: %s", job.id, code, extra={"action": "job_failed", "code": code}
        )
        return with_retries(lambda: deps.leases.fail(lease, code, message), deps.sleep)


def _tune(job: Job, lease: Lease, report: Reporter, deps: RunnerDeps) -> TuneResult:
    settings = deps.settings
    config = TuningConfig.model_validate(job.config)
    backbone = deps.load_backbone(_offered(job.backbone, settings))
    record = deps.datasets.for_tenant(job.tenant).get(job.dataset_id)
    dataset = deps.materials.dataset(record, config.shots, config.seed, config.classes)
    unlabelled = None
    if job.unlabelled_dataset_id is not None:
        more = deps.datasets.for_tenant(job.tenant).get(job.unlabelled_dataset_id)
        unlabelled = deps.materials.unlabelled(more)
    with ClaimFolder(deps.artifacts, settings.cache_dir, job, lease) as folder:
        checkpoints = CheckpointKeeper(folder, lease, deps.leases)
        with_retries(checkpoints.begin, deps.sleep)
        result = deps.tune(
            dataset,
            backbone,
            config,
            on_step=report,
            checkpoint_dir=folder.path,
            checkpoint_seconds=settings.checkpoint_seconds,
            resume=True,
            on_checkpoint=checkpoints,
            cache_dir=settings.cache_dir / "features",
            unlabelled=unlabelled,
        )
    if result.history:
        with_retries(lambda: report.complete(result.history), deps.sleep)
    return result


def _offered(name: str, settings: Settings) -> BackboneSpec:
    try:
        return settings.backbone(name)
    except ValidationFailed as error:
        raise BackboneError(f"backbone {name} is no longer offered") from error


def _publish(job: Job, lease: Lease, result: TuneResult, deps: RunnerDeps) -> Job:
    """Store the files, then publish them in one transaction."""
    data = result.prompt.to_bytes()
    metrics = finite_numbers(result.metrics)
    dataset = with_retries(
        lambda: deps.datasets.for_tenant(job.tenant).get(job.dataset_id), deps.sleep
    )
    prompt = NewPrompt(
        id=new_id(Prefix.PROMPT),
        name=job.name or job.id,
        job_id=job.id,
        backbone=dict(result.prompt.metadata["backbone"]),
        classes=tuple(result.prompt.class_names),
        metrics=metrics,
        sha256=hashlib.sha256(data).hexdigest(),
        bytes=len(data),
        lineage=tuned_lineage(job, dataset, result.prompt.metadata.get("engine_version")),
    )
    with_retries(lambda: deps.artifacts.put_bytes(prompt_key(prompt.id), data), deps.sleep)
    _store_report(job, dataset, result, deps)
    ended = with_retries(
        lambda: deps.leases.succeed(lease, prompt, metrics, result.stopped_by), deps.sleep
    )
    if ended.status is not JobStatus.SUCCEEDED:
        deps.artifacts.delete(prompt_key(prompt.id))
        return ended
    extra = {"action": "prompt_published", "prompt_id": prompt.id}
    logger.info("job %s published %s", job.id, prompt.name, extra=extra)
    return ended


def _store_report(job: Job, dataset: DatasetRecord, result: TuneResult, deps: RunnerDeps) -> None:
    """Store the page and the JSON; a page that cannot be drawn does not fail the job."""
    report = result.report.labelled(
        job=job.id, job_name=job.name, dataset=dataset.id, dataset_sha256=dataset.sha256
    )
    files: dict[Literal["html", "json"], bytes] = {"json": report.to_json_bytes()}
    try:
        files["html"] = report.to_html().encode()
    except Exception:  # a plotting library may raise anything
        logger.exception("job %s: no report page", job.id, extra={"action": "report_failed"})
    for form, data in files.items():
        key = report_key(job.id, form)
        with_retries(partial(deps.artifacts.put_bytes, key, data), deps.sleep)
