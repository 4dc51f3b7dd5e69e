"""Reading zip archives: the central directory as a stream, then one member at a time.

The standard library keeps an object per entry, trusts sizes, and (up to 3.11.14) overlapping
entries and a misplaced ZIP64 record. Here every part must lie exactly where the format puts it,
and anything ambiguous is refused.
"""

import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from sharpzo_core.errors import ArchiveError
from sharpzo_core.storage.archives.limits import (
    Account,
    corrupt,
    encrypted,
    unsafe_entry,
    unsupported,
)
from sharpzo_core.storage.archives.member import CHUNK, Member, folder
from sharpzo_core.storage.archives.names import unsafe_path

SIGNATURES = (b"PK\x03\x04", b"PK\x05\x06")  # of the first member, and of an empty archive

_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s4B4H3L5H2L")
_LOCAL = struct.Struct("<4s2B4H3L2H")
_MAX_COMMENT = 0xFFFF
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF  # "see the ZIP64 field"
_ZIP64_FIELD = 1
_STORED, _DEFLATED = 0, 8
_ENCRYPTED = 0x1 | 0x40 | 0x2000  # by the old method, by a strong one, central directory too
_PATCH = 0x20
_UTF8 = 0x800


@dataclass(frozen=True, slots=True)
class _End:
    offset: int
    size: int
    entries: int


@dataclass(frozen=True, slots=True)
class _Entry:
    name: bytes
    flags: int
    method: int
    mode: int  #: st_mode, if the archive was created on Unix
    crc: int
    packed: int
    unpacked: int
    offset: int

    @property
    def folder(self) -> bool:
        return self.name.endswith(b"/")


def walk_zip(path: Path, account: Account) -> Iterator[Member]:
    """The members in the order of the central directory.

    The whole directory is checked before the first one is yielded.

    Raises:
        ArchiveError: the archive is not accepted.
    """
    with path.open("rb") as directory, path.open("rb") as file:
        end = _find_end(directory, account.archive_bytes)
        account.check_count(end.entries)
        _check_extents(_entries(directory, end), end.offset, account)
        for entry in _entries(directory, end):
            name = account.admit(_decode(entry), folder=entry.folder)
            _check_entry(entry, name)
            yield folder(name) if entry.folder else _member(name, file, entry, account)


def _find_end(file: BinaryIO, size: int) -> _End:
    """Read the record at the very end; what follows it can only be its own comment."""
    start = max(0, size - _END.size - _MAX_COMMENT)
    file.seek(start)
    tail = file.read()
    place = len(tail) - _END.size
    while (place := tail.rfind(b"PK\x05\x06", 0, place + 4)) >= 0:
        if place + _END.size <= len(tail):
            fields = _END.unpack_from(tail, place)
            if place + _END.size + fields[7] == len(tail):
                return _checked_end(file, start + place, fields)
        place -= 1
    raise corrupt()


def _checked_end(file: BinaryIO, place: int, fields: tuple[Any, ...]) -> _End:
    _, disk, first_disk, here, entries, size, offset, _ = fields
    end = _End(offset, size, entries)
    end64 = _find_end64(file, place)
    if end64 is not None:
        place, long = end64
        if not _agree(end, long):
            raise corrupt()
        end = long
    elif disk or first_disk or here != entries:
        raise unsupported("an archive in several parts")
    if end.offset + end.size != place or end.size < end.entries * _CENTRAL.size:
        raise corrupt()
    return end


def _agree(short: _End, long: _End) -> bool:
    """Whether the two records agree; readers differ in which one they use."""
    return (
        short.entries in (long.entries, _FULL16)
        and short.size in (long.size, _FULL32)
        and short.offset in (long.offset, _FULL32)
    )


def _find_end64(file: BinaryIO, end: int) -> tuple[int, _End] | None:
    """The place and content of the ZIP64 record, which must lie directly before its locator."""
    place = end - _LOCATOR.size
    if place < 0:
        return None
    file.seek(place)
    signature, disk, record, disks = _LOCATOR.unpack(file.read(_LOCATOR.size))
    if signature != b"PK\x06\x07":
        return None
    if disk or disks > 1:
        raise unsupported("an archive in several parts")
    if record + _END64.size > place:
        raise corrupt()
    file.seek(record)
    fields = _END64.unpack(file.read(_END64.size))
    signature, length, _, _, disk, first_disk, here, entries, size, offset = fields
    if signature != b"PK\x06\x06" or record + 12 + length != place:
        raise corrupt()
    if disk or first_disk or here != entries:
        raise unsupported("an archive in several parts")
    return record, _End(offset, size, entries)


def _entries(file: BinaryIO, end: _End) -> Iterator[_Entry]:
    """The entries of the central directory, which must fill it exactly."""
    file.seek(end.offset)
    left = end.size
    for _ in range(end.entries):
        head = _exactly(file, _CENTRAL.size)
        fields = _CENTRAL.unpack(head)
        name_size, extra_size, comment_size = fields[12:15]
        name, extra = _exactly(file, name_size), _exactly(file, extra_size)
        left -= _CENTRAL.size + name_size + extra_size + comment_size
        if fields[0] != b"PK\x01\x02" or left < 0:
            raise corrupt()
        file.seek(comment_size, 1)
        yield _entry(fields, name, extra)
    if left:
        raise corrupt()


