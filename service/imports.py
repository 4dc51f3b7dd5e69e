"""Fetching an archive from a place that the operator allows."""

from __future__ import annotations

import os
import re
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import fsspec

from service.errors import ForbiddenLocation
from sharpzo_core.errors import StorageUnavailable, ValidationFailed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from service.services import TenantServices

_CHUNK = 1 << 20
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_FILE = "file://"
#: What makes a remote address mean another place than the one it begins with.
_DECEIVING = ("..", "%", "?", "#", "\\", "@", "::")


def fetch(services: TenantServices, uri: str, dataset_id: str) -> None:
    """Copy the archive at `uri` to the dataset's upload file.

    Raises:
        ForbiddenLocation: it is not below an allowed place; the answer does not tell what exists.
        ValidationFailed: nothing is there.
        PayloadTooLarge: it is larger than an upload may be.
        StorageUnavailable: the place does not answer.
    """
    prefixes = services.settings.dataset_uri_prefixes
    with _open(uri, prefixes) as source, services.uploads.open(dataset_id) as target:
        while chunk := source.read(_CHUNK):
            target.write(chunk)
        target.sync()


@contextmanager
def _open(uri: str, prefixes: Sequence[str]) -> Iterator[IO[bytes]]:
    try:
        with _open_allowed(uri, prefixes) as source:
            yield source
    except FileNotFoundError:
        raise ValidationFailed([("/uri", "nothing is there")]) from None
    except (ImportError, OSError) as error:
        raise StorageUnavailable("the dataset's place does not answer") from error


def _open_allowed(uri: str, prefixes: Sequence[str]) -> IO[bytes]:
    if _is_local(uri):
        path = Path(uri.removeprefix(_FILE)).resolve()
        roots = [Path(p.removeprefix(_FILE)).resolve() for p in prefixes if _is_local(p)]
        if path.is_absolute() and any(path.is_relative_to(root) for root in roots):
            return _open_regular(path)
    elif not any(part in uri for part in _DECEIVING):
        places = [prefix.rstrip("/") + "/" for prefix in prefixes if not _is_local(prefix)]
        if any(uri.startswith(place) for place in places):
            stream: IO[bytes] = fsspec.open(uri, "rb").open()
            return stream
    raise ForbiddenLocation


def _is_local(uri: str) -> bool:
    return uri.startswith(_FILE) or not _SCHEME.match(uri)


def _open_regular(path: Path) -> IO[bytes]:
    """Open a resolved path; a link or a device that took its place since is not followed."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ForbiddenLocation
    return os.fdopen(handle, "rb")
