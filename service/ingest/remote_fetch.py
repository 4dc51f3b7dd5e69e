"""Fetching an archive from a place that the operator allows."""

from __future__ import annotations

import errno
import os
import re
import stat
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

import fsspec

from service.errors import ForbiddenLocation
from sharpzo_core.errors import StorageUnavailable, ValidationFailed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from service.services import TenantServices

_CHUNK = 1 << 20
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_LOCAL = ("file://", "local://")
_HTTP = ("http://", "https://")
_NO_REDIRECTS = {"allow_redirects": False}  # they would lead anywhere
#: What makes a remote address mean another place than the one it begins with.
_DECEIVING = ("..", "%", "?", "#", "\\", "@", "::", "//")
_NO_COMPONENT = ("", ".", "..")
#: What opening says of a link, or of a file where a folder should be.
_NOT_FOLLOWED = (errno.ELOOP, errno.ENOTDIR, errno.EMLINK)


def fetch(services: TenantServices, uri: str, dataset_id: str) -> None:
    """Copy the archive at `uri` to the dataset's upload file.

    Raises:
        ForbiddenLocation: it is not below an allowed place, or not a file but a link or a device;
            the answer does not tell what exists elsewhere.
        ValidationFailed: nothing is there.
        PayloadTooLarge: it is larger than an upload may be.
        StorageUnavailable: the place does not answer.
    """
    prefixes = services.settings.dataset_uri_prefixes
    with open_allowed(uri, prefixes) as source, services.uploads.open(dataset_id) as target:
        while chunk := source.read(_CHUNK):
            target.write(chunk)
        target.sync()


@contextmanager
def open_allowed(uri: str, prefixes: Sequence[str]) -> Iterator[IO[bytes]]:
    """A stream over what is at `uri`, if it is below one of the `prefixes`; raises as `fetch`."""
    try:
        with _open(uri, prefixes) as source:
            yield source
    except FileNotFoundError:
        raise ValidationFailed([("/uri", "nothing is there")]) from None
    except PermissionError:
        raise ValidationFailed([("/uri", "the service may not read it")]) from None
    except (ImportError, OSError) as error:
        raise StorageUnavailable("the dataset's place does not answer") from error


def _open(uri: str, prefixes: Sequence[str]) -> IO[bytes]:
    path = _local_path(uri)
    if path is not None:
        for root in filter(None, map(_local_path, prefixes)):
            components = _below(root, path)
            if components:
                return _open_below(root, components)
    elif not any(part in uri.partition("://")[2] for part in _DECEIVING):
        places = [prefix.rstrip("/") + "/" for prefix in prefixes if _local_path(prefix) is None]
        if any(uri.startswith(place) for place in places):
            options = _NO_REDIRECTS if uri.startswith(_HTTP) else {}
            stream: IO[bytes] = fsspec.open(uri, "rb", **options).open()
            return stream
    raise ForbiddenLocation


def _local_path(uri: str) -> str | None:
    """The path of a file on this machine; None if it is elsewhere."""
    for scheme in _LOCAL:
        if uri.startswith(scheme):
            return uri.removeprefix(scheme)
    return None if _SCHEME.match(uri) else uri


def _below(root: str, path: str) -> list[str] | None:
    """The components of a path that is below the root as it is written; None for any other."""
    start = root.rstrip("/") + "/"
    if not path.startswith(start) or not path.startswith("/") or "\0" in path:
        return None
    components = path.removeprefix(start).split("/")
    return None if any(part in _NO_COMPONENT for part in components) else components


def _open_below(root: str, components: Sequence[str]) -> IO[bytes]:
    """Open a regular file without following any link on the way from the root.

    One component after the other, each within the folder that the one before has opened: so it
    does not matter what is put in the place of one meanwhile.
    """
    if os.open not in os.supports_dir_fd:  # Windows
        raise ForbiddenLocation
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in components[:-1]:
            deeper = _open_in(folder, name, os.O_DIRECTORY)
            os.close(folder)
            folder = deeper
        file = _open_in(folder, components[-1], os.O_NONBLOCK)  # a pipe would keep us waiting
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
