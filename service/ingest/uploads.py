"""Uploaded archives: one file per dataset in DATA_DIR/uploads, named by its id.

Several API processes may share the folder. A file that is being received is touched regularly; an
untouched one without a dataset was left by a process that died.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from sharpzo_core.errors import PayloadTooLarge, StorageFull

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Uploads:
    def __init__(
        self,
        folder: Path,
        max_bytes: int,
        stray_seconds: float,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._stray_seconds = stray_seconds
        self._ticks = ticks
        self._receiving: set[str] = set()
        self._unchanged: dict[tuple[str, int], float] = {}  # (name, mtime) -> when first seen
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.identity = _identity(folder.with_suffix(".id"))
        """Identifies the folder among processes that may not share it."""

    def path(self, dataset_id: str) -> Path:
        return self._folder / dataset_id

    @contextmanager
    def open(self, dataset_id: str) -> Iterator[CappedFile]:
        with disk_errors(), self.path(dataset_id).open("xb") as file:
            yield CappedFile(file, self._max_bytes)

    def discard(self, dataset_id: str) -> None:
        self.path(dataset_id).unlink(missing_ok=True)

    @contextmanager
    def receiving(self, dataset_id: str) -> Iterator[None]:
        """Protect the file from `remove_strays` of every process during the block."""
        self._receiving.add(dataset_id)
        try:
            yield
        finally:
            self._receiving.discard(dataset_id)

    def touch(self) -> None:
        """Mark files that are being received, however slowly."""
        for dataset_id in self._receiving.copy():
            with suppress(FileNotFoundError):
                os.utime(self.path(dataset_id))

    def remove_strays(self, wanted: Collection[str]) -> None:
        """Remove files that are not wanted and have not changed for a while.

        File times are only compared for equality, because clocks of machines differ.
        """
        now = self._ticks()
        seen = {key: self._unchanged.get(key, now) for key in self._files()}
        self._unchanged = seen
        for (name, _), since in seen.items():
            if name not in wanted and now - since >= self._stray_seconds:
                self.discard(name)

    def _files(self) -> Iterator[tuple[str, int]]:
        for entry in os.scandir(self._folder):
            with suppress(FileNotFoundError):  # removed meanwhile
                yield entry.name, entry.stat().st_mtime_ns


def _identity(file: Path) -> str:
    """A text that is the same in all processes that share the folder, and in no others."""
    if not file.exists():
        draft = file.with_name(f"{file.name}.{uuid.uuid4().hex}")
        draft.write_text(uuid.uuid4().hex)
        try:
            with suppress(FileExistsError):  # another process was quicker
                os.link(draft, file)
        finally:
            draft.unlink()
    return file.read_text()


class CappedFile:
    """A file with a size limit that hashes what is written."""

    def __init__(self, file: BinaryIO, max_bytes: int) -> None:
        self._file = file
        self._left = max_bytes
        self._hash = hashlib.sha256()

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def write(self, data: bytes) -> int:
        """Append data.

        Raises:
            PayloadTooLarge: the file would exceed its limit.
            StorageFull: no space is left.
        """
        self._left -= len(data)
        if self._left < 0:
            raise PayloadTooLarge(
                "the archive is too large (shrink it, or raise SHARPZO_MAX_UPLOAD_BYTES)"
            )
        self._hash.update(data)
        with disk_errors():
            return self._file.write(data)

    def sync(self) -> None:
        with disk_errors():
            self._file.flush()
            os.fsync(self._file.fileno())


@contextmanager
def disk_errors() -> Iterator[None]:
    """Translate the errors of a full disk.

    Raises:
        StorageFull: no space or no quota is left.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise StorageFull(
                "no space is left for the upload (free some in the data folder)"
            ) from error
        raise
