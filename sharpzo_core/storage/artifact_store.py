"""`ArtifactStore`: files by key, in a local folder (`LocalArtifacts`) or elsewhere by fsspec."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, ClassVar, TypeVar, cast

import fsspec
from fsspec import AbstractFileSystem
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

T = TypeVar("T")

_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")
_MANY = 64  # files that are not synced one by one
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Draft:
    """A file that is being written and has no key yet; see `ArtifactStore.keep`."""

    def __init__(self, folder: str) -> None:
        # Named like the files that killed writers leave, so that `remove_leftovers` finds it.
        descriptor, name = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=folder)
        self._stream = os.fdopen(descriptor, "wb", buffering=0)
        self._hash = hashlib.sha256()
        self.path = name  # no `Path`, here and below: it is slower than the calls themselves
        self.size = 0  #: Bytes written so far

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def write(self, data: bytes) -> None:
        """Append.

        Raises:
            StorageFull, StorageUnavailable: the disk failed.
        """
        self._hash.update(data)
        self.size += len(data)
        with _translated(self.path):
            view = memoryview(data)
            while view:
                view = view[self._stream.write(view) :]

    def close(self) -> None:
        self._stream.close()

    def discard(self) -> None:
        self.close()
        with suppress(FileNotFoundError):
            os.unlink(self.path)  # noqa: PTH108


class ArtifactStore(ABC):
    """Files named by ids and hashes, never by users.

    Every method raises `StorageUnavailable` if the store does not answer, and those that write
    raise `StorageFull` if it is full.
    """

    local: ClassVar = False  #: Whether it is a folder of this machine

    def __init__(self, files: AbstractFileSystem, root: str) -> None:
        self._files = files
        self._root = root

    @staticmethod
    def from_url(url: str) -> ArtifactStore:
        """The store at a folder or any other URL of fsspec.

        Raises:
            SettingsError: there is no such kind of store.
        """
        try:
            files, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise SettingsError(f"SHARPZO_ARTIFACT_URL: {error}") from error
        if isinstance(files, LocalFileSystem):
            return LocalArtifacts(files, root)
        return ObjectArtifacts(files, root)

    @abstractmethod
    def put_bytes(self, key: str, data: bytes, *, sync: bool = True) -> None:
        """Store `data`; a reader sees the whole old or the whole new file.

        To store many files, it is faster to pass `sync=False` and call `sync` at the end.
        """

    @abstractmethod
    def put_file(self, key: str, source: Path) -> None:
        """Store a copy of a local file, as atomically as `put_bytes`."""

    @abstractmethod
    def draft(self, prefix: str, scratch: Path) -> Draft:
        """A new file that is to get a key below `prefix`; `scratch` is a local folder."""

    def keep(self, draft: Draft, key: str) -> None:
        """Store the draft under its key, unless a file of this key and size exists; then drop it.

        For keys that name the content: files under one key are equal. The file survives a loss of
        power only after `sync_files`.
        """
        draft.close()
        with self._at(key) as path:
            if self._size(path) == draft.size:
                draft.discard()
            else:
                self._move(draft, path)

    def sync(self, prefix: str) -> None:  # noqa: B027 - object stores have nothing to do
        """Make everything below `prefix` survive a loss of power."""

    def sync_files(self, keys: Iterable[str]) -> None:  # noqa: B027 - as above
        """Make these files and their names survive a loss of power."""

    def remove_leftovers(self, prefix: str, older_than: float = LEFTOVER_SECONDS) -> int:  # noqa: ARG002
        """Remove what killed writers left below `prefix`; returns how many files."""
        return 0

    def local_path(self, key: str) -> Path | None:  # noqa: ARG002
        """The file itself, where the store is a local folder; else None."""
        return None

    def get_bytes(self, key: str) -> bytes:
        """The stored bytes.

        Raises:
            NotFound: nothing is stored under this key.
        """
        with self._at(key) as path:
            return cast("bytes", self._files.cat_file(path))

    @contextmanager
    def open(self, key: str) -> Iterator[IO[bytes]]:
        """A stream over the stored bytes.

        Raises:
            NotFound: nothing is stored under this key.
        """
        with self._at(key) as path:
            stream = self._files.open(path, "rb")
        with stream:
            yield stream

    def exists(self, key: str) -> bool:
        with self._at(key) as path:
            return bool(self._files.exists(path))

    def delete(self, key: str) -> None:
        with self._at(key) as path, suppress(FileNotFoundError):
            self._files.rm_file(path)

    def delete_prefix(self, prefix: str) -> None:
        """Remove everything whose key begins with `prefix` and a slash."""
        with self._at(prefix.rstrip("/")) as path, suppress(FileNotFoundError):
            self._files.rm(path, recursive=True)

    def names(self, prefix: str) -> list[str]:
        with self._at(prefix) as path:
            try:
                entries = [Path(entry).name for entry in self._files.ls(path, detail=False)]
            except FileNotFoundError:
                return []
        return [name for name in entries if not name.startswith(".")]

    def idle_seconds(self, key: str) -> float:
        """Seconds since anything at or below `key` was written.

        Raises:
            NotFound: nothing is stored there any longer.
        """
        with self._at(key) as path:
            written: list[datetime] = [self._files.modified(f) for f in self._files.find(path)]
        if not written:
            raise NotFound("artifact", key)
        return (datetime.now(UTC) - max(written)).total_seconds()

    @abstractmethod
    def _size(self, path: str) -> int | None: ...

    @abstractmethod
    def _move(self, draft: Draft, path: str) -> None: ...

    @contextmanager
    def _at(self, key: str) -> Iterator[str]:
        """The path of a key; errors of the file system inside the block become ours."""
        if not _KEY.fullmatch(key):
            raise ValueError(f"not a key: {key!r}")
        with _translated(key):
            yield f"{self._root}/{key}"


class LocalArtifacts(ArtifactStore):
    """A folder of this machine; every write is atomic and, unless asked otherwise, synced."""

    local = True

    def __init__(self, files: AbstractFileSystem, root: str) -> None:
        super().__init__(files, root)
        Path(root).mkdir(parents=True, exist_ok=True)

    def put_bytes(self, key: str, data: bytes, *, sync: bool = True) -> None:
        with self._at(key) as path:
            write_atomically(Path(path), data, sync=sync)

    def put_file(self, key: str, source: Path) -> None:
        with (
            self._at(key) as path,
            replacing(Path(path)) as target,
            source.open("rb") as stream,
        ):
            shutil.copyfileobj(stream, target)

    def draft(self, prefix: str, scratch: Path) -> Draft:  # noqa: ARG002
        with self._at(prefix) as folder:
            return _making_folder(folder, lambda: Draft(folder))

    def sync(self, prefix: str) -> None:
        with self._at(prefix) as path:
            sync_tree(Path(path))

    def sync_files(self, keys: Iterable[str]) -> None:
        paths = [self.local_path(key) for key in keys]
        with _translated("files"):
            if len(paths) < _MANY or not sync_file_system(Path(self._root)):
                for path in (*paths, *{path.parent for path in paths}):
                    sync_path(path)

    def remove_leftovers(self, prefix: str, older_than: float = LEFTOVER_SECONDS) -> int:
        with self._at(prefix) as path:
            return remove_leftovers(Path(path), older_than)

    def local_path(self, key: str) -> Path:
        with self._at(key) as path:
            return Path(path)

    def _size(self, path: str) -> int | None:
        try:
            return os.stat(path).st_size  # noqa: PTH116
        except FileNotFoundError:
            return None

    def _move(self, draft: Draft, path: str) -> None:
        folder = path.rpartition("/")[0]
        _making_folder(folder, lambda: os.replace(draft.path, path))  # noqa: PTH105


class ObjectArtifacts(ArtifactStore):
    """A remote store, which takes files as a whole; drafts for it are written to a local folder."""

    def put_bytes(self, key: str, data: bytes, *, sync: bool = True) -> None:  # noqa: ARG002
        with self._at(key) as path:
            self._files.pipe_file(path, data)

    def put_file(self, key: str, source: Path) -> None:
        with self._at(key) as path:
            self._files.put_file(str(source), path)

    def draft(self, prefix: str, scratch: Path) -> Draft:
        with self._at(prefix):
            return _making_folder(str(scratch), lambda: Draft(str(scratch)))

    def _size(self, path: str) -> int | None:
        try:
            return int(self._files.size(path))
        except FileNotFoundError:
            return None

    def _move(self, draft: Draft, path: str) -> None:
        self._files.put_file(draft.path, path)
        draft.discard()


def _making_folder(folder: str, call: Callable[[], T]) -> T:
    """Do something in a folder; if that fails, create the folder and try again."""
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
