"""One slot of a worker: a process that runs one job at a time, on the GPU that it is given.

It is a Celery worker with the solo pool: the job runs in the main thread, so SIGTERM arrives where
the job is. Meanwhile the process does not read from the broker, so that a
broken connection shows only afterwards.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import signal
import threading
import warnings
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from celery.exceptions import SecurityWarning
from celery.signals import setup_logging, worker_ready, worker_shutting_down

from sharpzo_core.broker.queue import JobQueue, QueueName, TaskName, make_celery
from sharpzo_core.database.engine import make_engine
from sharpzo_core.errors import StorageUnavailable
from sharpzo_core.logging import configure_logging, log_context
from sharpzo_core.settings import Settings
from sharpzo_core.storage.artifact_store import ArtifactStore
from sharpzo_core.stores.dataset_store import DatasetStore
from sharpzo_core.stores.job_leases import JobLeases
from sharpzo_core.stores.prompt_store import PromptStore
from sharpzo_engine.errors import BackboneMismatch
from worker.dataset_files import Materials
from worker.processes import parent_watch
from worker.runner import RunnerDeps, run_job

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from celery import Celery

    from sharpzo_core.backbones import BackboneSpec
    from sharpzo_core.records.jobs import Job, Lease
    from sharpzo_engine import Encoder, TuneResult
    from worker.progress_writer import Reporter

KEPT_BACKBONES = 2

logger = logging.getLogger("worker.slot")  # `__name__` is "__main__" here


class Draining:
    """Whether this process ends, and its job is to be released.

    No `threading.Event`: a second SIGTERM would wait for the lock that the first one holds.
    """

    def __init__(self) -> None:
        self._asked = False

    def __call__(self) -> bool:
        return self._asked

    def ask(self, **_: Any) -> None:  # noqa: ANN401 - Celery's signal arguments
        self._asked = True


def main(settings: Settings, worker: str, slot: int, parent_pid: int) -> int:
    """Run jobs until SIGTERM or until the parent process is gone; returns the exit code."""
    configure_logging(settings)
    # It warns that root would run pickled messages; only JSON is accepted here.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    # Celery does not configure logging if anything is connected to this signal.
    setup_logging.connect(_keep_logging)
    draining, app = Draining(), make_celery(settings)
    deps = make_deps(settings, app, worker, draining)
    _add_task(app, deps)
    watch = parent_watch(parent_pid)
    with log_context(worker=worker):
        # Torch takes seconds to import; the first job need not wait for all of them.
        threading.Thread(target=_warm_up, name="warm-up", daemon=True).start()
        watch.start()
        try:
            return _serve(app, f"{slot}.{worker}", draining)
        finally:
            watch.stop()


def _serve(app: Celery, name: str, draining: Draining) -> int:
    worker_shutting_down.connect(draining.ask)
    worker_ready.connect(_report_ready)
    worker = app.Worker(
        hostname=name,
        queues=[QueueName.TUNING.value],
        quiet=True,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


def _report_ready(**_: Any) -> None:  # noqa: ANN401 - Celery's signal arguments
    _end_once()
    logger.info("a slot waits for jobs", extra={"action": "slot_ready"})


def _end_once() -> None:
    """Ignore SIGTERM and SIGINT after the first of them.

    Celery's handlers take a lock, so a second signal in the middle of the first one would hang.
    It comes when both a service manager and our own supervisor signal this process.
    """
    numbers = (signal.SIGTERM, signal.SIGINT)
    first = {number: signal.getsignal(number) for number in numbers}

    def handle(number: int, frame: FrameType | None) -> None:
        for other in numbers:
            signal.signal(other, signal.SIG_IGN)
        handler = first[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    for number in numbers:
        signal.signal(number, handle)


def _keep_logging(**_: Any) -> None:  # noqa: ANN401 - Celery's signal arguments
    pass


def _add_task(app: Celery, deps: RunnerDeps) -> None:
    @app.task(name=TaskName.TUNE.value, ignore_result=True)  # type: ignore[untyped-decorator]
    def run(job_id: str) -> None:
        if deps.draining():  # Celery reads one more message after SIGTERM
            deps.queue.notify(job_id)
            return
        try:
            run_job(job_id, deps)
        except StorageUnavailable:  # the lease expires, and another worker takes the job
            logger.exception(
                "job %s is abandoned: the storage stayed away",
                job_id,
                extra={"action": "job_abandoned", "job_id": job_id},
            )


def make_deps(
    settings: Settings, app: Celery, worker: str, draining: Callable[[], bool]
) -> RunnerDeps:
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
        queue=JobQueue(app),
        load_backbone=Backbones(settings.device),
        tune=tune,
        apply=apply_prompt,
        draining=draining,
    )


# Torch is imported when the first job needs it, or by the warm-up.


def _warm_up() -> None:
    importlib.import_module("sharpzo_engine.tuner")


class Backbones:
    """Loads backbones, and keeps the last ones; remote ones are asked whether they are the same."""

    def __init__(self, device: str) -> None:
        self._load = lru_cache(KEPT_BACKBONES)(partial(load_backbone, device))

    def __call__(self, spec: BackboneSpec) -> Encoder:
        from sharpzo_engine.clip.encoder import check_unchanged

        backbone = self._load(spec)
        try:
            check_unchanged(backbone)
        except BackboneMismatch:
            self._load.cache_clear()
            return self._load(spec)
        return backbone


def load_backbone(device: str, spec: BackboneSpec) -> Encoder:
    import sharpzo_engine

    return sharpzo_engine.load_backbone(spec.model, spec.pretrained, device, alias=spec.name)


def tune(*args: object, **options: object) -> TuneResult:
    import sharpzo_engine

    return sharpzo_engine.tune(*args, **options)  # type: ignore[arg-type]


def apply_prompt(job: Job, lease: Lease, report: Reporter, deps: RunnerDeps) -> Job:
    from worker import prompt_jobs

    return prompt_jobs.apply_prompt(job, lease, report, deps)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m worker.slot", description=main.__doc__)
    parser.add_argument("worker", help="name of the worker")
    parser.add_argument("slot", type=int)
    parser.add_argument("parent_pid", type=int)
    exit_code = main(Settings.load(), **vars(parser.parse_args()))
    logging.shutdown()
    os._exit(exit_code)  # the interpreter's own end takes seconds when torch is loaded
