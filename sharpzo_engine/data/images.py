"""Decodes one image from untrusted bytes. Does not load torch."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from PIL import Image, ImageOps, UnidentifiedImageError

from sharpzo_engine.errors import ImageError

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_IMAGE_PIXELS = 50_000_000

#: Errors that Pillow raises for damaged files, found by decoding mutated images of every format.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    OverflowError,
    TypeError,
    struct.error,
)

_JPEG = b"\xff\xd8\xff"
_BEGINNINGS = (_JPEG, b"\x89PNG\r\n\x1a\n")  # of JPEG and PNG files
_DAMAGED = "the image is damaged or incomplete (save it again)"

# Each scan of a JPEG takes time for the whole picture, but may be as short as 80 bytes. Encoders
# write about ten.
_MAX_SCANS = 64
_MAX_SEGMENTS = 10_000  # checked in a JPEG that may have too many scans
#: Reads per file; Pillow reads segments and chunks one by one, and keeps some of them.
_MAX_READS = 250_000
_SCAN, _END = 0xDA, 0xD9
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")  # of a segment, or of the end

_BAND = 256  # rows blended with white at a time

_ORIENTATION = 0x0112  # EXIF tag
_NOT_UPRIGHT = frozenset({2, 3, 4, 5, 6, 7, 8})  # orientations to correct
_TURNED = frozenset({5, 6, 7, 8})  # orientations that swap width and height


@dataclass(frozen=True, slots=True)
class Inspection:
    """The properties of a usable image."""

    width: int  #: Pixels, upright
    height: int
    format: str  #: One of `FORMATS`
    thumbnail: Image.Image | None = None  #: RGB, upright


def decode_image(
    data: bytes,
    max_pixels: int = MAX_IMAGE_PIXELS,
    admit: Callable[[int], object] | None = None,
) -> Image.Image:
    """Decode JPEG, PNG or WebP bytes to an upright RGB image (the first frame of an animation).

    The image's `format` is set to the file's format.

    Args:
        data: The file's content.
        max_pixels: Larger images are rejected before they are decoded.
        admit: Called with the number of pixels before memory is allocated; it may wait.

    Raises:
        ImageError: code `image_format_not_allowed`, `image_too_large` or `image_undecodable`.
    """
    with _translated(data, max_pixels):
        image = _open(data, max_pixels)
        if admit is not None:
            admit(image.width * image.height)
        kind = image.format
        rgb = _without_alpha(_upright(image))
        rgb.format = kind  # Pillow drops it when it converts
        return rgb


def inspect_image(
    data: bytes, max_pixels: int = MAX_IMAGE_PIXELS, thumbnail: int = 0
) -> Inspection:
    """Check whether `decode_image` accepts these bytes, faster than by decoding in full size.

    The whole file is read, but a JPEG is decoded at the smallest sufficient scale.

    Args:
        data: The file's content.
        max_pixels: Larger images are rejected before they are decoded.
        thumbnail: Side in pixels of the square that the thumbnail fits into; 0 for no thumbnail.

    Raises:
        ImageError: as `decode_image` does.
    """
    with _translated(data, max_pixels):
        image = _open(data, max_pixels)
        size, name = image.size, str(image.format)
        # Grey takes a little less time, and still reads every bit.
        image.draft(None if thumbnail else "L", (max(1, thumbnail),) * 2)
        image.load()
        turned = image.getexif().get(_ORIENTATION) in _TURNED
        small = _without_alpha(_upright(image))
        if thumbnail:
            small.thumbnail((thumbnail, thumbnail))
        width, height = reversed(size) if turned else size
        return Inspection(width, height, name, small if thumbnail else None)


def _open(data: bytes, max_pixels: int) -> Image.Image:
    if data.startswith(_JPEG) and data.count(bytes((0xFF, _SCAN))) > _MAX_SCANS:
        _check_scans(data)
    image = Image.open(_File(data), formats=FORMATS)
    if image.width * image.height > max_pixels:
        raise _too_large(max_pixels)
    return image


class _File(io.BytesIO):
    """A file that allows a limited number of reads."""

    _reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads += 1
        if self._reads > _MAX_READS:
            raise ImageError("the image's file has too many parts (save it again)")
        return super().read(size)


def _check_scans(data: bytes) -> None:
    """Count the scans; markers inside a film that is appended to the picture do not count.

    Raises:
        ImageError: there are too many scans.
    """
    scans, at = 0, len(_JPEG) - 1
    for _ in range(_MAX_SEGMENTS):
        found = _MARKER.search(data, at)
        if found is None or found[1][0] == _END:
            return
        scans += found[1][0] == _SCAN
        if scans > _MAX_SCANS:
            break
        at = found.end() + max(2, int.from_bytes(data[found.end() : found.end() + 2], "big"))
    raise ImageError("the image's file has too many parts (save it again)")


@contextmanager
def _translated(data: bytes, max_pixels: int) -> Iterator[None]:
    """Translate Pillow's errors into `ImageError`."""
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(max_pixels) from None
    except UnidentifiedImageError:
        raise _not_an_allowed_format(data) from None
    except _DECODE_ERRORS:
        raise ImageError(_DAMAGED) from None


# The largest pictures take 200 MB, so the functions below avoid copies.


def _upright(image: Image.Image) -> Image.Image:
    image.load()  # EXIF data may follow the picture
    if image.getexif().get(_ORIENTATION) in _NOT_UPRIGHT:
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _without_alpha(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        return _on_white(image)
    if image.mode.startswith("I;16"):
        # Pillow clips 16-bit samples when it converts, so use their high byte.
        return image.point(lambda sample: sample / 256).convert("L").convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    canvas = Image.new("RGB", image.size, "white")
    for top in range(0, image.height, _BAND):
        box = (0, top, image.width, min(top + _BAND, image.height))
        band = image.crop(box).convert("RGBA")
        canvas.paste(band, box, band.getchannel("A"))
    return canvas


def _too_large(max_pixels: int) -> ImageError:
    message = f"the image has more than {max_pixels} pixels (resize it)"
    return ImageError(message, "image_too_large")


def _not_an_allowed_format(data: bytes) -> ImageError:
    if not data:
        return ImageError("the image file is empty (save it again)")
    if data.startswith(_BEGINNINGS) or (data[:4], data[8:12]) == (b"RIFF", b"WEBP"):
        return ImageError(_DAMAGED)
    message = "the image is not JPEG, PNG or WebP (convert it)"
    return ImageError(message, "image_format_not_allowed")
