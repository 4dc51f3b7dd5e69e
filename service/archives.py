"""Walking untrusted archives: zip, tar and tar.gz, one member at a time, nothing unpacked to disk.

A member's name is only ever compared and reported, never used as a path here. Every byte that
comes out of the decompressor is counted, whatever the headers claim.
"""

from __future__ import annotations

import gzip
import io
import lzma
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, BinaryIO

from service.errors import ArchiveError
from sharpzo_core.errors import UnsupportedMedia

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MAX_MEMBERS = 100_000
MAX_UNPACKED_BYTES = 16 << 30
MAX_MEMBER_BYTES = 64 << 20
MAX_RATIO = 100  # unpacked bytes per byte of the archive
RATIO_FREE_BYTES = 16 << 20  # small archives may be as compressible as they like
MAX_PATH = 1024  # characters
MAX_COMPONENT = 255  # bytes
_TAR_BLOCK = 512
_ZIP_LOCAL_HEADER = 30  # bytes before a member's name
_MAX_TAR_HEADER = 1 << 20  # bytes of one long-name or PAX header, read into memory by tarfile

_BIDI_CONTROLS = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

#: What the standard library raises on damaged archives, measured on mutated files.
_CORRUPT = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    ValueError,
    OverflowError,
)


class ArchiveKind(StrEnum):
    """The containers that are accepted."""

    ZIP = "zip"
    TAR = "tar"
    TAR_GZ = "tar.gz"


@dataclass(frozen=True)
class Limits:
    """Bounds on what one archive may unpack to."""

    members: int = MAX_MEMBERS
    unpacked_bytes: int = MAX_UNPACKED_BYTES
    member_bytes: int = MAX_MEMBER_BYTES
    ratio: int = MAX_RATIO


@dataclass(frozen=True)
class Member:
    """A regular file of an archive; `read` works until the walk moves on."""

    path: str
    read: Callable[[], bytes]


@dataclass
class _Budget:
    """Counts what was unpacked and which names were seen."""

    limits: Limits
    archive_bytes: int
    unpacked: int = 0
    members: int = 0
    seen: set[str] = field(default_factory=set)

    def admit(self, name: str) -> str:
        """Count one member and return its safe path."""
        self.members += 1
        if self.members > self.limits.members:
            message = f"the archive has more than {self.limits.members} members"
            raise ArchiveError("too_many_files", message)
        path = safe_path(name)
        key = unicodedata.normalize("NFC", path).casefold()
        if key in self.seen:
            raise _unsafe_path("two members have the same name")
        self.seen.add(key)
        return path

    def spend(self, count: int) -> None:
        """Count unpacked bytes."""
        self.unpacked += count
        allowed = RATIO_FREE_BYTES + self.limits.ratio * self.archive_bytes
        if self.unpacked > min(self.limits.unpacked_bytes, allowed):
            raise ArchiveError("archive_bomb", "the archive unpacks to too many bytes")


