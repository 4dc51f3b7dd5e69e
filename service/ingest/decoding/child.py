"""A decoding process: reads image files from stdin, answers with their size and format.

Arguments: maximum pixels of an image, maximum bytes of its file, seconds, bytes of memory.
"""

import io
import os
import sys
from collections.abc import Sequence
from typing import Any

from PIL import Image

from service.ingest.decoding.confinement import confine, limit_processor_time
from service.ingest.decoding.frames import BrokenFrame, answer, read_file
from sharpzo_engine.data.images import FORMATS, inspect_image
from sharpzo_engine.errors import ImageError

_BUFFER = 256 << 10
_REPLY = 3  # the descriptor of answers


def main(arguments: Sequence[str]) -> None:
    max_pixels, max_bytes, seconds, memory = map(int, arguments)
    os.dup2(1, _REPLY)
    os.dup2(2, 1)  # output of libraries must not mix with answers
    _warm_up()
    confine(memory, _REPLY + 1)
    _send(answer({"ready": True}))
    with os.fdopen(0, "rb", buffering=_BUFFER) as source:
        while (request := read_file(source.read, max_bytes)) is not None:
            limit_processor_time(seconds)
            side, data = request
            if data is not None:
                _send(answer(*_inspected(data, max_pixels, side)))


def _inspected(data: bytes, max_pixels: int, side: int) -> tuple[dict[str, Any], bytes]:
    try:
        found = inspect_image(data, max_pixels, side)
    except ImageError as error:
        return {"code": error.code, "message": str(error)}, b""
    except MemoryError:
        message = "the image needs too much memory to decode (save it again)"
        return {"code": ImageError.code, "message": message}, b""
    facts = {"width": found.width, "height": found.height, "format": found.format}
    if found.thumbnail is None:
        return facts, b""
    return facts | {"thumbnail": found.thumbnail.size}, found.thumbnail.tobytes()


def _warm_up() -> None:
    """Load every module that decoding needs while files can still be opened."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in FORMATS:
        stream = io.BytesIO()
        Image.new("RGB", (16, 8)).save(stream, kind, exif=exif)
        inspect_image(stream.getvalue(), thumbnail=4)


def _send(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(_REPLY, view) :]


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (BrokenFrame, BrokenPipeError, KeyboardInterrupt):
        sys.exit(1)
