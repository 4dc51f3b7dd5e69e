"""A process that is killed at a chosen step of writing a file."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import Any

from sharpzo_engine.files import replacing


class Moment(StrEnum):
    """When a call kills the process."""

    BEFORE = "before"
    AFTER = "after"


@dataclass(frozen=True)
class Death:
    """The call that kills; calls are counted from 1."""

    moment: Moment
    module: ModuleType
    function: str
    number: int = 1

    def __str__(self) -> str:
        return f"{self.moment}_{self.function}_{self.number}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _death, (self.moment, self.module.__name__, self.function, self.number)


def _death(moment: Moment, module: str, function: str, number: int) -> Death:
    return Death(moment, {"os": os, "tempfile": tempfile}[module], function, number)


#: Every step of a write, in order; the file is new from the rename on.
STEPS = (
    Death(Moment.BEFORE, tempfile, "mkstemp"),
    Death(Moment.AFTER, tempfile, "mkstemp"),
    Death(Moment.AFTER, os, "write"),  # half is written
    Death(Moment.BEFORE, os, "fsync"),
    Death(Moment.AFTER, os, "fsync"),
    Death(Moment.BEFORE, os, "replace"),
    Death(Moment.AFTER, os, "replace"),
    Death(Moment.BEFORE, os, "fsync", 2),  # of the folder
    Death(Moment.AFTER, os, "fsync", 2),
)
RENAMED = STEPS.index(Death(Moment.AFTER, os, "replace"))


def write_and_die(path: Path, data: bytes, death: Death) -> None:
    """Write `data` to `path` in a process that is killed on the way."""
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=_write, args=(path, data, death))
    process.start()
    process.join()
    if process.exitcode != -signal.SIGKILL:
        raise RuntimeError(f"the writer ended with {process.exitcode}")


def _write(path: Path, data: bytes, death: Death) -> None:
    setattr(death.module, death.function, _killing(death))
    half = len(data) // 2
    with replacing(path) as target:
        target.flush()
        os.write(target.fileno(), data[:half])
        os.write(target.fileno(), data[half:])


def _killing(death: Death) -> Callable[..., Any]:
    call = getattr(death.module, death.function)
    left = death.number

    def killing(*arguments: Any, **named: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0 and death.moment is Moment.BEFORE:
            os.kill(os.getpid(), signal.SIGKILL)
        result = call(*arguments, **named)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return killing
