"""A small thread that repeats one action."""

import logging
import threading
from collections.abc import Callable
from contextvars import copy_context

STOP_SECONDS = 5.0  # how long `stop` waits for a running action

logger = logging.getLogger(__name__)


class Periodic:
    """Calls `action` at once and then every `seconds` until stopped, even if it raises.

    Its log lines have the log context of the code that created it.
    """

    def __init__(
        self,
        name: str,
        seconds: float,
        action: Callable[[], object],
        at_end: Callable[[], object] | None = None,
    ) -> None:
        self._name = name
        self._seconds = seconds
        self._action = action
        self._at_end = at_end
        self._stopping = threading.Event()
        self._thread = threading.Thread(
            target=copy_context().run, args=(self._run,), name=name, daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._attempt(self._action)
            self._stopping.wait(self._seconds)
        if self._at_end is not None:
            self._attempt(self._at_end)

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception:  # the database or broker may be down; the next round retries
            logger.warning(
                "%s failed; it will be retried",
                self._name,
                exc_info=True,
                extra={"action": "periodic_failed"},
            )
