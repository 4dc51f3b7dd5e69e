"""Archives on their way in: one file per dataset below DATA_DIR/uploads, named by its id.

Several API processes may share the folder. A file that is being received is touched now and then;
one that belongs to no dataset and that nobody touches was left by a process that died.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
import uuid
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, BinaryIO

from sharpzo_core.errors import PayloadTooLarge, StorageFull

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Uploads:
    """The folder of archives that are being received or processed."""

    def __init__(
        self,
        folder: Path,
        max_bytes: int,
        patience: float,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._patience = patience
        self._ticks = ticks
        self._receiving: set[str] = set()
        self._unchanged: dict[tuple[str, int], float] = {}  # (name, mtime) -> first sight
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.identity = _identity(folder.with_suffix(".id"))
        """Tells this folder from that of a process which does not share it."""

    def path(self, dataset_id: str) -> Path:
        """Where the archive of a dataset is kept."""
        return self._folder / dataset_id

    @contextmanager
    def open(self, dataset_id: str) -> Iterator[CappedFile]:
        """A new file for an archive."""
        with disk_errors(), self.path(dataset_id).open("xb") as file:
            yield CappedFile(file, self._max_bytes)

    def discard(self, dataset_id: str) -> None:
        """Remove the archive if it is there."""
        self.path(dataset_id).unlink(missing_ok=True)

    @contextmanager
    def receiving(self, dataset_id: str) -> Iterator[None]:
        """While this lasts no process takes the file for one that was left behind."""
        self._receiving.add(dataset_id)
        try:
            yield
        finally:
            self._receiving.discard(dataset_id)

    def touch(self) -> None:
        """Show that files are being received, however slowly."""
        for dataset_id in self._receiving.copy():
            with suppress(FileNotFoundError):
                os.utime(self.path(dataset_id))

    def remove_strays(self, wanted: Collection[str]) -> None:
        """Remove files that are not wanted and that have not changed for long, as seen from here.

        The files' own times are compared for equality only: clocks of machines differ.
        """
        now = self._ticks()
        seen = {key: self._unchanged.get(key, now) for key in self._files()}
        self._unchanged = seen
        for (name, _), since in seen.items():
            if name not in wanted and now - since >= self._patience:
                self.discard(name)

    def _files(self) -> Iterator[tuple[str, int]]:
        for entry in os.scandir(self._folder):
            with suppress(FileNotFoundError):  # removed meanwhile
                yield entry.name, entry.stat().st_mtime_ns


def _identity(file: Path) -> str:
    """A text that all processes on the same folder read and no others."""
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
    """A file that refuses to grow past its limit, and knows the hash of what it was given."""

    def __init__(self, file: BinaryIO, max_bytes: int) -> None:
        self._file = file
        self._left = max_bytes
        self._hash = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Of everything written so far."""
        return self._hash.hexdigest()

    def write(self, data: bytes) -> int:
        """Append.

        Raises:
            PayloadTooLarge: the file would exceed its limit.
            StorageFull: no space is left.
        """
        self._left -= len(data)
        if self._left < 0:
            raise PayloadTooLarge("the archive is larger than this service accepts")
        self._hash.update(data)
        with disk_errors():
            return self._file.write(data)

    def sync(self) -> None:
        """Let everything written survive a loss of power."""
        with disk_errors():
            self._file.flush()
            os.fsync(self._file.fileno())


@contextmanager
def disk_errors() -> Iterator[None]:
    """Translate a full disk.

    Raises:
        StorageFull: no space or no quota is left.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise StorageFull("no space is left for the upload") from error
        raise
