"""Processes that are killed in the middle of a migration."""

from __future__ import annotations

import os
import signal
from multiprocessing import get_context
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from sharpzo_core.migrations import migrate
from sharpzo_core.settings import Settings


def migrate_and_die(settings: dict[str, Any], statement: int) -> bool:
    """Migrate in a process that kills itself before a statement; whether it came to that one."""
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=_migrate, args=(settings, statement))
    process.start()
    process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the migration ended with {process.exitcode}")
    return process.exitcode != 0


def _migrate(settings: dict[str, Any], statement: int) -> None:
    left = statement

    def count(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(sa.Engine, "before_cursor_execute", count)
    migrate(Settings.load(**settings))
