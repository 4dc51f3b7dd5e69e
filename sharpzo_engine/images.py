"""Decoding one image from bytes, with the checks that untrusted bytes need. No torch here."""

from __future__ import annotations

import io
import struct

from PIL import Image, ImageOps, UnidentifiedImageError

from sharpzo_engine.errors import ImageError

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_IMAGE_PIXELS = 50_000_000

#: What Pillow raises on damaged files, measured on mutated images of every format.
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


def decode_image(data: bytes, max_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """Decode JPEG, PNG or WebP bytes to an upright RGB image (the first frame of an animation).

    The image's `format` says which of the three it was.

    Raises:
        ImageError: code `image_format_not_allowed`, `image_too_large` or `image_undecodable`.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > max_pixels:
            raise _too_large(max_pixels)
        return _to_rgb(ImageOps.exif_transpose(image), image.format)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(max_pixels) from None
    except UnidentifiedImageError:
        raise _not_an_allowed_format(data) from None
    except _DECODE_ERRORS:
        raise ImageError("the image is damaged or incomplete (save it again)") from None


def _to_rgb(image: Image.Image, kind: str | None) -> Image.Image:
    rgb = _without_alpha(image)
    rgb.format = kind  # which Pillow forgets when it converts
    return rgb


def _without_alpha(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGB", rgba.size, "white")
        canvas.paste(rgba, mask=rgba.getchannel("A"))
        return canvas
    if image.mode.startswith("I;16"):
        # Pillow clips 16-bit samples when it converts; the high byte keeps the picture.
        return image.point(lambda sample: sample / 256).convert("L").convert("RGB")
    return image.convert("RGB")


def _too_large(max_pixels: int) -> ImageError:
    message = f"the image has more than {max_pixels} pixels (make it smaller)"
    return ImageError(message, "image_too_large")


def _not_an_allowed_format(data: bytes) -> ImageError:
    if not data:
        return ImageError("the image is empty (0 bytes)")
    message = "the image is not JPEG, PNG or WebP (convert it)"
    return ImageError(message, "image_format_not_allowed")
