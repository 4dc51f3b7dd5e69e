"""Atomic, durable file writes: a reader sees either the old or the new content."""

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

LEFTOVER_SECONDS = 3600.0  # longer than any write takes

_SYNCFS_REPORTS_ERRORS = (5, 8)  # since this version of Linux
_TEMPORARY = re.compile(r"\.[a-z0-9_]{8}\.tmp")


def write_atomically(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Replace the content of `path` atomically; durable when this returns.

    Raises:
        OSError: the write failed. The old file is kept, unless only the final sync failed.
    """
    with replacing(path, sync=sync) as target:
        target.write(data)


@contextmanager
def replacing(path: Path, *, sync: bool = True) -> Iterator[IO[bytes]]:
    """Open a temporary file in the same folder that replaces `path` if the block succeeds.

    Without `sync`, the file may be lost on a power failure until `sync_tree` is called.

    Raises:
        OSError: the write failed. A file that could not be synced is deleted, not synced again:
            after a failed sync the system may have dropped the data.
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
        OSError: a sync failed.
    """
    for root, _, files in os.walk(folder):
        for name in files:
            sync_path(Path(root, name))
        sync_path(Path(root))


def sync_file_system(folder: Path) -> bool:
    """Make everything on the folder's file system durable; returns False where unsupported.

    For thousands of files this is much faster than one `fsync` each. Needs a Linux version whose
    `syncfs` reports errors.

    Raises:
        OSError: some data may not have been written.
    """
    if sys.platform != "linux" or _kernel() < _SYNCFS_REPORTS_ERRORS:
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
    """Remove temporary files of killed writers below a folder; returns their number.

    Args:
        folder: Searched recursively; it may be missing.
        older_than: Seconds; younger files may belong to a running writer. Use 0 if there are no
            other writers.
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
    """Create a folder and make its name durable."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in missing:
        sync_path(place.parent)


def sync_path(path: Path) -> None:
    """Make one file, or the names in one folder, durable.

    Raises:
        OSError: the sync failed.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
