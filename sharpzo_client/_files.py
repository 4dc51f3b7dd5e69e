"""Local files: packing folders, reading images, writing downloads."""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Protocol, TypeAlias, runtime_checkable

from sharpzo_client._constants import IMAGE_SUFFIXES
from sharpzo_client._operation import Part
from sharpzo_client.errors import DownloadError, InputError

BINARY = "application/octet-stream"
#: Files that describe the images.
DESCRIPTIONS = ("classnames.json", "split_zhou_*.json")
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")


@runtime_checkable
class SavesImage(Protocol):
    """An image that can write itself to a file, as Pillow's images do."""

    def save(self, fp: BinaryIO, format: str) -> object:  # noqa: A002 - Pillow's own name
        """Write the image to `fp`."""


ImageInput: TypeAlias = str | os.PathLike[str] | bytes | SavesImage


def open_archive(path: Path) -> BinaryIO:
    """Open a dataset as an archive; a folder is packed to a temporary zip.

    Raises:
        InputError: the path does not exist, or is not a dataset.
    """
    if path.is_dir():
        return pack_folder(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    if not path.name.lower().endswith(ARCHIVE_SUFFIXES):
        raise InputError(
            f"{path} is neither a folder nor an archive ({', '.join(ARCHIVE_SUFFIXES)})"
        )
    return _open(path)


def archive_name(path: Path) -> str:
    resolved = path.resolve()
    return f"{resolved.name}.zip" if path.is_dir() else resolved.name


def pack_folder(folder: Path) -> BinaryIO:
    """Pack the images and descriptions of a folder, uncompressed, into a temporary zip on disk.

    Hidden files and folders are skipped. The zip is deleted when it is closed.

    Raises:
        InputError: the folder has no images, or a file cannot be read.
    """
    names = sorted(dataset_files(folder))
    if not any(Path(name).suffix.lower() in IMAGE_SUFFIXES for name in names):
        raise InputError(f"{folder} has no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    target = tempfile.TemporaryFile(prefix="sharpzo-", suffix=".zip")  # noqa: SIM115 - returned
    try:
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED, strict_timestamps=False) as archive:
            for name in names:
                archive.write(folder / name, name)
    except OSError as error:
        target.close()
        raise InputError(f"{folder} cannot be packed: {error}") from error
    target.seek(0)
    return target


def dataset_files(folder: Path) -> Iterator[str]:
    """Yield the files of a dataset, relative to `folder`; each link is followed once."""
    visited: set[str] = set()
    for here, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = [name for name in folders if not _is_hidden(name)]
        base = Path(here).relative_to(folder)
        yield from ((base / name).as_posix() for name in files if _belongs(name))


def _belongs(name: str) -> bool:
    is_image = Path(name).suffix.lower() in IMAGE_SUFFIXES
    return not _is_hidden(name) and (is_image or any(fnmatch(name, like) for like in DESCRIPTIONS))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def read_image(image: ImageInput, index: int) -> tuple[str, bytes]:
    """Return the file name and bytes of one image for a classify request.

    Raises:
        InputError: the file cannot be read.
        TypeError: it is neither a path, nor bytes, nor an object with Pillow's `save`.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        return f"image-{index}", bytes(image)
    if isinstance(image, str | os.PathLike):
        path = Path(image)
        return path.name, _read(path)
    if isinstance(image, SavesImage):
        buffer = BytesIO()
        image.save(buffer, format="PNG")
        return f"image-{index}.png", buffer.getvalue()
    raise TypeError(f"images must be paths, bytes or Pillow images, not {type(image).__name__}")


def artifact_part(source: str | os.PathLike[str] | bytes) -> Part:
    if isinstance(source, bytes):
        return Part("file", "prompt.safetensors", source, BINARY)
    path = Path(source)
    return Part("file", path.name, _read(path), BINARY)


def write_verified(path: Path, content: bytes, sha256: str | None) -> Path:
    """Write a download to `path` completely, or leave `path` unchanged.

    Raises:
        DownloadError: the content does not have the hash `sha256`.
        InputError: `path` cannot be written.
    """
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and found != sha256:
        raise DownloadError(f"the SHA-256 is {found} instead of {sha256} (download it again)")
    with replacing(path) as file:
        file.write(content)
    return path


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that becomes `path` if the block succeeds; otherwise `path` is unchanged.

    Raises:
        InputError: `path` cannot be written.
    """
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
        except BaseException:
            with suppress(FileNotFoundError):
                Path(temporary).unlink()
            raise
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}") from error


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _read(path: Path) -> bytes:
    with _open(path) as file:
        return file.read()
