"""The broker: its messages are job ids that notify workers. The job itself is its database row."""

import logging
from enum import StrEnum
from pathlib import Path
from typing import Any, cast

from celery import Celery

from sharpzo_core.broker.transports import CarefulAMQP
from sharpzo_core.logging import log_context
from sharpzo_core.settings import Settings

logger = logging.getLogger(__name__)

#: After so long an unacknowledged message is delivered again. Leases recover a job long before;
#: this only has to exceed any job's duration, so that healthy jobs get no second message.
VISIBILITY_SECONDS = 7 * 24 * 3600
CONNECT_SECONDS = 2.0  # how long a request waits for an unreachable broker
ANSWER_SECONDS = 2.0  # how long it waits for the answer of one that it reached


class QueueName(StrEnum):
    TUNING = "sharpzo.tuning"  #: Ids of queued tuning jobs


class TaskName(StrEnum):
    """Tasks by name, so that the sender needs no worker code."""

    TUNE = "sharpzo.tune"  #: Claim and run one job


def make_celery(settings: Settings) -> Celery:
    """The Celery application of both sides; nothing is connected yet."""
    app = Celery("sharpzo", set_as_current=False, amqp=CarefulAMQP)
    app.conf.update(
        broker_url=settings.broker_url or "filesystem://localhost//",
        broker_transport_options=_transport_options(settings),
        visibility_timeout=VISIBILITY_SECONDS,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,  # a worker outlives any outage of its broker
        broker_connection_timeout=CONNECT_SECONDS,
        task_default_queue=QueueName.TUNING,
        task_create_missing_queues=True,
        task_acks_late=True,
        task_acks_on_failure=True,
        task_acks_on_timeout=True,
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        task_serializer="json",
        accept_content=["json"],
        worker_pool="solo",
        worker_concurrency=1,
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,  # leases cover it
        enable_utc=True,
    )
    return app


def _transport_options(settings: Settings) -> dict[str, Any]:
    if not settings.embedded_broker:
        return {
            "visibility_timeout": VISIBILITY_SECONDS,
            "socket_connect_timeout": CONNECT_SECONDS,
            # Without these a sender never notices that its connection is dead, and a worker
            # receives new messages only after a minute.
            "socket_timeout": ANSWER_SECONDS,
            "health_check_interval": 5,
            # A request does not wait for a broker that refuses; workers retry by themselves.
            "max_retries": 0,
        }
    messages = _folder(settings.broker_dir / "messages")
    return {
        "data_folder_in": messages,
        "data_folder_out": messages,
        "control_folder": _folder(settings.broker_dir / "control"),
        "polling_interval": 0.5,  # seconds between two looks into the folder
    }


def _folder(path: Path) -> str:
    path.mkdir(parents=True, exist_ok=True)
    return str(path)


class JobQueue:
    """The sender's side."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def notify(self, job_id: str) -> bool:
        """Tell a worker that a job waits; False if the broker did not take the message.

        Never raises: workers find queued jobs without a message, too. Blocks for about two seconds
        if the broker does not answer.
        """
        with log_context(job_id=job_id):
            try:
                self._app.send_task(
                    TaskName.TUNE,
                    args=[job_id],
                    queue=QueueName.TUNING,
                    retry=False,
                    ignore_result=True,
                )
            except (
                Exception
            ) as error:  # of any kind that a broker's driver raises; the job's row is safe
                logger.warning(
                    "the broker did not take the message of job %s: %s",
                    job_id,
                    error,
                    extra={"action": "notify_failed"},
                )
                return False
        return True

    def depth(self) -> int | None:
        """Messages that wait; None if the broker does not answer."""
        try:
            with self._app.connection_for_write() as connection:
                declared = connection.default_channel.queue_declare(
                    queue=QueueName.TUNING, passive=False, durable=True
                )
        except Exception as error:  # as above
            logger.debug(
                "the broker did not report its queue's length: %s",
                error,
                extra={"action": "no_depth"},
            )
            return None
        return cast("int", declared.message_count)

    def close(self) -> None:
        self._app.close()
