"""Writing a file so that a reader sees the whole old one or the whole new one."""

from __future__ import annotations

import ctypes
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

LEFTOVER_SECONDS = 3600.0  # no write takes so long

_SYNC_TELLS_ERRORS = (5, 8)  # the first version of Linux whose `syncfs` does
_TEMPORARY = re.compile(r"\.[a-z0-9_]{8}\.tmp")


def write_atomically(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Replace `path` by `data`: whole or not at all, and durable when this returns.

    Raises:
        OSError: the write failed; unless only its durability is in doubt, the old file stays.
    """
    with replacing(path, sync=sync) as target:
        target.write(data)


@contextmanager
def replacing(path: Path, *, sync: bool = True) -> Iterator[IO[bytes]]:
    """A temporary file in the same folder that becomes `path` if the block succeeds.

    Without `sync` the file survives the process but not a loss of power, until `sync_tree`.

    Raises:
        OSError: the write failed. A file that could not be synced is thrown away and never synced
            again: the system may have dropped what it could not write.
    """
    _make_folder(path.parent)
    handle, name = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            if sync:
                stream.flush()
                os.fsync(stream.fileno())
        temporary.replace(path)
        if sync:
            sync_path(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_tree(folder: Path) -> None:
    """Make all files below a folder, and their names, durable.

    Raises:
        OSError: they are not.
    """
    for root, _, files in os.walk(folder):
        for name in files:
            sync_path(Path(root, name))
        sync_path(Path(root))


def sync_file_system(folder: Path) -> bool:
    """Make everything on the folder's file system survive a loss of power; False if it cannot.

    For thousands of files it takes a fraction of the time of as many `fsync`. It needs Linux, whose
    older versions keep errors to themselves.

    Raises:
        OSError: something may not have been written.
    """
    if sys.platform != "linux" or _kernel() < _SYNC_TELLS_ERRORS:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if libc.syncfs(descriptor) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(folder))
    finally:
        os.close(descriptor)
    return True


def _kernel() -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])


def remove_leftovers(folder: Path, older_than: float = LEFTOVER_SECONDS) -> int:
    """Remove what killed writers left below a folder; returns how many files.

    Args:
        folder: Searched with everything below it; it need not exist.
        older_than: Seconds; younger files may belong to somebody who is writing. 0 is right where
            nobody else writes.
    """
    youngest = time.time() - older_than
    removed = 0
    for root, _, files in os.walk(folder):
        for name in filter(_TEMPORARY.fullmatch, files):
            with suppress(FileNotFoundError):  # its writer has just finished
                if Path(root, name).stat().st_mtime <= youngest:
                    Path(root, name).unlink()
                    removed += 1
    return removed


def _make_folder(folder: Path) -> None:
    """Make a folder whose own name survives a loss of power as well."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in missing:
        sync_path(place.parent)


def sync_path(path: Path) -> None:
    """Make one file, or the names in one folder, survive a loss of power.

    Raises:
        OSError: they may not.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
