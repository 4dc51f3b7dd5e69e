"""Which classes and splits a list of file paths holds. Pure strings: folders and archives alike.

Accepted forms (all with or without one common top folder):
- `train/<class>/*`, optional `val/<class>/*` and `test/<class>/*`;
- `<class>/*` alone, split 60/20/20 per class by seed;
- a CoOp split file `split_zhou_*.json` beside its images.
`classnames.json` maps a folder's name to the class name that is shown and put into the prompt.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from sharpzo_engine.errors import DatasetError

SPLITS = ("train", "val", "test")
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
MAX_CLASSES = 10_000
MAX_CLASS_NAME = 200  # characters
TRAIN_SHARE, VAL_SHARE = 0.6, 0.2  # of each class, where the dataset has no splits of its own

_CLASS_NAMES = "classnames.json"
_IGNORED = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini"})
_SPLIT_ALIASES = {"valid": "val", "validation": "val"}

ReadText = Callable[[str], str]


@dataclass(frozen=True)
class Entry:
    """One labelled image: its path below the dataset's root (posix) and its class index."""

    path: str
    label: int


@dataclass(frozen=True)
class Layout:
    """The classes and splits of a dataset."""

    class_names: tuple[str, ...]  #: display names, in label order
    splits: Mapping[str, tuple[Entry, ...]]  #: train, val and test
    skipped: int = 0  #: files that are neither images nor metadata

    def counts(self) -> dict[str, dict[str, int]]:
        """Split name -> class name -> number of images; zero included."""
        return {split: _count(entries, self.class_names) for split, entries in self.splits.items()}


def read_layout(paths: Iterable[str], read_text: ReadText, seed: int = 1) -> Layout:
    """Recognise the form of a dataset from its file paths.

    Args:
        paths: posix paths of the files, relative to the root.
        read_text: returns the text of one of them (used for the JSON files).
        seed: decides the split of a dataset that has none.

    Raises:
        DatasetError: naming every problem found.
    """
    visible = sorted(path for path in paths if not _is_ignored(path))
    top = _common_top(visible)
    files = [path.removeprefix(top) for path in visible]
    split_files = [f for f in files if "/" not in f and f.startswith("split_zhou_")]
    names = _display_names(files, lambda path: read_text(top + path))
    if split_files:
        layout = _from_split_file(read_text(top + split_files[0]), files)
    else:
        layout = _from_folders(files, names, seed)
    _check(layout)
    return Layout(
        layout.class_names,
        {
            split: tuple(Entry(top + entry.path, entry.label) for entry in entries)
            for split, entries in layout.splits.items()
        },
        skipped=sum(not _is_image(f) and not f.endswith(".json") for f in files),
    )


def list_images(paths: Iterable[str]) -> tuple[list[str], int]:
    """Every image in whatever folder, sorted, and how many other files there are.

    Raises:
        DatasetError: there is none.
    """
    files = sorted(path for path in paths if not _is_ignored(path))
    images = [path for path in files if _is_image(path)]
    if not images:
        raise DatasetError(f"no images found (expected {', '.join(sorted(IMAGE_SUFFIXES))})")
    return images, len(files) - len(images)


