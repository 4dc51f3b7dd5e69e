"""Ctrl-C as an exception of our own, so that the exit code is always ours."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType


class Interrupted(KeyboardInterrupt):
    """Ctrl-C.

    After a plain KeyboardInterrupt inside `exec` of a string (importing a dataclass does that),
    CPython ends itself with SIGINT at exit although it was handled. After a subclass it does not.
    """


def interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    """Raise `Interrupted`; a signal handler."""
    raise Interrupted


@contextmanager
def ctrl_c_interrupts() -> Iterator[None]:
    """Let Ctrl-C raise `Interrupted` in the block, unless another handler is installed."""
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
