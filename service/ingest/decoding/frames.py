"""What the service and a decoding child say to each other, over two pipes.

    request   side of the thumbnail, then chunks of the file, each behind its length; 0 ends it
    answer    length of a JSON object and of raw pixels, then both

Nothing is ever unpickled, and lengths are checked before anything is read: neither side believes
the other more than that.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

CHUNK = 1 << 20  # bytes that one length may announce
MAX_JSON = 4096  # bytes
MAX_SIDE = 512  # pixels of a thumbnail
END = 0
ABORT = 0xFFFFFFFF  # in the place of a length: the file is not to be had, forget it

SIDE = struct.Struct(">H")
LENGTH = struct.Struct(">I")
ANSWER = struct.Struct(">II")

Read = Callable[[int], bytes]  #: so many bytes, less only at the end


class BrokenFrame(Exception):  # noqa: N818 - named for the fact
    """The other side ended, or said something that makes no sense."""


def read_exactly(read: Read, size: int) -> bytes:
    """So many bytes.

    Raises:
        BrokenFrame: the stream ends before.
    """
    data = read(size)
    if len(data) != size:
        raise BrokenFrame
    return data


def read_file(read: Read, max_bytes: int) -> tuple[int, bytes | None] | None:
    """The next request: side of the thumbnail and the file, None in its place if it was aborted.

    None instead of both if there is none.

    Raises:
        BrokenFrame: the request is cut, or larger than allowed.
    """
    head = read(SIDE.size)
    if len(head) < SIDE.size:
        return None
    (side,) = SIDE.unpack(head)
    data = bytearray()
    while True:
        (length,) = LENGTH.unpack(read_exactly(read, LENGTH.size))
        if length == ABORT:
            return side, None
        if length == END:
            return side, bytes(data)
        if length > CHUNK or len(data) + length > max_bytes:
            raise BrokenFrame
        data += read_exactly(read, length)


def answer(facts: dict[str, Any], pixels: bytes = b"") -> bytes:
    """An answer as bytes."""
    text = json.dumps(facts).encode()
    return ANSWER.pack(len(text), len(pixels)) + text + pixels


def read_answer(read: Read) -> tuple[dict[str, Any], bytes]:
    """The next answer: facts, and the pixels of a thumbnail.

    Raises:
        BrokenFrame: there is none, or it is no answer.
    """
    text_size, pixel_size = ANSWER.unpack(read_exactly(read, ANSWER.size))
    if text_size > MAX_JSON or pixel_size > 3 * MAX_SIDE**2:
        raise BrokenFrame
    try:
        facts = json.loads(read_exactly(read, text_size))
    except (ValueError, RecursionError):
        raise BrokenFrame from None
    if not isinstance(facts, dict):
        raise BrokenFrame
    return facts, read_exactly(read, pixel_size)
