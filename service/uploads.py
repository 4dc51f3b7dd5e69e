"""Archives on their way in: one file per dataset below DATA_DIR/uploads, named by its id."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from sharpzo_core.errors import PayloadTooLarge, StorageFull

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Uploads:
    """The folder of archives that are being received or processed."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

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

    def discard_all_but(self, dataset_ids: Collection[str]) -> None:
        """Remove what an earlier process left behind."""
        for path in self._folder.iterdir():
            if path.name not in dataset_ids:
                path.unlink()


class CappedFile:
    """A file that refuses to grow past its limit."""

    def __init__(self, file: BinaryIO, max_bytes: int) -> None:
        self._file = file
        self._left = max_bytes

    def write(self, data: bytes) -> int:
        """Append.

        Raises:
            PayloadTooLarge: the file would exceed its limit.
            StorageFull: no space is left.
        """
        self._left -= len(data)
        if self._left < 0:
            raise PayloadTooLarge("the archive is larger than this service accepts")
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
