"""What a worker does differently with the embedded broker, so that it ends soon when told to."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

import billiard.pool
from celery.concurrency.prefork import TaskPool
from celery.worker import state


class _NoTimeouts(billiard.pool.TimeoutHandler):  # type: ignore[misc] # billiard has no types
    """A thread that ends at once: no task has a time limit.

    The usual one looks for tasks to end once a second, and is waited for at the end.
    """

    def body(self) -> None:
        """Do nothing."""


class _BlockingPool(billiard.pool.Pool):  # type: ignore[misc] # billiard has no types
    TimeoutHandler = _NoTimeouts


class Pool(TaskPool):  # type: ignore[misc] # celery has no types
    """The pool that Celery uses with brokers that cannot be waited for in an event loop."""

    BlockingPool = _BlockingPool

    def on_stop(self) -> None:
        """Wait for the running job to be put down; a child without one is ended at once.

        By itself it would take more than a second, and whatever it was handed now it would refuse:
        the worker is draining.
        """
        if self._pool is not None and not state.reserved_requests:
            self._pool.close()  # so that nobody starts another one
            for child in self._pool._pool:  # noqa: SLF001 - there is no public way
                with suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGKILL)
        super().on_stop()
