"""Which processes still exist on this machine: one that holds a lease, or this one's parent.

For leases this only makes recovery faster: where it cannot be known, they expire all the same.
"""

import logging
import os
import signal
import threading
from functools import partial
from pathlib import Path

import psutil

from sharpzo_core.periodic import Periodic

PARENT_CHECK_SECONDS = 1.0
DRAIN_SECONDS = 30.0  # how long a process without its parent may take to release its job

logger = logging.getLogger(__name__)

_PROC = Path("/proc")
_ENDED = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


def lease_process() -> str | None:
    """The identities of this process and of the one that supervises it, for the jobs it claims."""
    own = process_identity()
    return own and f"{own} {process_identity(os.getppid()) or ''}"


def process_identity(pid: int | None = None) -> str | None:
    """A name that no other process ever has: boot, PID namespace, PID and start time.

    None if the process has ended, or where the system has no /proc.
    """
    pid = pid or os.getpid()
    space, started = _space(), _start_time(pid)
    return None if space is None or started is None else f"{space}/{pid}/{started}"


def is_gone(identity: str) -> bool:
    """Whether that process has surely ended; False if it cannot be known here."""
    space, separator, rest = identity.rpartition("/")[0].rpartition("/")
    if not separator or space != _space() or not rest.isdecimal():
        return False
    return process_identity(int(rest)) != identity


def _space() -> str | None:
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{(_PROC / 'self/ns/pid').stat().st_ino}"
    except OSError:
        return None


def _start_time(pid: int) -> float | None:
    """Seconds from boot to the start of the process; jumps of the wall clock do not change it."""
    try:
        process = psutil.Process(pid)
        if process.status() in _ENDED:
            return None
        started: float = process.create_time() - psutil.boot_time()
    except psutil.NoSuchProcess:
        return None
    return round(started, 2)


def parent_watch(parent_pid: int) -> Periodic:
    """Ends this process like SIGTERM once its parent is gone, and by SIGKILL after a while."""
    return Periodic("parent watch", PARENT_CHECK_SECONDS, partial(_follow_parent, parent_pid))


def _follow_parent(parent_pid: int) -> None:
    if os.getppid() == parent_pid:
        return
    logger.warning("the parent process is gone; shutting down", extra={"action": "parent_ended"})
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(DRAIN_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)
