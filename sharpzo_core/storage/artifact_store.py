"""`ArtifactStore`: bytes by key, over fsspec; on a local disk every write is atomic and synced."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import tempfile
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from sharpzo_core.errors import NotFound, SettingsError, StorageFull, StorageUnavailable
from sharpzo_engine.files import (
    LEFTOVER_SECONDS,
    remove_leftovers,
    replacing,
    sync_file_system,
    sync_path,
    sync_tree,
    write_atomically,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

T = TypeVar("T")

_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")
_MANY = 64  # files that are not synced one by one
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Draft:
    """A file that is written bit by bit and has no key yet; one that nobody keeps is discarded."""

    def __init__(self, folder: str) -> None:
        # Named like the files of killed writers, so that it is removed like them.
        descriptor, name = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=folder)
        self._stream = os.fdopen(descriptor, "wb", buffering=0)
        self._hash = hashlib.sha256()
        self.path = name  # no `Path`, here and below: it takes longer than the calls themselves
        self.size = 0  #: Bytes written so far

    @property
    def sha256(self) -> str:
        """Of what was written so far."""
        return self._hash.hexdigest()

    def write(self, data: bytes) -> None:
        """Append.

        Raises:
            StorageFull, StorageUnavailable: the disk did not take it.
        """
        self._hash.update(data)
        self.size += len(data)
        with _translated(self.path):
            view = memoryview(data)
            while view:
                view = view[self._stream.write(view) :]

    def close(self) -> None:
        """Write no more."""
        self._stream.close()

    def discard(self) -> None:
        """Remove the file."""
        self.close()
        with suppress(FileNotFoundError):
            os.unlink(self.path)  # noqa: PTH108


class ArtifactStore:
    """Files named by ids and hashes, never by users."""

    def __init__(self, url: str) -> None:
        try:
            self._fs, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise SettingsError(f"SHARPZO_ARTIFACT_URL: {error}") from error
        self._local = isinstance(self._fs, LocalFileSystem)
        if self._local:
            Path(self._root).mkdir(parents=True, exist_ok=True)

    def put_bytes(self, key: str, data: bytes, *, sync: bool = True) -> None:
        """Store `data`; a reader sees the whole old or the whole new file.

        Many files are quicker without `sync`, and one call of `sync` behind them.

        Raises:
            StorageFull, StorageUnavailable: the store did not take it.
        """
        path = self._path(key)
        with _translated(key):
            if self._local:
                write_atomically(Path(path), data, sync=sync)
            else:
                self._fs.pipe_file(path, data)  # object stores replace an object as a whole

    def sync(self, prefix: str) -> None:
        """Make everything below `prefix` survive a loss of power.

        Raises:
            StorageFull, StorageUnavailable: the store could not.
        """
        path = self._path(prefix)
        if self._local:
            with _translated(prefix):
                sync_tree(Path(path))

    def draft(self, prefix: str, scratch: Path) -> Draft:
        """A new file to be kept under a key below `prefix`.

        A remote store takes files as a whole; drafts for it lie in the folder `scratch` meanwhile.

        Raises:
            StorageFull, StorageUnavailable: there can be none.
        """
        folder = self._path(prefix) if self._local else str(scratch)
        with _translated(prefix):
            return _making_folder(folder, lambda: Draft(folder))

    def keep(self, draft: Draft, key: str) -> None:
        """Give the draft its key, unless a file of this key and size is there; it is gone then.

        For keys that name the content: files under one key are equal. It does not survive a loss of
        power before `sync_files`.

        Raises:
            StorageFull, StorageUnavailable: the store did not take it.
        """
        path = self._path(key)
        draft.close()
        with _translated(key):
            if self._size(path) == draft.size:
                draft.discard()
            elif self._local:
                folder = path.rpartition("/")[0]
                _making_folder(folder, lambda: os.replace(draft.path, path))  # noqa: PTH105
            else:
                self._fs.put_file(draft.path, path)
                draft.discard()

    def sync_files(self, keys: Iterable[str]) -> None:
        """Make these files and their names survive a loss of power.

        Raises:
            StorageUnavailable: the store could not.
        """
        if not self._local:
            return
        paths = [Path(self._path(key)) for key in keys]
        with _translated("files"):
            if len(paths) < _MANY or not sync_file_system(Path(self._root)):
                for path in (*paths, *{path.parent for path in paths}):
                    sync_path(path)

    def _size(self, path: str) -> int | None:
        try:
            if self._local:
                return os.stat(path).st_size  # noqa: PTH116
            return int(self._fs.size(path))
        except FileNotFoundError:
            return None

    def put_file(self, key: str, source: Path) -> None:
        """Store a copy of a local file, as atomically as `put_bytes`.

        Raises:
            StorageFull, StorageUnavailable: the store did not take it.
        """
        path = self._path(key)
        with _translated(key):
            if self._local:
                with replacing(Path(path)) as target, source.open("rb") as stream:
                    shutil.copyfileobj(stream, target)
            else:
                self._fs.put_file(str(source), path)

    def get_bytes(self, key: str) -> bytes:
        """The stored bytes.

        Raises:
            NotFound: nothing is stored under this key.
            StorageUnavailable: the store does not answer.
        """
        path = self._path(key)
        with _translated(key):
            return cast("bytes", self._fs.cat_file(path))

    @contextmanager
    def open(self, key: str) -> Iterator[IO[bytes]]:
        """A stream over the stored bytes.

        Raises:
            NotFound: nothing is stored under this key.
            StorageUnavailable: the store does not answer.
        """
        path = self._path(key)
        with _translated(key):
            stream = self._fs.open(path, "rb")
        with stream:
            yield stream

    def exists(self, key: str) -> bool:
        """Whether something is stored under this key."""
        path = self._path(key)
        with _translated(key):
            return bool(self._fs.exists(path))

    def delete(self, key: str) -> None:
        """Remove what is stored under this key, if anything is."""
        path = self._path(key)
        with _translated(key), suppress(FileNotFoundError):
            self._fs.rm_file(path)

    def delete_prefix(self, prefix: str) -> None:
        """Remove everything whose key begins with `prefix` and a slash."""
        path = self._path(prefix.rstrip("/"))
        with _translated(prefix), suppress(FileNotFoundError):
            self._fs.rm(path, recursive=True)

    def remove_leftovers(self, prefix: str, older_than: float = LEFTOVER_SECONDS) -> int:
        """Remove what killed writers left below `prefix`; returns how many files.

        Object stores have no such files.

        Raises:
            StorageUnavailable: the store does not answer.
        """
        path = self._path(prefix)
        with _translated(prefix):
            return remove_leftovers(Path(path), older_than) if self._local else 0

    def names(self, prefix: str) -> list[str]:
        """What there is directly below `prefix`, without files that are being written.

        Raises:
            StorageUnavailable: the store does not answer.
        """
        path = self._path(prefix)
        try:
            with _translated(prefix):
                entries = [Path(entry).name for entry in self._fs.ls(path, detail=False)]
        except NotFound:
            return []
        return [name for name in entries if not name.startswith(".")]

    def idle_seconds(self, key: str) -> float:
        """Seconds since anything at or below `key` was written.

        Raises:
            NotFound: nothing is stored there any more.
            StorageUnavailable: the store does not answer.
        """
        path = self._path(key)
        with _translated(key):
            written: list[datetime] = [self._fs.modified(file) for file in self._fs.find(path)]
        if not written:
            raise NotFound("artifact", key)
        return (datetime.now(UTC) - max(written)).total_seconds()

    @property
    def local(self) -> bool:
        """Whether the store is a folder of this machine."""
        return self._local

    def local_path(self, key: str) -> Path | None:
        """The file itself, where the store is a local folder; else None."""
        return Path(self._path(key)) if self._local else None

    def _path(self, key: str) -> str:
        if not _KEY.fullmatch(key):
            raise ValueError(f"not a key: {key!r}")
        return f"{self._root}/{key}"


def _making_folder(folder: str, call: Callable[[], T]) -> T:
    """Do something in a folder, which is made if that fails without it."""
    try:
        return call()
    except FileNotFoundError:
        Path(folder).mkdir(parents=True, exist_ok=True)
        return call()


@contextmanager
def _translated(key: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound("artifact", key) from error
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFull("the artifact store is full") from error
        raise StorageUnavailable("the artifact store does not answer") from error
