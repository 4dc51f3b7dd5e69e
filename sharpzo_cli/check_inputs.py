"""What `sharpzo datasets check` looks at: a folder or an archive, and the images in it."""

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

_AHEAD = 4  # files for each thread that wait to be examined


@dataclass(frozen=True)
class Subject:
    """A dataset, wherever it is."""

    name: str
    layout: Layout
    images: Callable[[Collection[str]], Iterator[tuple[str, Load]]]
    """Of some of the layout's paths, each with what reads it; before the next one is asked for in
    an archive, at any time in a folder."""


@dataclass(frozen=True)
class Looked:
    """What looking into images gives."""

    facts: dict[str, ImageFacts]
    thumbnails: dict[str, Image.Image]


def open_subject(target: str, root: Path | None, seed: int) -> Subject:
    """Find a folder, a split file, an archive, or a dataset that is known by name.

    Raises:
        DatasetError: there is none, or a file of it is missing.
        UsageProblem: the archive cannot be read.
    """
    path = Path(target)
    if root is None and path.is_file() and not is_split_file(path.name):
        return _archive(path, seed)
    source = open_source(target, root, seed)

    def images(paths: Collection[str]) -> Iterator[tuple[str, Load]]:
        for image in sorted(paths):
            yield image, (source.folder / image).read_bytes

    return Subject(source.name, source.layout, images)


def look_into(
    subject: Subject,
    paths: Collection[str],
    shown: Collection[str],
    on_image: Callable[[], None],
) -> Looked:
    """Decode images, a thread for each core.

    Args:
        subject: the dataset.
        paths: images to look into.
        shown: those of them that thumbnails are wanted of.
        on_image: is called after each.

    Raises:
        UsageProblem: the archive cannot be read.
    """
    looked = Looked({}, {})
    threads = os.cpu_count() or 1
    waiting: deque[Future[tuple[ImageFacts, Image.Image | None]]] = deque()

    def take() -> None:
        facts, small = waiting.popleft().result()
        looked.facts[facts.path] = facts
        if small is not None:
            looked.thumbnails[facts.path] = small
        on_image()

    with ThreadPoolExecutor(threads) as pool:
        for path, load in subject.images(paths):
            waiting.append(pool.submit(_look, path, load, path in shown))
            while len(waiting) > _AHEAD * threads:
                take()
        while waiting:
            take()
    return looked


def _look(path: str, load: Load, show: bool) -> tuple[ImageFacts, Image.Image | None]:
    try:
        data = load()
    except OSError as error:
        fault = ImageError(f"the image cannot be read: {error.strerror} (see its permissions)")
        return ImageFacts(path, "", 0, 0, 0, fault), None
    facts, image = examine(path, data)
    return facts, thumbnail(image) if show and image is not None else None


def _archive(path: Path, seed: int) -> Subject:
    from sharpzo_core.storage.archives import sniff, walk

    with _told_of(path):
        kind = sniff(path)
        names: list[str] = []
        texts: dict[str, str] = {}
        for member in walk(path, kind, folders=True):
            names.append(member.path)
            if _is_metadata(member.path):
                texts[member.path] = _text(member.path, member.read())

    def images(paths: Collection[str]) -> Iterator[tuple[str, Load]]:
        with _told_of(path):
            for member in walk(path, kind):
                if member.path in paths:
                    data = member.read()  # here: another thread would come too late
                    yield member.path, lambda data=data: data  # type: ignore[misc] # bound now

    return Subject(path.name, detect_layout(names, texts.__getitem__, seed), images)


@contextmanager
def _told_of(path: Path) -> Iterator[None]:
    """What is wrong with an archive is wrong with the command's input."""
    from sharpzo_core.errors import CoreError

    try:
        yield
    except CoreError as error:
        raise UsageProblem(f"{path}: {error}", "give a folder, or pack it again") from error


def _is_metadata(path: str) -> bool:
    """Whether the layout may ask for the file's text, in the root or in the one top folder."""
    folder, _, name = path.rpartition("/")
    return "/" not in folder and (name == CLASS_NAMES_FILE or is_split_file(name))


def _text(path: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DatasetError(f"{path} is not UTF-8 (save it as UTF-8)") from None
