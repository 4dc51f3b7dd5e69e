"""What a file is by its name."""

from __future__ import annotations

import re

from sharpzo_engine.data.layout import SPLITS

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
_IGNORED = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini"})
_SPLIT_ALIASES = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}
#: Of images that are not read, and that somebody may miss.
_OTHER_IMAGES = frozenset(
    {".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".tif", ".tiff"}
)


def is_litter(path: str) -> bool:
    """Whether a file was left by an operating system or is hidden."""
    return any(part in _IGNORED or part.startswith(".") for part in path.split("/"))


def is_image(path: str) -> bool:
    """Whether a file's name is that of an image that is read."""
    return suffix_of(path) in IMAGE_SUFFIXES


def suffix_of(path: str) -> str:
    """As of pathlib, which takes ten times as long; a dataset may have a million files."""
    stem, _, suffix = path.rpartition("/")[2].rpartition(".")
    return f".{suffix.lower()}" if stem else ""


def is_split_file(path: str) -> bool:
    """Whether a file in the dataset's root is CoOp's split file."""
    return re.fullmatch(r"split_zhou_[^/]*\.json", path) is not None


def is_other_image(path: str) -> bool:
    """Whether a file's name is that of an image that is not read."""
    return suffix_of(path) in _OTHER_IMAGES


def split_name(folder: str) -> str | None:
    """The split that a folder holds by its name, if any."""
    name = _SPLIT_ALIASES.get(folder.lower(), folder.lower())
    return name if name in SPLITS else None
