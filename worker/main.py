"""Starting a worker: the Celery parent process with its sweeper. Torch is never loaded here."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

from celery.signals import worker_shutting_down

from sharpzo_core.broker.queue import JobQueue, QueueName, make_celery
from sharpzo_core.database.engine import make_engine
from sharpzo_core.ids import Prefix, new_id
from sharpzo_core.logging import configure_logging, log_context
from sharpzo_core.migrations import migrate
from sharpzo_core.periodic import Periodic
from sharpzo_core.storage.artifact_store import ArtifactStore
from sharpzo_core.stores.job_leases import JobLeases
from sharpzo_core.stores.job_store import JobStore
from sharpzo_core.stores.worker_store import WorkerStore
from worker.draining import DrainFlag
from worker.housekeeping import Housekeeper
from worker.sweeper import Sweeper

if TYPE_CHECKING:
    from celery import Celery

    from sharpzo_core.settings import Settings

NICENESS = 10  # of an embedded worker: the API beside it comes first
PARENT_CHECK_SECONDS = 1.0
HOUSEKEEPING_SECONDS = 3600.0
DRAIN_SECONDS = 30.0  # how long an orphan may take to put its job down

logger = logging.getLogger(__name__)


def main(settings: Settings, parent_pid: int | None = None) -> int:
    """Run one worker of this service until SIGTERM; returns the exit code.

    On SIGTERM a running job saves a checkpoint and goes back to the queue.

    Args:
        settings: What the operator chose; handed to the child process through the environment.
        parent_pid: Of the process this worker is a child of; it ends when that one does.

    Raises:
        StorageUnavailable: the database does not answer.
    """
    os.environ.update(settings.environment())
    configure_logging(settings)
    migrate(settings)
    if parent_pid is not None:
        os.nice(NICENESS)
    app = make_celery(settings)
    app.conf.imports = ("worker.tasks",)
    app.conf.worker_concurrency = settings.slots
    if settings.embedded_broker:
        app.conf.worker_pool = "worker.embedded:Pool"
    name = f"{new_id(Prefix.WORKER)}@{socket.gethostname()}"
    with log_context(worker=name):
        return _run(settings, app, name, parent_pid)


def _run(settings: Settings, app: Celery, name: str, parent_pid: int | None) -> int:
    flag = DrainFlag(settings.data_dir, name)
    raise_flag = partial(_raise_flag, flag)
    worker_shutting_down.connect(raise_flag)
    helpers = _helpers(settings, app, name, parent_pid)
    try:
        for helper in helpers:
            helper.start()
        return _serve(app, name)
    finally:
        for helper in helpers:
            helper.stop()
        worker_shutting_down.disconnect(raise_flag)
        flag.lower()


def _raise_flag(flag: DrainFlag, **_: Any) -> None:  # noqa: ANN401 - Celery's signal arguments
    flag.lift()


def _serve(app: Celery, name: str) -> int:
    worker = app.Worker(
        hostname=name,
        queues=[QueueName.TUNING.value],
        quiet=True,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    logger.info("worker %s is ready", name, extra={"action": "worker_started"})
    worker.start()
    return int(worker.exitcode or 0)


def _helpers(settings: Settings, app: Celery, name: str, parent_pid: int | None) -> list[Periodic]:
    engine = make_engine(settings)
    workers = WorkerStore(engine)
    sweeper = Sweeper(
        owner=name,
        settings=settings,
        leases=JobLeases.from_settings(engine, settings),
        jobs=JobStore(engine).for_all_tenants(),
        workers=workers,
        queue=JobQueue(app),
    )
    artifacts = ArtifactStore.from_url(settings.artifacts)
    housekeeper = Housekeeper(engine, artifacts, settings.cache_dir)
    beat = partial(workers.beat, name, socket.gethostname(), os.getpid())
    helpers = [
        Periodic("heartbeat", settings.heartbeat_seconds, beat, partial(workers.leave, name)),
        Periodic("sweeper", settings.sweep_seconds, sweeper.sweep),
        Periodic("housekeeping", HOUSEKEEPING_SECONDS, housekeeper.tidy),
    ]
    if parent_pid is not None:
        watch = partial(_follow_parent, parent_pid)
        helpers.append(Periodic("parent watch", PARENT_CHECK_SECONDS, watch))
    return helpers


def _follow_parent(parent_pid: int) -> None:
    """Shut down like on SIGTERM once the parent is gone; insist after a while."""
    if os.getppid() == parent_pid:
        return
    logger.warning("the parent process has ended; shutting down", extra={"action": "parent_ended"})
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(DRAIN_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)
