"""`Source`: a dataset on this machine, found by a path or by a name of the catalogue."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sharpzo_engine.data.catalogue import CATALOGUE, KnownDataset, find
from sharpzo_engine.data.catalogue_readers import read_known, split_known
from sharpzo_engine.data.file_names import is_image, is_split_file
from sharpzo_engine.data.folders import list_files, list_folder, read_text
from sharpzo_engine.data.layout_detection import Layout, survey_layout, with_structure
from sharpzo_engine.data.split_file import read_split
from sharpzo_engine.errors import DatasetError

ROOT_VARIABLE = "SHARPZO_DATASETS_ROOT"  # folder of the catalogue's datasets


@dataclass(frozen=True)
class Source:
    """A dataset's name, its folder, and what is in it."""

    name: str
    folder: Path  #: that the layout's paths are relative to
    layout: Layout
    known: KnownDataset | None = None


def open_source(target: str | Path, root: str | Path | None = None, seed: int = 1) -> Source:
    """Find a dataset and survey it; problems of its content are findings of the layout.

    Args:
        target: a folder, a split file, or a name of the catalogue (`eurosat`). A path that exists
            wins over a name, unless there is a `root`.
        root: folder of the catalogue's datasets; none is that of SHARPZO_DATASETS_ROOT.
        seed: decides the split of a dataset that has none.

    Raises:
        DatasetError: there is no such dataset, or a file of it is missing.
    """
    return _opened(
        target,
        root,
        read_known,
        lambda folder: survey_layout(
            list_folder(folder), lambda path: read_text(folder / path), seed
        ),
    )


def open_unsplit(target: str | Path, root: str | Path | None = None, seed: int = 1) -> Source:
    """The same for a dataset that lacks its split file: class folders are split by seed.

    Raises:
        DatasetError: there is no such dataset, or nothing to split.
    """
    return _opened(
        target,
        root,
        lambda known, place: split_known(known, place, seed),
        lambda folder: survey_layout(
            _without_split_files(folder), lambda path: read_text(folder / path), seed
        ),
    )


def _opened(
    target: str | Path,
    root: str | Path | None,
    read_by_name: Callable[[KnownDataset, Path], Layout],
    read_folder: Callable[[Path], Layout],
) -> Source:
    path = Path(target)
    known = find(str(target)) if len(path.parts) == 1 else None
    if root is None and path.is_dir():
        return Source(path.resolve().name, path, read_folder(path))
    if root is None and path.is_file() and is_split_file(path.name):
        return Source(path.resolve().parent.name, path.parent, _of_split_file(path))
    if known is None:
        raise _unknown(target, root)
    place = root or os.environ.get(ROOT_VARIABLE)
    if not place:
        raise DatasetError(
            f"{known.title} needs the folder that holds {known.folder}/ (name it with --root, "
            f"root= or {ROOT_VARIABLE})"
        )
    return Source(known.key, Path(place) / known.folder, read_by_name(known, Path(place)), known)


def _unknown(target: str | Path, root: str | Path | None) -> DatasetError:
    names = ", ".join(known.key for known in CATALOGUE)
    if root is None and Path(target).is_file():
        return DatasetError(
            f"{target} is a file, but no split_zhou_*.json (unpack an archive and give its folder)"
        )
    if root is not None:
        return DatasetError(f"{target} is no dataset that is known by name (use one of: {names})")
    return DatasetError(
        f"{target} is not a folder, nor a dataset that is known by name (give the folder that "
        f"holds the classes, a split_zhou_*.json, or one of: {names})"
    )


def _of_split_file(path: Path) -> Layout:
    files = list_files(path.parent)
    layout = read_split(path.name, lambda name: read_text(path.parent / name), files)
    return with_structure(layout, sum(map(is_image, files)))


def _without_split_files(folder: Path) -> list[str]:
    return [path for path in list_folder(folder) if not is_split_file(path)]
