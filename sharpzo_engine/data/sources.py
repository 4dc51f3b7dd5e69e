"""`Source`: a local dataset, found by its path or by its name in the catalogue."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sharpzo_engine.data.catalogue import CATALOGUE, KnownDataset, find
from sharpzo_engine.data.catalogue_readers import read_known, split_known
from sharpzo_engine.data.file_names import is_image, is_split_file
from sharpzo_engine.data.folders import list_files, list_folder, read_text
from sharpzo_engine.data.layout_detection import Layout, detect_layout, with_structure
from sharpzo_engine.data.split_file import read_split
from sharpzo_engine.errors import DatasetError

ROOT_VARIABLE = "SHARPZO_DATASETS_ROOT"  # folder of the catalogue's datasets


@dataclass(frozen=True)
class Source:
    """A dataset's name, folder and layout."""

    name: str
    folder: Path  #: the layout's paths are relative to it
    layout: Layout
    known: KnownDataset | None = None


def open_source(target: str | Path, root: str | Path | None = None, seed: int = 1) -> Source:
    """Find a dataset and detect its layout; its problems are in the layout's findings.

    Args:
        target: a folder, a split file, or a name in the catalogue (`eurosat`). An existing path
            takes precedence over a name, unless `root` is given.
        root: folder of the catalogue's datasets; None uses SHARPZO_DATASETS_ROOT.
        seed: decides the split of a dataset that has none.

    Raises:
        DatasetError: the dataset does not exist, or one of its files is missing.
    """
    return _opened(
        target,
        root,
        read_known,
        lambda folder: detect_layout(
            list_folder(folder), lambda path: read_text(folder / path), seed
        ),
    )


def open_unsplit(target: str | Path, root: str | Path | None = None, seed: int = 1) -> Source:
    """Find a dataset and split its class folders by seed, ignoring any split file.

    Raises:
        DatasetError: the dataset does not exist, or has no class folders.
    """
    return _opened(
        target,
        root,
        lambda known, place: split_known(known, place, seed),
        lambda folder: detect_layout(
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
            f"{known.title} needs the folder that contains {known.folder}/ (set it with --root, "
            f"root= or {ROOT_VARIABLE})"
        )
    return Source(known.key, Path(place) / known.folder, read_by_name(known, Path(place)), known)


def _unknown(target: str | Path, root: str | Path | None) -> DatasetError:
    names = ", ".join(known.key for known in CATALOGUE)
    if root is None and Path(target).is_file():
        return DatasetError(
            f"{target} is a file, but not a split_zhou_*.json (unpack archives and pass the folder)"
        )
    if root is not None:
        return DatasetError(f"{target} is not the name of a known dataset (use one of: {names})")
    return DatasetError(
        f"{target} is neither a folder nor the name of a known dataset (pass the folder that "
        f"contains the classes, a split_zhou_*.json, or one of: {names})"
    )


def _of_split_file(path: Path) -> Layout:
    files = list_files(path.parent)
    layout = read_split(path.name, lambda name: read_text(path.parent / name), files)
    return with_structure(layout, sum(map(is_image, files)))


def _without_split_files(folder: Path) -> list[str]:
    return [path for path in list_folder(folder) if not is_split_file(path)]
