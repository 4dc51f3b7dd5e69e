"""The tasks by name, and how a pool child begins. Imported by the parent too, without torch."""

from __future__ import annotations

import logging
import threading
from typing import Any

from billiard import current_process
from celery import shared_task
from celery.exceptions import Reject
from celery.signals import setup_logging, worker_process_init

from sharpzo_core.broker.queue import TaskName
from sharpzo_core.errors import StorageUnavailable
from sharpzo_core.ids import Prefix, is_id
from sharpzo_core.logging import configure_logging, log_context
from worker.pool_child import child_deps, child_drain, child_settings, pin_gpu, warm_up
from worker.runner import run_job

logger = logging.getLogger(__name__)


@shared_task(name=TaskName.TUNE.value, bind=True, ignore_result=True)  # type: ignore[untyped-decorator]
def tune(self: Any, job_id: object) -> None:  # noqa: ANN401 - Celery's task
    """Run one job, if it is to be had."""
    # Whoever can reach the broker can write any message.
    if not isinstance(job_id, str) or not is_id(Prefix.JOB, job_id):
        logger.warning("ignored a message that names no job", extra={"action": "bad_message"})
        return
    worker = self.request.hostname
    drain = child_drain(worker)
    if drain():
        raise Reject(requeue=True)  # the parent hands messages on for a moment after SIGTERM
    with drain.working(), log_context(worker=worker):
        try:
            run_job(job_id, child_deps(worker))
        except StorageUnavailable:  # the lease runs out, and another worker takes the job
            logger.exception(
                "job %s is given up: the storage stayed away",
                job_id,
                extra={"action": "job_abandoned", "job_id": job_id},
            )


def _configure_logging(**_: Any) -> None:  # noqa: ANN401 - Celery's signal arguments
    """Celery leaves logging alone if somebody listens here."""
    configure_logging(child_settings())


def _begin_child(sender: str, **_: Any) -> None:  # noqa: ANN401 - Celery's signal arguments
    child_drain(sender).ignore_sigterm()
    with log_context(worker=sender):
        pin_gpu(child_settings(), current_process().index)
    # Torch takes seconds to import; the first job need not wait for all of them.
    threading.Thread(target=warm_up, name="warm-up", daemon=True).start()


setup_logging.connect(_configure_logging)
worker_process_init.connect(_begin_child)
