"""Reading tar and tar.gz archives, strictly forward.

The standard library parses single headers. Everything else is done here, because its own reader
seeks to wherever headers point, and reads extensions of any size into memory.
"""

import stat
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from sharpzo_core.storage.archives.limits import Account, corrupt, unsafe_entry
from sharpzo_core.storage.archives.member import CHUNK, Member, folder
from sharpzo_core.storage.archives.names import unsafe_path

BLOCK = 512  # bytes
_EMPTY = bytes(BLOCK)
_MAX_EXTENSION = 64 << 10  # bytes of a long name, or of the extended header of one member
_MAX_EXTENSIONS = 4  # headers before a member that only describe it
_MAX_GZIP_PARTS = 100_000
_GZIP = 16 + zlib.MAX_WBITS

_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE)
_EXTENDED = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_LONG = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


def walk_tar(path: Path, account: Account) -> Iterator[Member]:
    """The members of an uncompressed archive.

    Raises:
        ArchiveError: the archive is not accepted.
    """
    with path.open("rb") as file:
        yield from _members(_File(file, account), account)


def walk_tar_gz(path: Path, account: Account) -> Iterator[Member]:
    """The members of a compressed archive; the checksum covers everything after them too.

    Raises:
        ArchiveError: the archive is not accepted.
    """
    with path.open("rb") as file:
        yield from _members(_Unpacked(file, account), account)


def is_header(block: bytes) -> bool:
    """Whether a tar archive may begin like this."""
    if block == _EMPTY:
        return True  # an empty archive
    if block[257:262] == b"ustar":
        return True  # if anything else is wrong, it is a damaged tar archive
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


