"""What a worker does differently with the embedded broker.

All its children read one pipe, whose lock is nobody's for ever once a process was killed that held
it: the next child would wait for it, and so would the parent when it ends. So a child holds it no
longer than it reads, and children end by themselves, only sooner than usual.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

import billiard.pool
from celery.concurrency.prefork import TaskPool

if TYPE_CHECKING:
    from collections.abc import Callable


class _NoTimeouts(billiard.pool.TimeoutHandler):  # type: ignore[misc] # billiard has no types
    """A thread that ends at once: no task has a time limit.

    The usual one looks for tasks to end once a second, and is waited for at the end.
    """

    def body(self) -> None:
        """Do nothing."""


class _Child(billiard.pool.Worker):  # type: ignore[misc] # billiard has no types
    """What a child process runs."""

    def _make_recv_method(self, queue: Any) -> Callable[[float], tuple[bool, Any]]:  # noqa: ANN401
        """Wait for a task without the lock; the usual way waits with it."""
        pipe, lock = queue._reader, queue._rlock  # noqa: SLF001 - there is no public way

        def receive(seconds: float) -> tuple[bool, Any]:
            if pipe.poll(seconds):
                with lock:
                    if pipe.poll(0):  # else a sibling was quicker
                        return True, pipe.recv()
            return False, None

        return receive

    def _do_exit(self, pid: int, exitcode: int | None, exc: Exception | None = None) -> None:  # noqa: ARG002
        """End at once; the usual way announces it, and waits a second until that was read."""
        logging.shutdown()
        os._exit(exitcode or exc is not None)


class _BlockingPool(billiard.pool.Pool):  # type: ignore[misc] # billiard has no types
    TimeoutHandler = _NoTimeouts
    Worker = _Child


class Pool(TaskPool):  # type: ignore[misc] # celery has no types
    """The pool that Celery uses with brokers that cannot be waited for in an event loop."""

    BlockingPool = _BlockingPool