def sniff(path: Path) -> ArchiveKind:
    """Tell the container by its content.

    Raises:
        UnsupportedMedia: it is none of ours.
        ArchiveError: `archive_corrupt`, a gzip file that does not unpack.
    """
    with path.open("rb") as file:
        start = file.read(_TAR_BLOCK)
    if start[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return ArchiveKind.ZIP
    if start[:2] == b"\x1f\x8b":
        with _translated(), gzip.open(path) as unpacked:
            start = unpacked.read(_TAR_BLOCK)
        if _is_tar_header(start):
            return ArchiveKind.TAR_GZ
    elif _is_tar_header(start):
        return ArchiveKind.TAR
    raise UnsupportedMedia("the file is not a .zip, .tar or .tar.gz archive")


def _is_tar_header(block: bytes) -> bool:
    if block == bytes(_TAR_BLOCK):
        return True  # an empty archive
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def check_not_empty(path: Path, kind: ArchiveKind) -> None:
    """Look at the first member.

    Raises:
        ArchiveError: there is none, or it cannot be read.
    """
    if next(walk(path, kind), None) is None:
        raise ArchiveError("archive_corrupt", "the archive is empty (pack the dataset's folder)")


def walk(path: Path, kind: ArchiveKind, limits: Limits | None = None) -> Iterator[Member]:
    """Yield the regular files of an archive in order.

    Raises:
        ArchiveError: an unsafe member, a damaged archive, or more than `limits` allow.
    """
    budget = _Budget(limits or Limits(), path.stat().st_size)
    members = _walk_zip(path, budget) if kind is ArchiveKind.ZIP else _walk_tar(path, kind, budget)
    while True:
        with _translated():
            member = next(members, None)
        if member is None:
            return
        yield member


@contextmanager
def _translated() -> Iterator[None]:
    """The one boundary at which the standard library's errors become ours."""
    try:
        yield
    except ArchiveError:
        raise
    except NotImplementedError:
        raise ArchiveError("archive_unsupported", "a compression is not supported") from None
    except RuntimeError:
        raise _encrypted() from None
    except _CORRUPT:
        raise ArchiveError("archive_corrupt", "the archive is damaged (pack it again)") from None


def safe_path(name: str) -> str:
    """The posix path of a member, without a leading `./` and without a trailing slash.

    Raises:
        ArchiveError: `archive_unsafe_path`.
    """
    if len(name) > MAX_PATH:
        raise _unsafe_path("a member's name is too long")
    if any(unicodedata.category(c) in ("Cc", "Cs") or c in _BIDI_CONTROLS for c in name):
        raise _unsafe_path("a member's name holds control characters or is not UTF-8")
    if name.startswith("/") or "\\" in name or name[1:2] == ":":
        raise _unsafe_path("a member's name is an absolute or a Windows path")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise _unsafe_path("a member's name leads out of the archive ('..')")
    if any(len(part.encode()) > MAX_COMPONENT for part in parts):
        raise _unsafe_path("a member's name is too long")
    return "/".join(parts)


def _unsafe_path(message: str) -> ArchiveError:
    return ArchiveError("archive_unsafe_path", message)


def _unsafe_entry(path: str) -> ArchiveError:
    message = f"{path!r} is a link, a device or otherwise no plain file"
    return ArchiveError("archive_unsafe_entry", message)


def _encrypted() -> ArchiveError:
    return ArchiveError("archive_encrypted", "the archive is encrypted (pack it without password)")


def _walk_zip(path: Path, budget: _Budget) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        _check_no_overlap(infos, budget)
        for info in infos:
            name = budget.admit(info.filename)
            _check_zip_entry(info, name)
            if not info.is_dir():
                yield Member(name, lambda info=info: _read_zip(archive, info, budget))  # type: ignore[misc] # bound now


def _check_no_overlap(infos: list[zipfile.ZipInfo], budget: _Budget) -> None:
    """Members that share compressed bytes multiply what a small file unpacks to."""
    ends = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset < ends:
            raise ArchiveError("archive_bomb", "members of the archive overlap")
        ends = info.header_offset + _ZIP_LOCAL_HEADER + info.compress_size
    if ends > budget.archive_bytes:
        raise ArchiveError("archive_corrupt", "the archive is incomplete")


def _check_zip_entry(info: zipfile.ZipInfo, name: str) -> None:
    if info.flag_bits & 0x1:
        raise _encrypted()
    mode = info.external_attr >> 16
    kind = stat.S_IFMT(mode)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or mode & (stat.S_ISUID | stat.S_ISGID):
        raise _unsafe_entry(name)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ArchiveError("archive_unsupported", "a compression is not supported (use deflate)")


def _read_zip(archive: zipfile.ZipFile, info: zipfile.ZipInfo, budget: _Budget) -> bytes:
    with _translated(), archive.open(info) as file:
        return _read_bounded(file, budget)


def _walk_tar(path: Path, kind: ArchiveKind, budget: _Budget) -> Iterator[Member]:
    opener: Callable[[Path, str], BinaryIO] = gzip.open if kind is ArchiveKind.TAR_GZ else open  # type: ignore[assignment]
    with (
        opener(path, "rb") as raw,
        # Stream mode never seeks, so no header can send the reader backwards.
        tarfile.open(
            fileobj=_Counted(raw, budget), mode="r|", tarinfo=_BoundedTarInfo, errors="strict"
        ) as archive,
    ):
        for info in archive:
            name = budget.admit(info.name)
            _check_tar_entry(info, name)
            if not info.isdir():
                yield Member(name, lambda info=info: _read_tar(archive, info, budget))  # type: ignore[misc] # bound now
            archive.members = []  # type: ignore[attr-defined] # tarfile keeps every header otherwise


class _Counted(io.RawIOBase):
    """A reader that charges every unpacked byte, headers included, to the budget."""

    def __init__(self, raw: BinaryIO, budget: _Budget) -> None:
        self._raw = raw
        self._budget = budget

    def read(self, size: int = -1, /) -> bytes:
        data = self._raw.read(size)
        self._budget.spend(len(data))
        return data


class _BoundedTarInfo(tarfile.TarInfo):
    """Refuses extension headers that would be read into memory whole."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        extension = self.type in (
            tarfile.XHDTYPE,
            tarfile.XGLTYPE,
            tarfile.SOLARIS_XHDTYPE,
            tarfile.GNUTYPE_LONGNAME,
            tarfile.GNUTYPE_LONGLINK,
        )
        if self.size < 0 or (extension and self.size > _MAX_TAR_HEADER):
            raise ArchiveError("archive_corrupt", "the archive is damaged (pack it again)")
        return super()._proc_member(archive)  # type: ignore[misc,no-any-return]


def _check_tar_entry(info: tarfile.TarInfo, name: str) -> None:
    plain = info.isdir() or info.type in (tarfile.REGTYPE, tarfile.AREGTYPE)
    if not plain or info.issparse() or info.mode & (stat.S_ISUID | stat.S_ISGID):
        # A directory may carry the set-group bit on shared file systems; it means nothing here.
        if info.isdir():
            return
        raise _unsafe_entry(name)


def _read_tar(archive: tarfile.TarFile, info: tarfile.TarInfo, budget: _Budget) -> bytes:
    with _translated():
        file = archive.extractfile(info)
        if file is None:
            raise _unsafe_entry(info.name)
        # `_Counted` has charged these bytes, or will.
        return _read_limited(file, budget.limits.member_bytes)


def _read_bounded(file: object, budget: _Budget) -> bytes:
    data = _read_limited(file, budget.limits.member_bytes)
    budget.spend(len(data))
    return data


def _read_limited(file: object, limit: int) -> bytes:
    data: bytes = file.read(limit + 1)  # type: ignore[attr-defined] # zip and tar readers
    if len(data) > limit:
        raise ArchiveError("archive_bomb", f"a member is larger than {limit} bytes")
    return data
