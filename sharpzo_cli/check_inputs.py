"""The input of `sharpzo datasets check`: a folder or an archive, and the images in it."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sharpzo_cli.errors import UsageProblem
from sharpzo_engine.data.class_names import CLASS_NAMES_FILE
from sharpzo_engine.data.contact_sheet import thumbnail
from sharpzo_engine.data.file_names import is_split_file
from sharpzo_engine.data.layout_detection import Layout, detect_layout
from sharpzo_engine.data.preflight import ImageFacts, examine
from sharpzo_engine.data.sources import open_source
from sharpzo_engine.errors import DatasetError, ImageError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from PIL import Image

    Load = Callable[[], bytes]  #: the content of one file

_QUEUED = 4  # files waiting to be examined, per thread


@dataclass(frozen=True)
class DatasetInput:
    name: str
    layout: Layout
    images: Callable[[Collection[str]], Iterator[tuple[str, Load]]]
    """Yields each of the given paths with a function that reads the file."""


@dataclass(frozen=True)
class Examined:
    facts: dict[str, ImageFacts]
    thumbnails: dict[str, Image.Image]


def open_input(target: str, root: Path | None, seed: int) -> DatasetInput:
    """Open a folder, a split file, an archive, or a dataset known by name.

    Raises:
        DatasetError: the dataset does not exist, or a file of it is missing.
        UsageProblem: the archive cannot be read.
    """
    path = Path(target)
    if root is None and path.is_file() and not is_split_file(path.name):
        return _archive(path, seed)
    source = open_source(target, root, seed)

    def images(paths: Collection[str]) -> Iterator[tuple[str, Load]]:
        for image in sorted(paths):
            yield image, (source.folder / image).read_bytes

    return DatasetInput(source.name, source.layout, images)


def examine_images(
    dataset: DatasetInput,
    paths: Collection[str],
    shown: Collection[str],
    on_image: Callable[[], None],
) -> Examined:
    """Decode images, with one thread per core.

    Args:
        dataset: the dataset.
        paths: the images to examine.
        shown: those of them to make thumbnails of.
        on_image: called after each image.

    Raises:
        UsageProblem: the archive cannot be read.
    """
    found = Examined({}, {})
    threads = os.cpu_count() or 1
    waiting: deque[Future[tuple[ImageFacts, Image.Image | None]]] = deque()

    def take() -> None:
        facts, small = waiting.popleft().result()
        found.facts[facts.path] = facts
        if small is not None:
            found.thumbnails[facts.path] = small
        on_image()

    with ThreadPoolExecutor(threads) as pool:
        for path, load in dataset.images(paths):
            waiting.append(pool.submit(_examine, path, load, path in shown))
            while len(waiting) > _QUEUED * threads:
                take()
        while waiting:
            take()
    return found


def _examine(path: str, load: Load, show: bool) -> tuple[ImageFacts, Image.Image | None]:
    try:
        data = load()
    except OSError as error:
        fault = ImageError(f"the image cannot be read: {error.strerror} (see its permissions)")
        return ImageFacts(path, "", 0, 0, 0, fault), None
    facts, image = examine(path, data)
    return facts, thumbnail(image) if show and image is not None else None


def _archive(path: Path, seed: int) -> DatasetInput:
    from sharpzo_core.storage.archives import sniff, walk

    with _as_usage_problem(path):
        kind = sniff(path)
        names: list[str] = []
        texts: dict[str, str] = {}
        for member in walk(path, kind, folders=True):
            names.append(member.path)
            if _is_metadata(member.path):
                texts[member.path] = _text(member.path, member.read())

    def images(paths: Collection[str]) -> Iterator[tuple[str, Load]]:
        with _as_usage_problem(path):
            for member in walk(path, kind):
                if member.path in paths:
                    data = member.read()  # now: a thread would read after `walk` has moved on
                    yield member.path, lambda data=data: data  # type: ignore[misc] # bound now

    return DatasetInput(path.name, detect_layout(names, texts.__getitem__, seed), images)


@contextmanager
def _as_usage_problem(path: Path) -> Iterator[None]:
    from sharpzo_core.errors import CoreError

    try:
        yield
    except CoreError as error:
        raise UsageProblem(f"{path}: {error}", "give a folder, or repack it") from error


def _is_metadata(path: str) -> bool:
    """Whether the layout may need the file's text: in the root, or in a single top folder."""
    folder, _, name = path.rpartition("/")
    return "/" not in folder and (name == CLASS_NAMES_FILE or is_split_file(name))


def _text(path: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DatasetError(f"{path} is not UTF-8 (save it as UTF-8)") from None
