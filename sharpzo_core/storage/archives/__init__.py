"""Walking untrusted archives: zip, tar and tar.gz, one member at a time, nothing unpacked to disk.

A member's name is only compared and reported, never used as a path here. Every byte that comes out
of a decompressor is counted, regardless of the headers, and at most one chunk is in memory.
"""

from __future__ import annotations

import time
import zlib
from enum import StrEnum
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from sharpzo_core.errors import ArchiveError, UnsupportedMedia
from sharpzo_core.storage.archives.limits import Account, Limits, corrupt
from sharpzo_core.storage.archives.member import Member
from sharpzo_core.storage.archives.names import safe_path
from sharpzo_core.storage.archives.tar import BLOCK, is_header, walk_tar, walk_tar_gz
from sharpzo_core.storage.archives.zip import SIGNATURES, walk_zip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["ArchiveKind", "Limits", "Member", "check", "safe_path", "sniff", "walk"]

CHECK_SECONDS = 1.0  # of the check while the client waits
_GZIP = b"\x1f\x8b"
_NESTED = frozenset({".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".bz2", ".xz", ".zst"})


class ArchiveKind(StrEnum):
    ZIP = "zip"
    TAR = "tar"
    TAR_GZ = "tar.gz"


_WALKS: dict[ArchiveKind, Callable[[Path, Account], Iterator[Member]]] = {
    ArchiveKind.ZIP: walk_zip,
    ArchiveKind.TAR: walk_tar,
    ArchiveKind.TAR_GZ: walk_tar_gz,
}


def sniff(path: Path) -> ArchiveKind:
    """Detect the format by the content.

    Raises:
        UnsupportedMedia: it is not an accepted format.
        ArchiveError: `archive_corrupt`, an empty file or a gzip file that does not unpack.
    """
    with path.open("rb") as file:
        start = file.read(BLOCK)
        rest = file.read(64 << 10) if start.startswith(_GZIP) else b""
    if not start:
        raise ArchiveError("archive_corrupt", "the file is empty (0 bytes)")
    if start.startswith(SIGNATURES):
        return ArchiveKind.ZIP
    if start.startswith(_GZIP):
        if is_header(_first_block(start + rest)):
            return ArchiveKind.TAR_GZ
    elif is_header(start):
        return ArchiveKind.TAR
    raise UnsupportedMedia("the file is not a .zip, .tar or .tar.gz archive")


def _first_block(packed: bytes) -> bytes:
    try:
        return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(packed, BLOCK)
    except zlib.error:
        raise corrupt() from None


def walk(
    path: Path,
    kind: ArchiveKind,
    limits: Limits | None = None,
    tick: Callable[[], object] | None = None,
    *,
    folders: bool = False,
) -> Iterator[Member]:
    """Yield the regular files of an archive in order.

    Args:
        path: The archive.
        kind: Its format.
        limits: Bounds on what it may unpack to.
        tick: Called every few milliseconds; an exception that it raises ends the walk.
        folders: Whether to yield folders too.

    Raises:
        ArchiveError: an unsafe member, a damaged archive, or more than `limits` allow.
    """
    account = Account(limits or Limits(), path.stat().st_size)
    if tick is not None:
        account.tick = tick
    members = _WALKS[kind](path, account)
    return (member for member in members if folders or not member.folder)


def check(path: Path, seconds: float = CHECK_SECONDS) -> None:
    """Check as much of the archive as is fast, without reading its files.

    For zip and tar that is all names and sizes; for tar.gz what can be unpacked in that time.

    Raises:
        UnsupportedMedia: it is not an archive, or contains only archives.
        ArchiveError: it is empty, unsafe or damaged.
    """
    end = time.monotonic() + seconds

    def tick() -> None:
        if time.monotonic() > end:
            raise _TimeIsUp

    suffixes: set[str] = set()
    try:
        for member in walk(path, sniff(path), tick=tick):
            suffixes.add(PurePosixPath(member.path).suffix.lower())
    except _TimeIsUp:
        return
    if not suffixes:
        raise ArchiveError("archive_corrupt", "the archive is empty (pack the dataset's folder)")
    if suffixes <= _NESTED:
        raise UnsupportedMedia("the archive contains another archive (pack the dataset's folder)")


class _TimeIsUp(Exception):  # noqa: N818 - not a fault
    """The rest is checked later."""
