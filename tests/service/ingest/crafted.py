"""Archives that no archiver makes, byte by byte."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

LOCAL = struct.Struct("<4s2B4HL2L2H")
CENTRAL = struct.Struct("<4s4B4H3L5H2L")
END = struct.Struct("<4s4H2LH")
END64 = struct.Struct("<4sQ2H2L4Q")
LOCATOR = struct.Struct("<4sLQL")
STORED, DEFLATED = 0, 8
FULL16, FULL32 = 0xFFFF, 0xFFFFFFFF


@dataclass(frozen=True)
class Entry:
    """A member of a zip; what is None is as it should be."""

    name: bytes
    data: bytes = b""
    method: int = STORED
    flags: int = 0
    mode: int = 0
    packed: bytes | None = None
    declared: int | None = None
    crc: int | None = None
    local_name: bytes | None = None

    @property
    def body(self) -> bytes:
        if self.packed is not None:
            return self.packed
        return deflated(self.data) if self.method == DEFLATED else self.data

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Checksum, packed and unpacked size."""
        crc = zlib.crc32(self.data) if self.crc is None else self.crc
        size = len(self.data) if self.declared is None else self.declared
        return crc, len(self.body), size

    def local(self) -> bytes:
        name = self.name if self.local_name is None else self.local_name
        head = (b"PK\x03\x04", 20, 0, self.flags, self.method, 0, 33, *self.sizes, len(name), 0)
        return LOCAL.pack(*head) + name + self.body

    def central(self, offset: int) -> bytes:
        head = (b"PK\x01\x02", 20, 3, 20, 0, self.flags, self.method, 0, 33, *self.sizes)
        tail = (len(self.name), 0, 0, 0, 0, self.mode << 16, offset)
        return CENTRAL.pack(*head, *tail) + self.name


def deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def zip_with(*entries: Entry, zip64: bool = False) -> bytes:
    """A zip of these members."""
    body, offsets = io.BytesIO(), []
    for entry in entries:
        offsets.append(body.tell())
        body.write(entry.local())
    central = b"".join(e.central(o) for e, o in zip(entries, offsets, strict=True))
    return body.getvalue() + central + ending(len(entries), len(central), body.tell(), zip64=zip64)


def ending(count: int, size: int, offset: int, *, zip64: bool = False, **wrong: int) -> bytes:
    """What ends a zip, and what of it is wrong."""
    if not zip64:
        return END.pack(b"PK\x05\x06", 0, 0, count, count, size, offset, 0)
    place = wrong.get("locator", offset + size)
    counts = (wrong.get("count", count), wrong.get("count", count))
    return (
        END64.pack(b"PK\x06\x06", 44, 45, 45, 0, 0, *counts, size, wrong.get("offset", offset))
        + LOCATOR.pack(b"PK\x06\x07", 0, place, 1)
        + END.pack(b"PK\x05\x06", 0, 0, FULL16, FULL16, FULL32, FULL32, 0)
    )


def listed_often(entry: Entry, count: int) -> bytes:
    """One member's bytes, and a directory that lists them under many names."""
    body = entry.local()
    crc, _, size = entry.sizes
    alike = {"method": entry.method, "packed": entry.body, "crc": crc, "declared": size}
    names = [f"train/a/{index:08}.png".encode() for index in range(count)]
    central = b"".join(Entry(name, **alike).central(0) for name in names)
    return body + central + ending(count, len(central), len(body), zip64=count >= FULL16)


def empty_members(count: int) -> bytes:
    """A zip of so many empty files."""
    entries = [Entry(b"%08d" % index) for index in range(count)]
    return zip_with(*entries, zip64=count >= FULL16)


def tar_header(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, **more: Any) -> bytes:
    """One header block (or several, for long names)."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    for key, value in more.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def with_checksum(block: bytes) -> bytes:
    """A changed header block, made consistent again."""
    blank = block[:148] + b" " * 8 + block[156:]
    return blank[:148] + b"%06o\0 " % sum(blank) + blank[156:]


def pax(records: dict[str, str], name: str = "a", size: int = 0) -> bytes:
    """An extended header, and the header of a file that it describes."""
    lines = b"".join(map(_record, records.items()))
    extension = tar_header("x", tarfile.XHDTYPE, len(lines)) + lines + bytes(-len(lines) % 512)
    return extension + tar_header(name, size=size)


def _record(item: tuple[str, str]) -> bytes:
    text = f" {item[0]}={item[1]}\n".encode("utf-8", "surrogateescape")
    length = len(text) + 1
    while len(str(length)) + len(text) != length:
        length = len(str(length)) + len(text)
    return str(length).encode() + text


def tar_with(*parts: bytes) -> bytes:
    """Blocks and what ends a tar."""
    return b"".join(parts) + bytes(1024)


def tar_file(name: str, data: bytes) -> bytes:
    """A file with its header."""
    return tar_header(name, size=len(data)) + data + bytes(-len(data) % 512)


def tar_files(names: Iterable[str]) -> bytes:
    """A tar of empty files."""
    return tar_with(*(tar_header(name) for name in names))
