"""Which kind of file a path is, judged by its name alone."""

from __future__ import annotations

import re

from sharpzo_engine.data.layout import SPLITS

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
_IGNORED = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini"})
_SPLIT_ALIASES = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}
#: Suffixes of unsupported image formats, which are reported.
_OTHER_IMAGES = frozenset(
    {".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".tif", ".tiff"}
)


def is_litter(path: str) -> bool:
    """Whether a file is hidden or created by an operating system."""
    return any(part in _IGNORED or part.startswith(".") for part in path.split("/"))


def is_image(path: str) -> bool:
    """Whether the file is an image of a supported format."""
    return suffix_of(path) in IMAGE_SUFFIXES


def suffix_of(path: str) -> str:
    """The suffix in lower case. pathlib takes ten times as long, and datasets have many files."""
    stem, _, suffix = path.rpartition("/")[2].rpartition(".")
    return f".{suffix.lower()}" if stem else ""


def is_split_file(path: str) -> bool:
    """Whether the path is a CoOp split file in the dataset's root."""
    return re.fullmatch(r"split_zhou_[^/]*\.json", path) is not None


def is_other_image(path: str) -> bool:
    """Whether the file is an image of an unsupported format."""
    return suffix_of(path) in _OTHER_IMAGES


def split_name(folder: str) -> str | None:
    """The split that a folder's name stands for, or None."""
    name = _SPLIT_ALIASES.get(folder.lower(), folder.lower())
    return name if name in SPLITS else None
