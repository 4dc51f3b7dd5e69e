"""Ctrl-C as an exception of our own, so that the exit code is ours too."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType


class Interrupted(KeyboardInterrupt):
    """The user wants the command to end.

    A plain KeyboardInterrupt that passes through `exec` of a text, as importing a dataclass does,
    makes CPython die of SIGINT at the very end although it was handled. A subclass does not.
    """


def interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    """A signal handler.

    Raises:
        Interrupted: always.
    """
    raise Interrupted


@contextmanager
def ctrl_c_interrupts() -> Iterator[None]:
    """Let Ctrl-C raise `Interrupted` in the block, unless somebody else handles it already."""
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
