"""The one thread that touches models."""

import asyncio
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from contextvars import copy_context
from functools import partial
from typing import Generic, TypeVar

from service.inference.model_queue import Batch, ModelQueue

L = TypeVar("L", bound="Hashable")
T = TypeVar("T")
R = TypeVar("R")
V = TypeVar("V")

MODELS = "models"  #: Name of the thread
_JOIN_SECONDS = 2  # by then requests have ended; a model that still loads is not waited for


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
        return self._thread.is_alive()

    def submit(self, call: Callable[[], V]) -> Future[V]:
        """Queue a call; it logs with the caller's context."""
        future: Future[V] = Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:  # passed on to the waiting caller
                    future.set_exception(error)

        self._queue.call(partial(copy_context().run, run))
        return future

    async def run(self, call: Callable[[], V]) -> V:
        """Await a call; it does not run if the caller is cancelled first."""
        return await asyncio.wrap_future(self.submit(call))

    def close(self) -> None:
        self._queue.close()
        self._thread.join(_JOIN_SECONDS)

    def _run(self) -> None:
        while (work := self._queue.take()) is not None:
            if isinstance(work, Batch):
                self._run_batch(work)
            else:
                work()
            del work  # otherwise the batch's tensors live until the next one arrives
