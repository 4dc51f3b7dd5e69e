"""Fetches an archive from a location that the operator allows."""

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import IO

import fsspec

from service.errors import ForbiddenLocation
from service.ingest.uploads import CappedFile
from sharpzo_core.errors import StorageUnavailable, ValidationFailed

_CHUNK = 1 << 20
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_LOCAL = ("file://", "local://")
_HTTP = ("http://", "https://")
_NO_REDIRECTS = {"allow_redirects": False}  # a redirect could lead anywhere
#: Parts that make a remote address mean another location than its prefix says.
_DECEPTIVE = ("..", "%", "?", "#", "\\", "@", "::", "//")
_NO_COMPONENT = ("", ".", "..")
#: Errors of opening a link, or a file in place of a folder.
_NOT_FOLLOWED = (errno.ELOOP, errno.ENOTDIR, errno.EMLINK)


def fetch(
    uri: str, prefixes: Sequence[str], open_upload: Callable[[], AbstractContextManager[CappedFile]]
) -> None:
    """Copy the archive at `uri` to an upload file.

    Raises:
        ForbiddenLocation: it is not below one of the `prefixes`, or is a link or a device; the
            error does not reveal what exists elsewhere.
        ValidationFailed: there is no such file, or it may not be read.
        PayloadTooLarge: it is larger than an upload may be.
        StorageUnavailable: the location does not answer.
    """
    with open_allowed(uri, prefixes) as source, open_upload() as target:
        while chunk := source.read(_CHUNK):
            target.write(chunk)
        target.sync()


@contextmanager
def open_allowed(uri: str, prefixes: Sequence[str]) -> Iterator[IO[bytes]]:
    """Open the file at `uri` if it is below one of the `prefixes`; raises like `fetch`."""
    try:
        with _open(uri, prefixes) as source:
            yield source
    except FileNotFoundError:
        raise ValidationFailed([("/uri", "there is no such file")]) from None
    except PermissionError:
        raise ValidationFailed([("/uri", "the service has no permission to read it")]) from None
    except (ImportError, OSError) as error:
        raise StorageUnavailable("the dataset's location does not answer") from error


def _open(uri: str, prefixes: Sequence[str]) -> IO[bytes]:
    path = _local_path(uri)
    if path is not None:
        for root in filter(None, map(_local_path, prefixes)):
            components = _below(root, path)
            if components:
                return _open_below(root, components)
    elif not any(part in uri.partition("://")[2] for part in _DECEPTIVE):
        places = [prefix.rstrip("/") + "/" for prefix in prefixes if _local_path(prefix) is None]
        if any(uri.startswith(place) for place in places):
            options = _NO_REDIRECTS if uri.startswith(_HTTP) else {}
            stream: IO[bytes] = fsspec.open(uri, "rb", **options).open()
            return stream
    raise ForbiddenLocation


def _local_path(uri: str) -> str | None:
    for scheme in _LOCAL:
        if uri.startswith(scheme):
            return uri.removeprefix(scheme)
    return None if _SCHEME.match(uri) else uri


def _below(root: str, path: str) -> list[str] | None:
    """The components of `path` below `root`, compared as text; None if it is not below it."""
    start = root.rstrip("/") + "/"
    if not path.startswith(start) or not path.startswith("/") or "\0" in path:
        return None
    components = path.removeprefix(start).split("/")
    return None if any(part in _NO_COMPONENT for part in components) else components


def _open_below(root: str, components: Sequence[str]) -> IO[bytes]:
    """Open a regular file without following any link below the root.

    Each component is opened relative to the descriptor of its parent, so that replacing one of
    them meanwhile changes nothing.
    """
    if os.open not in os.supports_dir_fd:  # Windows
        raise ForbiddenLocation
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in components[:-1]:
            deeper = _open_in(folder, name, os.O_DIRECTORY)
            os.close(folder)
            folder = deeper
        file = _open_in(folder, components[-1], os.O_NONBLOCK)  # a pipe would block
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise ForbiddenLocation
    return os.fdopen(file, "rb")


def _open_in(folder: int, name: str, flags: int) -> int:
    try:
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | flags, dir_fd=folder)
    except OSError as error:
        if error.errno in _NOT_FOLLOWED:
            raise ForbiddenLocation from None
        raise
