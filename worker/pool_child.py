"""What a pool child keeps between jobs: connections, the backbone, and its ear for SIGTERM."""

from __future__ import annotations

import importlib
import logging
import os
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from celery import current_app

from sharpzo_core.broker.queue import JobQueue
from sharpzo_core.database.engine import make_engine
from sharpzo_core.settings import Settings
from sharpzo_core.storage.artifact_store import ArtifactStore
from sharpzo_core.stores.dataset_store import DatasetStore
from sharpzo_core.stores.job_leases import JobLeases
from sharpzo_core.stores.prompt_store import PromptStore
from worker.dataset_files import Materials
from worker.draining import ChildDrain, DrainFlag
from worker.runner import RunnerDeps

if TYPE_CHECKING:
    from sharpzo_core.backbones import BackboneSpec
    from sharpzo_core.records.jobs import Job, Lease
    from sharpzo_engine import Backbone, TuneResult
    from worker.progress_writer import Reporter

KEPT_BACKBONES = 2

logger = logging.getLogger(__name__)


@cache
def child_settings() -> Settings:
    """The parent's settings, from the environment."""
    return Settings.load()


@cache
def child_drain(worker: str) -> ChildDrain:
    """Whether this child is to put its job down."""
    return ChildDrain(DrainFlag(child_settings().data_dir, worker))


@cache
def child_deps(worker: str) -> RunnerDeps:
    """What `run_job` needs in this process."""
    settings = child_settings()
    engine = make_engine(settings)
    artifacts = ArtifactStore.from_url(settings.artifacts)
    return RunnerDeps(
        owner=worker,
        settings=settings,
        leases=JobLeases.from_settings(engine, settings),
        datasets=DatasetStore(engine),
        prompts=PromptStore(engine),
        artifacts=artifacts,
        materials=Materials(artifacts, settings.cache_dir),
        queue=JobQueue(current_app),
        load_backbone=load_backbone,
        tune=tune,
        apply=apply_prompt,
        draining=child_drain(worker),
    )


@lru_cache(KEPT_BACKBONES)
def load_backbone(spec: BackboneSpec) -> Backbone:
    """Load a backbone, or take it from the job before; errors are the engine's."""
    import sharpzo_engine

    device = child_settings().device
    return sharpzo_engine.load_backbone(spec.model, spec.pretrained, device, alias=spec.name)


def tune(*args: object, **options: object) -> TuneResult:
    """`sharpzo_engine.tune`; torch is imported when the first job needs it."""
    import sharpzo_engine

    return sharpzo_engine.tune(*args, **options)  # type: ignore[arg-type]


def apply_prompt(job: Job, lease: Lease, report: Reporter, deps: RunnerDeps) -> Job:
    """`worker.prompt_jobs.apply_prompt`, which needs torch as well."""
    from worker import prompt_jobs

    return prompt_jobs.apply_prompt(job, lease, report, deps)


def warm_up() -> None:
    """Import what tuning needs."""
    importlib.import_module("sharpzo_engine.tuner")


def pin_gpu(settings: Settings, slot: int) -> None:
    """Let this process see the GPU of its slot alone; before torch is imported."""
    if settings.gpu_names:
        gpu = settings.gpu_names[slot]
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
        logger.info("slot %d has GPU %s", slot, gpu, extra={"action": "gpu_pinned", "gpu": gpu})
