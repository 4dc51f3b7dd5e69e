"""The receiving side of the queue, without a worker."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

from sharpzo_core.broker.queue import QueueName, make_celery
from sharpzo_core.settings import Settings

SECONDS = 10.0  # how long a message may take


@contextmanager
def consuming(settings: Settings, on_message: Any) -> Iterator[Any]:
    """A connection whose `drain_events` hands messages to `on_message`."""
    app = make_celery(settings)
    with app.connection_for_read() as connection:
        queue = app.amqp.queues[QueueName.TUNING]
        with connection.Consumer(queue, on_message=on_message, accept=["json"]):
            yield connection
    app.close()


def receive(settings: Settings, count: int) -> list[Any]:
    """Take so many messages and acknowledge them."""
    received: list[Any] = []

    def take(message: Any) -> None:
        received.append(message)
        message.ack()

    with consuming(settings, take) as connection:
        deadline = time.monotonic() + SECONDS
        while len(received) < count:
            connection.drain_events(timeout=deadline - time.monotonic())
    return received


def receive_and_die(settings: Settings) -> None:
    """Take one message in a process that is killed before it acknowledges."""
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    arguments = {"data_dir": settings.data_dir, "broker_url": settings.broker_url}
    process = context.Process(target=_die_holding_a_message, args=(arguments,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def _die_holding_a_message(arguments: dict[str, Any]) -> None:
    def die(_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with consuming(Settings.load(**arguments), die) as connection:
        connection.drain_events(timeout=SECONDS)
