"""`contact_sheet`: one picture with a few images of each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont, ImageOps

THUMBNAIL = 96  # pixels along a side
PER_CLASS = 6  # images shown per class
MAX_CLASSES = 60  # rows; a picture of a thousand classes is unreadable
_GAP, _MARGIN, _NAME_WIDTH, _FONT_SIZE = 6, 16, 200, 15
_BACKGROUND, _INK, _FAINT = "#fbfbf9", "#22252a", "#8a8f98"


def thumbnail(image: Image.Image, size: int = THUMBNAIL) -> Image.Image:
    """A small copy of an image for the sheet [at most size x size], with the same aspect ratio."""
    small = image.copy()
    small.thumbnail((size, size))
    return small


def contact_sheet(
    thumbnails: Mapping[str, Sequence[Image.Image]],
    *,
    per_class: int = PER_CLASS,
    max_classes: int = MAX_CLASSES,
) -> Image.Image:
    """Draw a row for each class: its name, then its images.

    Args:
        thumbnails: class name -> small RGB images, as of `thumbnail`.
        per_class: images shown per class.
        max_classes: classes shown; the number of further classes is written below.

    Returns:
        An RGB image with a light background. Names that are too long are truncated; characters
        that the font lacks are drawn as boxes.
    """
    shown = list(thumbnails.items())[:max_classes]
    more = len(thumbnails) - len(shown)
    row = THUMBNAIL + _GAP
    width = 2 * _MARGIN + _NAME_WIDTH + per_class * row
    height = 2 * _MARGIN + max(1, len(shown)) * row + (row // 2 if more else 0)
    sheet = Image.new("RGB", (width, height), _BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_SIZE)
    for index, (name, images) in enumerate(shown):
        top = _MARGIN + index * row
        middle = top + THUMBNAIL // 2
        draw.text((_MARGIN, middle), _fitting(name, font), _INK, font, "lm")
        for column, image in enumerate(images[:per_class]):
            tile = ImageOps.pad(image.convert("RGB"), (THUMBNAIL, THUMBNAIL), color=_BACKGROUND)
            sheet.paste(tile, (_MARGIN + _NAME_WIDTH + column * row, top))
        if not images:
            draw.text((_MARGIN + _NAME_WIDTH, middle), "no images", _FAINT, font, "lm")
    if more or not shown:
        text = f"and {more} more classes" if more else "no classes"
        draw.text((_MARGIN, height - _MARGIN), text, _FAINT, font, "ls")
    return sheet


def _fitting(name: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The name on one line, truncated to the column's width."""
    # Control characters, line breaks and direction marks would move the other text.
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name[:200])
    room = _NAME_WIDTH - 2 * _GAP
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(f"{text}...") > room:
        text = text[:-1]
    return f"{text}..."
