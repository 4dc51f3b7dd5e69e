"""Checks of member names, although they are never used as paths here."""

import unicodedata

from sharpzo_core.errors import ArchiveError

MAX_PATH = 1024  # characters
MAX_COMPONENT = 255  # bytes
MAX_DEPTH = 32  # folders within one another

_BIDI_CONTROLS = frozenset(
    "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)
_CONTROLS = ("Cc", "Cs", "Zl", "Zp")


def safe_path(name: str) -> str:
    """The posix path of a member, without a leading `./` and without a trailing slash.

    Raises:
        ArchiveError: `archive_unsafe_path`.
    """
    if len(name) > MAX_PATH:
        raise unsafe_path("a member's name is too long")
    if not (name.isascii() and name.isprintable()):
        _check_characters(name)
    if name.startswith("/") or "\\" in name or name[1:2] == ":":
        raise unsafe_path("a member's name is an absolute or a Windows path")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise unsafe_path("a member's name points outside the archive ('..')")
    if len(parts) > MAX_DEPTH:
        raise unsafe_path(f"a member is more than {MAX_DEPTH} folders deep")
    if any(len(part.encode()) > MAX_COMPONENT for part in parts):
        raise unsafe_path("a member's name is too long")
    return "/".join(parts)


def _check_characters(name: str) -> None:
    if any(unicodedata.category(c) in _CONTROLS or c in _BIDI_CONTROLS for c in name):
        raise unsafe_path("a member's name holds control characters or is not UTF-8")


def unsafe_path(message: str) -> ArchiveError:
    return ArchiveError("archive_unsafe_path", message)
