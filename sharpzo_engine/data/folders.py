"""Listing folders and reading the small text files in them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from sharpzo_engine.errors import DatasetError


def list_files(root: Path) -> list[str]:
    """List the files below a folder as relative posix paths; follows links.

    Raises:
        DatasetError: a folder cannot be listed.
    """
    return [path for path in _walk(root) if not path.endswith("/")]


def list_folder(root: Path) -> list[str]:
    """List the files below a folder, and the folders, which end in a slash.

    Raises:
        DatasetError: a folder cannot be listed.
    """
    return list(_walk(root))


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        DatasetError: the file cannot be read or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DatasetError(f"{path} is not UTF-8 (save it as UTF-8)") from None
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror})") from error


def _walk(root: Path) -> Iterator[str]:
    seen: set[str] = set()
    for place, folders, files in os.walk(root, onerror=_refuse, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link to a folder that contains it
            folders.clear()
            continue
        seen.add(real)
        below = os.path.relpath(place, root).replace(os.sep, "/")
        prefix = "" if below == "." else f"{below}/"
        yield from (f"{prefix}{name}/" for name in folders)
        yield from (prefix + name for name in files)


def _refuse(error: OSError) -> None:
    raise DatasetError(
        f"{error.filename} cannot be listed: {error.strerror} (check its permissions)"
    ) from error
