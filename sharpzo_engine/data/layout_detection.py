"""Detects the classes and splits in a list of file paths, of a folder or of an archive.

Accepted forms (with or without one common top folder):
- `train/<class>/*`, optional `val/<class>/*` and `test/<class>/*`;
- `<class>/*` alone, split 60/20/20 per class by seed;
- a CoOp split file `split_zhou_*.json` next to its images.
`classnames.json` maps folder names to the class names that are shown and used in prompts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from sharpzo_engine.data.class_folders import from_folders
from sharpzo_engine.data.class_names import ReadText, check_names, read_names
from sharpzo_engine.data.diagnostics import Finding, errors_among, finding
from sharpzo_engine.data.file_names import (
    IMAGE_SUFFIXES,
    is_image,
    is_litter,
    is_other_image,
    is_split_file,
    split_name,
)
from sharpzo_engine.data.layout import SPLITS, Entry, Form, Layout
from sharpzo_engine.data.split_file import read_split
from sharpzo_engine.errors import DatasetError

__all__ = [
    "SPLITS",
    "Entry",
    "Form",
    "Layout",
    "detect_layout",
    "list_images",
    "read_layout",
    "usable",
    "with_structure",
]

_FORMS_EXPECTED = "provide train/<class>/*.jpg, <class>/*.jpg, or a split_zhou_*.json"


def read_layout(paths: Iterable[str], read_text: ReadText, seed: int = 1) -> Layout:
    """Detect the layout of a dataset from its file paths; the arguments of `detect_layout`.

    Raises:
        DatasetError: the dataset is not usable; lists every error.
    """
    return usable(detect_layout(paths, read_text, seed))


def usable(layout: Layout) -> Layout:
    """Return the layout if it has no errors.

    Raises:
        DatasetError: lists every error.
    """
    errors = errors_among(layout.findings)
    if errors:
        raise DatasetError("; ".join(map(str, errors)))
    return layout


def detect_layout(paths: Iterable[str], read_text: ReadText, seed: int = 1) -> Layout:
    """Detect the layout of a dataset; its problems are in the layout's `findings`.

    Args:
        paths: posix paths of the files, relative to the root. Paths of folders, which end in a
            slash, allow empty folders to be reported.
        read_text: returns the text of one of the JSON files.
        seed: decides the split of a dataset that has none.
    """
    listed = sorted(paths)
    visible = [path for path in listed if not is_litter(path)]
    top = _common_top([path for path in visible if not path.endswith("/")])
    below = [path.removeprefix(top) for path in visible if path != top]
    files = [path for path in below if not path.endswith("/")]
    layout = _recognise(below, files, lambda path: read_text(top + path), seed)
    litter = sum(not path.endswith("/") for path in listed) - len(files)
    others = [f for f in files if not is_image(f) and not f.endswith(".json")]
    layout = replace(
        layout,
        splits={
            split: tuple(Entry(top + entry.path, entry.label) for entry in entries)
            for split, entries in layout.splits.items()
        },
        skipped=litter + len(others),
        findings=(*layout.findings, *_unsupported(others)),
    )
    return with_structure(layout, sum(map(is_image, files)))


def _recognise(
    paths: Sequence[str], files: Sequence[str], read_text: ReadText, seed: int
) -> Layout:
    """Detect the layout below the top folder; `paths` are the files and the folders."""
    names, faults = read_names(paths, read_text)
    split_files = [f for f in files if is_split_file(f)]
    if split_files:
        layout = read_split(split_files[0], read_text, files)
        faults += _several_split_files(split_files)
    else:
        layout = from_folders(paths, names, seed)
    return replace(layout, findings=(*faults, *layout.findings))


def with_structure(layout: Layout, images: int) -> Layout:
    """Add the problems of the classes to the layout's findings.

    Args:
        layout: the layout found so far.
        images: number of images, including images without a class.
    """
    found = [*layout.findings, *check_names(layout.class_names), *_images(layout, images)]
    return replace(layout, findings=tuple(found))


def list_images(paths: Iterable[str]) -> tuple[list[str], int]:
    """List the images in all folders, sorted, and count the other files.

    Raises:
        DatasetError: there are no images.
    """
    files = sorted(path for path in paths if not path.endswith("/"))
    images = [path for path in files if not is_litter(path) and is_image(path)]
    if not images:
        raise DatasetError(f"no images found (add {', '.join(sorted(IMAGE_SUFFIXES))} files)")
    return images, len(files) - len(images)


def _common_top(paths: Sequence[str]) -> str:
    """The one folder that contains everything, with its slash; empty if there is none."""
    tops = {path.split("/", 1)[0] for path in paths}
    if len(tops) != 1 or any("/" not in path for path in paths):
        return ""
    top = tops.pop()
    # A single split or class folder is part of the dataset, not a wrapper around it.
    holds_folders = any(path.count("/") > 1 for path in paths)
    return "" if split_name(top) or not holds_folders else f"{top}/"


def _several_split_files(split_files: Sequence[str]) -> list[Finding]:
    if len(split_files) < 2:
        return []
    message = f"there are several split files; {split_files[0]!r} is used"
    fix = "keep one, or pass the path of the one to use"
    return [finding("several_split_files", message, fix, split_files[1:])]


def _images(layout: Layout, images: int) -> Iterator[Finding]:
    """Problems with the number of images."""
    if not images:
        yield finding(
            "no_images", "no training images found, nor any other images", _FORMS_EXPECTED
        )
        return
    if not any(layout.entries()) and not layout.class_names:
        message = "no training images found: all images are at the root, outside class folders"
        yield finding("images_at_root", message, _FORMS_EXPECTED, count=images)
        return
    if len(layout.class_names) < 2:
        fix = "add classes: a classifier needs two or more"
        yield finding("one_class", "only one class found", fix, count=len(layout.class_names))
    if layout.form is Form.TEST_FOLDERS:
        return
    if not layout.splits["train"]:
        yield finding("no_training_images", "no training images found", _FORMS_EXPECTED)
        return
    empty = [repr(name) for name, count in _per_name(layout, "train") if not count]
    if empty:
        message = "classes have no training images"
        yield finding("empty_class", message, "add some, or remove the class folder", empty)


def _per_name(layout: Layout, split: str) -> list[tuple[str, int]]:
    counts = Counter(entry.label for entry in layout.splits[split])
    return [(name, counts[label]) for label, name in enumerate(layout.class_names)]


def _unsupported(others: Sequence[str]) -> list[Finding]:
    lost = [f for f in others if is_other_image(f)]
    if not lost:
        return []
    message = "files are skipped because they are not JPEG, PNG or WebP"
    return [finding("unsupported_images", message, "convert them", lost)]
