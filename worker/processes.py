"""Telling whether the process that holds a lease still exists on this machine.

It only speeds recovery up: where it cannot tell, leases expire all the same.
"""

from __future__ import annotations

import os
from pathlib import Path

_PROC = Path("/proc")
_STATE, _START_TIME = 0, 19  # fields of /proc/PID/stat after the command's closing bracket
_ENDED = frozenset("ZX")


def process_identity(pid: int | None = None) -> str | None:
    """A name that no other process ever has: boot, PID namespace, PID and start time.

    None where the system does not tell (it needs Linux's /proc).
    """
    pid = pid or os.getpid()
    space, started = _space(), _start_time(pid)
    return None if space is None or started is None else f"{space}/{pid}/{started}"


def is_gone(identity: str | None) -> bool:
    """Whether that process surely runs no more; False if it cannot be told from here."""
    space, separator, rest = (identity or "").rpartition("/")[0].rpartition("/")
    if not separator or space != _space() or not rest.isdecimal():
        return False
    return process_identity(int(rest)) != identity


def _space() -> str | None:
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{(_PROC / 'self/ns/pid').stat().st_ino}"
    except OSError:
        return None


def _start_time(pid: int) -> str | None:
    try:
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[_STATE] in _ENDED else fields[_START_TIME]
