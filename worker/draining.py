"""How a worker's parent tells its child to put the running job down: a file."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import FrameType


class DrainFlag:
    """Raised by the parent process, seen by its child; both know the worker's name.

    A pool child is started by spawn, so it shares no memory with its parent.
    """

    def __init__(self, data_dir: Path, worker: str) -> None:
        self._path = data_dir / "run" / f"{worker}.drain"

    def lift(self) -> None:
        """Ask the child to stop."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.touch()

    def lower(self) -> None:
        """Clean up."""
        self._path.unlink(missing_ok=True)

    def is_up(self) -> bool:
        """Whether the child is to stop."""
        return self._path.exists()


class ChildDrain:
    """What a pool child looks at between two steps.

    It is to stop if its parent says so or is gone, or if it got SIGTERM itself, as happens where a
    service manager signals every process of a unit. An idle child takes no notice of SIGTERM: it
    may hold a lock of the pool, without which its parent, which is ending it, waits for ever.
    """

    def __init__(self, flag: DrainFlag) -> None:
        self._flag = flag
        self._parent = os.getppid()
        self._signalled = False

    def __call__(self) -> bool:
        """Whether the running job is to be put down."""
        return self._signalled or os.getppid() != self._parent or self._flag.is_up()

    @staticmethod
    def ignore_sigterm() -> None:
        """While idle. The pool resets every other handler when a child begins."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    @contextmanager
    def working(self) -> Iterator[None]:
        """While a job is under way, SIGTERM has it put down; the process is its parent's to end."""
        signal.signal(signal.SIGTERM, self._on_sigterm)
        try:
            yield
        finally:
            self.ignore_sigterm()
            self._signalled = False

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self._signalled = True
