"""The one thread that touches models."""

from __future__ import annotations

import asyncio
import queue
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_JOIN_SECONDS = 10


class ModelThread:
    """Runs calls one after the other, in order.

    One thread, because one pass through a model already uses every core, and because what it owns
    (loaded backbones) then needs no lock.
    """

    def __init__(self, name: str = "models") -> None:
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = (
            queue.SimpleQueue()
        )
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether calls are being answered."""
        return self._thread.is_alive()

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Queue a call; its result or exception arrives in the future."""
        future: Future[T] = Future()
        self._calls.put((future, call))
        return future

    async def run(self, call: Callable[[], T]) -> T:
        """Await a call; if the caller leaves before it begins, it never runs."""
        return await asyncio.wrap_future(self.submit(call))

    def close(self) -> None:
        """Finish the current call and stop."""
        self._calls.put(None)
        self._thread.join(_JOIN_SECONDS)

    def _run(self) -> None:
        while (item := self._calls.get()) is not None:
            future, call = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except BaseException as error:  # the waiting caller gets it, whatever it is
                future.set_exception(error)
            # Otherwise the last call and its tensors live until the next one comes.
            del item, future, call