def _entry(fields: tuple[Any, ...], name: bytes, extra: bytes) -> _Entry:
    flags, method, crc, packed, unpacked = fields[5], fields[6], *fields[9:12]
    disk, mode, offset = fields[15], fields[17] >> 16, fields[18]
    if disk not in (0, _FULL16):
        raise unsupported("an archive in several parts")
    if _FULL32 in (packed, unpacked, offset):
        unpacked, packed, offset = _large(extra, (unpacked, packed, offset))
    return _Entry(name, flags, method, mode, crc, packed, unpacked, offset)


def _large(extra: bytes, values: tuple[int, int, int]) -> Iterator[int]:
    """Sizes and offset, with values of more than 32 bits from the ZIP64 field."""
    field, place = b"", 0
    while place + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, place)
        place += 4 + size
        if kind == _ZIP64_FIELD:
            field = extra[place - size : place]
            break
    wanted = values.count(_FULL32)
    if len(field) < 8 * wanted:
        raise corrupt()
    large = iter(struct.unpack_from(f"<{wanted}Q", field))
    return iter([next(large) if value == _FULL32 else value for value in values])


def _check_extents(entries: Iterator[_Entry], end: int, account: Account) -> None:
    """Check that members do not overlap and do not declare more than allowed.

    Members that share compressed bytes would multiply what a small file unpacks to.
    """
    extents: list[tuple[int, int]] = []
    unpacked = 0
    for entry in entries:
        account.tick()
        extents.append((entry.offset, entry.offset + _LOCAL.size + len(entry.name) + entry.packed))
        unpacked += entry.unpacked
        account.check_member(entry.unpacked, entry.packed)
        account.check_sum(unpacked)
    extents.sort()
    if any(start < before for (_, before), (start, _) in pairwise(extents)):
        raise ArchiveError("archive_bomb", "members of the archive overlap")
    if extents and extents[-1][1] > end:
        raise corrupt()


def _decode(entry: _Entry) -> str:
    """The name; without the UTF-8 flag it may still be UTF-8, as on macOS, or the DOS code page.

    Raises:
        ArchiveError: `archive_unsafe_path`.
    """
    try:
        return entry.name.decode()
    except UnicodeDecodeError:
        if entry.flags & _UTF8:
            raise unsafe_path("a member's name is not UTF-8") from None
        return entry.name.decode("cp437")


def _check_entry(entry: _Entry, name: str) -> None:
    if entry.flags & _ENCRYPTED:
        raise encrypted()
    kind = stat.S_IFMT(entry.mode)
    if entry.folder:
        if kind not in (0, stat.S_IFDIR):
            raise unsafe_entry(name)
        return
    if kind not in (0, stat.S_IFREG) or entry.mode & (stat.S_ISUID | stat.S_ISGID):
        raise unsafe_entry(name)
    if entry.method not in (_STORED, _DEFLATED) or entry.flags & _PATCH:
        raise unsupported("a compression other than deflate")
    if entry.method == _STORED and entry.packed != entry.unpacked:
        raise corrupt()


def _member(name: str, file: BinaryIO, entry: _Entry, account: Account) -> Member:
    return Member(name, partial(_chunks, file, entry, account))


def _chunks(file: BinaryIO, entry: _Entry, account: Account) -> Iterator[bytes]:
    """The member's bytes; size and checksum must match the central directory."""
    _seek_to_data(file, entry)
    packed = _packed(file, entry.packed)
    size, crc = 0, 0
    for chunk in _inflated(packed) if entry.method == _DEFLATED else packed:
        account.spend(len(chunk))
        size += len(chunk)
        account.check_member(size, entry.packed)
        if size > entry.unpacked:
            raise ArchiveError("archive_bomb", "a member unpacks to more than it declares")
        crc = zlib.crc32(chunk, crc)
        yield chunk
    if size != entry.unpacked or crc != entry.crc:
        raise corrupt()


def _seek_to_data(file: BinaryIO, entry: _Entry) -> None:
    """Skip the local header, which must agree with the central directory."""
    file.seek(entry.offset)
    fields = _LOCAL.unpack(_exactly(file, _LOCAL.size))
    signature, flags, method, name_size, extra_size = (*fields[:1], *fields[3:5], *fields[10:12])
    if signature != b"PK\x03\x04" or method != entry.method or flags & _ENCRYPTED:
        raise corrupt()
    if _exactly(file, name_size) != entry.name:
        raise corrupt()
    file.seek(extra_size, 1)


def _packed(file: BinaryIO, left: int) -> Iterator[bytes]:
    while left:
        chunk = file.read(min(left, CHUNK))
        if not chunk:
            raise corrupt()
        left -= len(chunk)
        yield chunk


def _inflated(packed: Iterator[bytes]) -> Iterator[bytes]:
    """Unpack; the stream must end where the member does."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        for chunk in packed:
            if inflater.eof:
                raise corrupt()
            left, part = chunk, b""
            # If the output is full, the same input may give more.
            while left or len(part) == CHUNK:
                part = inflater.decompress(left, CHUNK)
                left = inflater.unconsumed_tail
                yield part
    except zlib.error:
        raise corrupt() from None
    if not inflater.eof or inflater.unused_data:
        raise corrupt()


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise corrupt()
    return data
