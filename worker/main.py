"""Starting a worker: a supervisor of one process per slot, with its sweeper. Never loads torch."""

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from functools import partial
from typing import Any, NoReturn

from sharpzo_core.broker.queue import JobQueue, make_celery
from sharpzo_core.database.engine import make_engine
from sharpzo_core.database.sqlite import report_version
from sharpzo_core.ids import Prefix, new_id
from sharpzo_core.logging import configure_logging, log_context
from sharpzo_core.migrations import migrate
from sharpzo_core.periodic import Periodic
from sharpzo_core.settings import Settings
from sharpzo_core.storage.artifact_store import ArtifactStore
from sharpzo_core.stores.job_leases import JobLeases
from sharpzo_core.stores.job_store import JobStore
from sharpzo_core.stores.worker_store import WorkerStore
from sharpzo_core.supervisor import Supervisor
from worker.housekeeping import Housekeeper
from worker.processes import parent_watch
from worker.sweeper import Sweeper

NICENESS = 10  # of an embedded worker: the API beside it comes first
HOUSEKEEPING_SECONDS = 3600.0

logger = logging.getLogger(__name__)


def main(settings: Settings, parent_pid: int | None = None) -> int:
    """Run one worker of this service until SIGTERM; returns the exit code.

    On SIGTERM running jobs save a checkpoint and go back to the queue.

    Args:
        settings: What the operator chose; the slots get it through the environment.
        parent_pid: Of the process this worker is a child of; it ends when that one does.

    Raises:
        StorageUnavailable: the database does not answer.
    """
    configure_logging(settings)
    if parent_pid is None:
        report_version(settings.db_url)
    else:
        os.nice(NICENESS)
    migrate(settings)
    name = f"{new_id(Prefix.WORKER)}@{socket.gethostname()}"
    with log_context(worker=name):
        _supervise(_slots(settings, name), _helpers(settings, name, parent_pid))
    return 0


def _supervise(slots: list[Supervisor], helpers: list[Periodic]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    try:
        with contextlib.suppress(SystemExit):
            for helper in helpers:
                helper.start()
            for slot in slots:
                slot.start()
            logger.info("the worker has started", extra={"action": "worker_started"})
            threading.Event().wait()
    finally:
        for slot in slots:
            slot.ask_to_end()
        for slot in slots:
            slot.stop()
        for helper in helpers:
            helper.stop()


def _leave(*_: Any) -> NoReturn:  # noqa: ANN401 - a signal handler's arguments
    """End the wait of the main thread; further signals change nothing."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    raise SystemExit(0)


def _slots(settings: Settings, name: str) -> list[Supervisor]:
    return [_slot(settings, name, number) for number in range(settings.slots)]


def _slot(settings: Settings, name: str, number: int) -> Supervisor:
    environment = settings.environment()
    if settings.gpu_names:
        gpu = settings.gpu_names[number]
        environment["CUDA_VISIBLE_DEVICES"] = gpu
        logger.info("slot %d has GPU %s", number, gpu, extra={"action": "gpu_pinned", "gpu": gpu})
    command = [sys.executable, "-m", "worker.slot", name, str(number), str(os.getpid())]
    return Supervisor(f"slot {number}", command, environment)


def _helpers(settings: Settings, name: str, parent_pid: int | None) -> list[Periodic]:
    engine = make_engine(settings)
    workers = WorkerStore(engine)
    sweeper = Sweeper(
        owner=name,
        settings=settings,
        leases=JobLeases.from_settings(engine, settings),
        jobs=JobStore(engine).for_all_tenants(),
        workers=workers,
        queue=JobQueue(make_celery(settings)),
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
        helpers.append(parent_watch(parent_pid))
    return helpers