def _is_ignored(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return any(part in _IGNORED or part.startswith(".") for part in parts)


def _is_image(path: str) -> bool:
    return PurePosixPath(path).suffix.lower() in IMAGE_SUFFIXES


def _common_top(paths: Sequence[str]) -> str:
    """The one folder that holds everything, with its slash; empty if there is none."""
    tops = {path.split("/", 1)[0] for path in paths}
    if len(tops) != 1 or any("/" not in path for path in paths):
        return ""
    top = tops.pop()
    # A dataset whose only folder is a split, or a single class, is no wrapper.
    holds_folders = any(path.count("/") > 1 for path in paths)
    return "" if _split_name(top) or not holds_folders else f"{top}/"


def _split_name(folder: str) -> str | None:
    name = _SPLIT_ALIASES.get(folder.lower(), folder.lower())
    return name if name in SPLITS else None


def _display_names(files: Sequence[str], read_text: ReadText) -> Mapping[str, str]:
    if _CLASS_NAMES not in files:
        return {}
    names = _parse_json(read_text(_CLASS_NAMES), _CLASS_NAMES)
    if not isinstance(names, dict) or not all(isinstance(v, str) for v in names.values()):
        raise DatasetError(f"{_CLASS_NAMES} must map folder names to class names (strings)")
    return names


def _parse_json(text: str, name: str) -> Any:  # noqa: ANN401 - the caller checks
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise DatasetError(f"{name} is not valid JSON (mend the file)") from None


def _from_folders(files: Sequence[str], names: Mapping[str, str], seed: int) -> Layout:
    images = [PurePosixPath(f) for f in files if _is_image(f)]
    if any(_split_name(image.parts[0]) for image in images if len(image.parts) > 2):
        return _from_split_folders(images, names)
    return _split_by_seed([(i.parts[0], str(i)) for i in images if len(i.parts) > 1], names, seed)


def _from_split_folders(images: Sequence[PurePosixPath], names: Mapping[str, str]) -> Layout:
    found: dict[str, list[tuple[str, str]]] = {split: [] for split in SPLITS}
    for image in images:
        split = _split_name(image.parts[0])
        if split and len(image.parts) > 2:
            found[split].append((image.parts[1], str(image)))
    folders = sorted({folder for folder, _ in found["train"]})
    _check_labels_agree(found, folders)
    index = {folder: label for label, folder in enumerate(folders)}
    return Layout(
        tuple(display_name(folder, names) for folder in folders),
        {split: tuple(Entry(p, index[f]) for f, p in found[split]) for split in SPLITS},
    )


def _check_labels_agree(
    found: Mapping[str, Sequence[tuple[str, str]]], folders: Sequence[str]
) -> None:
    for split in ("val", "test"):
        unknown = sorted({folder for folder, _ in found[split]} - set(folders))
        if unknown:
            listed = ", ".join(repr(folder) for folder in unknown[:5])
            raise DatasetError(
                f"{split}/ has classes that train/ lacks: {listed} (class folders must have the "
                "same names in every split, case included)"
            )


def _split_by_seed(
    labelled: Sequence[tuple[str, str]], names: Mapping[str, str], seed: int
) -> Layout:
    by_folder: dict[str, list[str]] = {}
    for folder, path in sorted(labelled):
        by_folder.setdefault(folder, []).append(path)
    rng = random.Random(seed)  # noqa: S311 - a split, not a secret
    splits: dict[str, list[Entry]] = {split: [] for split in SPLITS}
    for label, paths in enumerate(by_folder.values()):
        rng.shuffle(paths)
        train_end = round(len(paths) * TRAIN_SHARE)
        val_end = train_end + round(len(paths) * VAL_SHARE)
        cuts = (paths[:train_end], paths[train_end:val_end], paths[val_end:])
        for split, part in zip(SPLITS, cuts, strict=True):
            splits[split].extend(Entry(path, label) for path in sorted(part))
    class_names = tuple(display_name(folder, names) for folder in by_folder)
    return Layout(class_names, {split: tuple(splits[split]) for split in SPLITS})


def _from_split_file(text: str, files: Sequence[str]) -> Layout:
    """CoOp's format: `{split: [[path below the image folder, label, class name], ...]}`."""
    content = _parse_json(text, "the split file")
    try:
        rows = {split: [(str(p), int(i), str(n)) for p, i, n in content[split]] for split in SPLITS}
    except (KeyError, TypeError, ValueError):
        raise DatasetError(
            "the split file must hold train, val and test, each a list of [path, label, class name]"
        ) from None
    names = {label: name for split in SPLITS for _, label, name in rows[split]}
    if sorted(names) != list(range(len(names))):
        raise DatasetError("the split file's labels must be 0, 1, 2, ... without a gap")
    locate = _locator(files, [path for split in SPLITS for path, _, _ in rows[split]])
    return Layout(
        tuple(names[label].replace("_", " ") for label in range(len(names))),
        {
            split: tuple(Entry(locate(path), label) for path, label, _ in rows[split])
            for split in SPLITS
        },
    )


def _locator(files: Sequence[str], listed: Sequence[str]) -> Callable[[str], str]:
    """The image folder that a split file's paths are relative to: the root or a folder below."""
    known, first = set(files), listed[0] if listed else ""
    folders = [f.removesuffix(first) for f in files if f == first or f.endswith(f"/{first}")]
    if not folders:
        raise DatasetError("none of the folders holds the images that the split file lists")
    folder = min(folders, key=len)
    missing = [path for path in listed if folder + path not in known]
    if missing:
        raise DatasetError(
            f"{len(missing)} images of the split file are missing, e.g. {missing[0]!r}"
        )
    return lambda path: folder + path


def display_name(folder: str, names: Mapping[str, str]) -> str:
    """The class name of a folder: from `classnames.json`, or its own name with spaces."""
    return names.get(folder, folder).replace("_", " ").strip()


def _count(entries: Sequence[Entry], class_names: Sequence[str]) -> dict[str, int]:
    counts = Counter(entry.label for entry in entries)
    return {name: counts[label] for label, name in enumerate(class_names)}


def _check(layout: Layout) -> None:
    problems = [*_name_problems(layout.class_names)]
    if not layout.splits["train"]:
        problems.append(
            "no training images found (expected train/<class>/*.jpg, <class>/*.jpg, or a "
            "split_zhou_*.json)"
        )
    elif len(layout.class_names) < 2:
        problems.append("only one class found (a classifier needs two or more)")
    else:
        empty = [name for name, count in layout.counts()["train"].items() if not count]
        problems += [f"class {name!r} has no training images" for name in empty[:5]]
    if problems:
        raise DatasetError("; ".join(problems))


def _name_problems(class_names: Sequence[str]) -> Iterable[str]:
    if len(class_names) > MAX_CLASSES:
        yield f"{len(class_names)} classes (at most {MAX_CLASSES})"
    for name, count in Counter(class_names).items():
        if count > 1:
            yield f"{count} classes are called {name!r} (names must differ)"
        if not name:
            yield "a class has an empty name"
        elif len(name) > MAX_CLASS_NAME or not name.isprintable():
            yield f"the class name {name[:40]!r} is too long or holds control characters"
