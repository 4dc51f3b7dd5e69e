"""The protocol between the service and a decoding process, over two pipes.

    request   side of the thumbnail, then chunks of the file, each after its length; 0 ends it
    answer    length of a JSON object and of raw pixels, then both

Nothing is unpickled, and lengths are checked before anything is read: neither side trusts the
other.
"""

import json
import struct
from collections.abc import Callable
from typing import Any

CHUNK = 1 << 20  # maximum bytes of one chunk
MAX_JSON = 4096  # bytes
MAX_SIDE = 512  # pixels of a thumbnail
END = 0
ABORT = 0xFFFFFFFF  # in place of a length: the file cannot be read, drop it

SIDE = struct.Struct(">H")
LENGTH = struct.Struct(">I")
ANSWER = struct.Struct(">II")

Read = Callable[[int], bytes]  #: returns fewer bytes only at the end


class BrokenFrame(Exception):  # noqa: N818 - named after what happened
    """The other side ended, or sent something invalid."""


def read_exactly(read: Read, size: int) -> bytes:
    """Read `size` bytes.

    Raises:
        BrokenFrame: the stream ends first.
    """
    data = read(size)
    if len(data) != size:
        raise BrokenFrame
    return data


def read_file(read: Read, max_bytes: int) -> tuple[int, bytes | None] | None:
    """Read the next request: the thumbnail's side and the file, or None for an aborted file.

    Returns None after the last request.

    Raises:
        BrokenFrame: the request is truncated, or larger than allowed.
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
    text = json.dumps(facts).encode()
    return ANSWER.pack(len(text), len(pixels)) + text + pixels


def read_answer(read: Read) -> tuple[dict[str, Any], bytes]:
    """Read the next answer: facts, and the pixels of a thumbnail.

    Raises:
        BrokenFrame: there is none, or it is not valid.
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
