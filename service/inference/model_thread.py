"""The one thread that touches models."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

from service.inference.model_queue import Batch, ModelQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

L = TypeVar("L", bound="Hashable")
T = TypeVar("T")
R = TypeVar("R")
V = TypeVar("V")

MODELS = "models"  #: Name of the thread
_JOIN_SECONDS = 10


class ModelThread(Generic[L, T, R]):
    """Runs calls and batches one after the other.

    One thread, because one pass through a model already uses every core, and because what it owns
    (loaded backbones) then needs no lock.
    """

    def __init__(
        self, queue: ModelQueue[L, T, R], run_batch: Callable[[Batch[L, T, R]], object], name: str
    ) -> None:
        self._queue = queue
        self._run_batch = run_batch
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether calls are being answered."""
        return self._thread.is_alive()

    def submit(self, call: Callable[[], V]) -> Future[V]:
        """Queue a call; its result or exception arrives in the future.

        Its log lines have the caller's context.
        """
        future: Future[V] = Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:  # the waiting caller gets it, whatever it is
                    future.set_exception(error)

        self._queue.call(partial(copy_context().run, run))
        return future

    async def run(self, call: Callable[[], V]) -> V:
        """Await a call; if the caller leaves before it begins, it never runs."""
        return await asyncio.wrap_future(self.submit(call))

    def close(self) -> None:
        """Finish the current call or batch and stop."""
        self._queue.close()
        self._thread.join(_JOIN_SECONDS)

    def _run(self) -> None:
        while (work := self._queue.take()) is not None:
            if isinstance(work, Batch):
                self._run_batch(work)
            else:
                work()
            del work  # otherwise the last batch's tensors live until the next one comes