class _Stream(Protocol):
    """Bytes of a tar archive, from front to back; all bytes that pass are counted."""

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end."""

    def skip(self, size: int) -> None:
        """Skip `size` bytes."""

    def finish(self) -> None:
        """Check what follows the last member."""


class _File:
    """A plain file; skipping is a seek."""

    def __init__(self, file: BinaryIO, account: Account) -> None:
        self._file = file
        self._account = account
        self._left = account.archive_bytes

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._left -= len(data)
        self._account.spend(len(data))
        return data

    def skip(self, size: int) -> None:
        if size > self._left:
            raise corrupt()
        self._left -= size
        self._file.seek(size, 1)
        self._account.spend(size)

    def finish(self) -> None:
        pass  # a plain file has no checksum, only padding


class _Unpacked:
    """A gzip file, unpacked piece by piece."""

    def __init__(self, file: BinaryIO, account: Account) -> None:
        self._file = file
        self._account = account
        self._inflater = zlib.decompressobj(_GZIP)
        self._parts = 1
        self._packed = b""

    def read(self, size: int) -> bytes:
        data = b""
        while not data:
            if self._inflater.eof and not self._next_part():
                return b""
            ended = not self._packed and not self._refill()
            data = self._inflate(size)
            self._account.spend(len(data))
            if ended and not data and not self._inflater.eof:
                raise corrupt()
        return data

    def skip(self, size: int) -> None:
        while size:
            data = self.read(min(size, CHUNK))
            if not data:
                raise corrupt()
            size -= len(data)

    def finish(self) -> None:
        while self.read(CHUNK):
            pass

    def _refill(self) -> bool:
        self._packed = self._file.read(CHUNK)
        return bool(self._packed)

    def _next_part(self) -> bool:
        """Begin the next of several gzip streams in a row, if there is one."""
        self._packed = self._inflater.unused_data or self._packed
        # Some writers pad the file with zeros.
        self._packed = self._packed.lstrip(b"\0")
        while not self._packed:
            if not self._refill():
                return False
            self._account.tick()
            self._packed = self._packed.lstrip(b"\0")
        self._parts += 1
        if self._parts > _MAX_GZIP_PARTS:
            raise corrupt()
        self._inflater = zlib.decompressobj(_GZIP)
        return True

    def _inflate(self, size: int) -> bytes:
        try:
            data = self._inflater.decompress(self._packed, size)
        except zlib.error:
            raise corrupt() from None
        self._packed = self._inflater.unconsumed_tail
        return data


def _members(stream: _Stream, account: Account) -> Iterator[Member]:
    while (header := _next_header(stream, account)) is not None:
        name = account.admit(header.name, folder=header.isdir())
        _check_entry(header, name)
        if header.isdir():
            yield folder(name)
            continue
        account.check_member(header.size)
        content = _Content(stream, header.size)
        yield Member(name, content.chunks)
        content.skip()
    stream.finish()


class _Content:
    def __init__(self, stream: _Stream, size: int) -> None:
        self._stream = stream
        self._left = size
        self._padding = -size % BLOCK

    def chunks(self) -> Iterator[bytes]:
        while self._left:
            chunk = self._stream.read(min(self._left, CHUNK))
            if not chunk:
                raise corrupt()
            self._left -= len(chunk)
            yield chunk

    def skip(self) -> None:
        self._stream.skip(self._left + self._padding)


def _next_header(stream: _Stream, account: Account) -> tarfile.TarInfo | None:
    """The header of the next member, with its extensions applied; None at the end.

    Raises:
        ArchiveError: `archive_corrupt`, `archive_unsafe_path` or `archive_unsafe_entry`.
    """
    changes: dict[str, str] = {}
    for _ in range(_MAX_EXTENSIONS + 1):
        header = _header(stream)
        if header is None:
            if changes:
                raise corrupt()
            return None
        if header.type in _EXTENDED:
            changes |= _records(_extension(stream, header, account))
        elif header.type == tarfile.XGLTYPE:
            if _records(_extension(stream, header, account)).keys() & {"path", "size"}:
                raise corrupt()  # no archiver gives all files the same name or size
        elif header.type in _LONG:
            name = _extension(stream, header, account).split(b"\0", 1)[0]
            if header.type == tarfile.GNUTYPE_LONGNAME:
                changes["path"] = name.decode("utf-8", "surrogateescape")
        else:
            return _changed(header, changes)
    raise corrupt()


def _header(stream: _Stream) -> tarfile.TarInfo | None:
    block = _exactly(stream, BLOCK)
    if block == _EMPTY:
        return None
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        raise corrupt() from None
    if header.size < 0:
        raise corrupt()
    return header


def _extension(stream: _Stream, header: tarfile.TarInfo, account: Account) -> bytes:
    if header.size > _MAX_EXTENSION:
        raise corrupt()
    account.extend(header.size + BLOCK)
    data = _exactly(stream, header.size)
    stream.skip(-header.size % BLOCK)
    return data


def _records(data: bytes) -> dict[str, str]:
    """The records `length key=value` of an extended header, only those that are used here.

    Raises:
        ArchiveError: `archive_corrupt`, or `archive_unsafe_entry` for a sparse file.
    """
    found: dict[str, str] = {}
    place = 0
    while place < len(data) and data[place]:
        space = data.find(b" ", place, place + 8)
        digits = data[place:space]
        if space < 0 or not digits.isdigit():
            raise corrupt()
        end = place + int(digits)
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not equals or end > len(data) or data[end - 1 : end] != b"\n":
            raise corrupt()
        if key in (b"path", b"size"):
            found[key.decode()] = value.decode("utf-8", "surrogateescape")
        elif key.startswith(b"GNU.sparse."):
            raise unsafe_entry("a sparse file")
        place = end
    return found


def _changed(header: tarfile.TarInfo, changes: dict[str, str]) -> tarfile.TarInfo:
    if "size" in changes:
        size = changes["size"]
        if not (size.isascii() and size.isdecimal() and len(size) < 20):
            raise corrupt()
        header.size = int(size)
    if "path" in changes:
        if not changes["path"]:
            raise unsafe_path("a member has no name")
        header.name = changes["path"]
    return header


def _check_entry(header: tarfile.TarInfo, name: str) -> None:
    if header.isdir():
        # It may have the set-group bit from a shared file system, which has no effect here.
        return
    if header.type not in _REGULAR or header.mode & (stat.S_ISUID | stat.S_ISGID):
        raise unsafe_entry(name)


def _exactly(stream: _Stream, size: int) -> bytes:
    data = stream.read(size)
    while len(data) < size:
        more = stream.read(size - len(data))
        if not more:
            raise corrupt()
        data += more
    return data
