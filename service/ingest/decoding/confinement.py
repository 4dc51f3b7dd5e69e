"""Drops privileges and resources of a decoding process before it reads untrusted bytes.

Where the system has no such limits (Windows), it is an ordinary process that is killed when it
takes too long.
"""

import ctypes
import os
import sys
from contextlib import suppress

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_NO_NEW_PRIVILEGES = 38  # PR_SET_NO_NEW_PRIVS
_NICENESS = 5  # below the threads that serve requests
_HARD_CPU = 3600  # seconds in the process's lifetime


def confine(memory: int, descriptors: int) -> None:
    """Drop privileges, limit memory to `memory` bytes, and forbid new files and sockets.

    No descriptor numbered `descriptors` or higher can be opened, so only the open ones remain.
    """
    with suppress(OSError):
        os.nice(_NICENESS) if hasattr(os, "nice") else None
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    if resource is None:
        return
    for name, limit in (
        ("RLIMIT_AS", memory),
        ("RLIMIT_CORE", 0),
        ("RLIMIT_FSIZE", 0),
        ("RLIMIT_NPROC", 0),
        ("RLIMIT_NOFILE", descriptors),
    ):
        _lower(name, limit, limit)
    _lower("RLIMIT_CPU", _HARD_CPU, _HARD_CPU)


def limit_processor_time(seconds: float) -> None:
    """Have the system kill this process after `seconds` more of CPU time, rounded up."""
    if resource is not None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        _lower("RLIMIT_CPU", int(used.ru_utime + used.ru_stime + seconds) + 1, _HARD_CPU)


def _lower(name: str, soft: int, hard: int) -> None:
    kind = getattr(resource, name, None)
    if kind is None:
        return
    _, highest = resource.getrlimit(kind)
    if highest != resource.RLIM_INFINITY:
        soft, hard = min(soft, highest), min(hard, highest)
    with suppress(OSError, ValueError):  # macOS rejects some of them
        resource.setrlimit(kind, (soft, hard))
