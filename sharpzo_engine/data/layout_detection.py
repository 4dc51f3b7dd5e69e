"""Which classes and splits a list of file paths holds. Pure strings: folders and archives alike.

Accepted forms (all with or without one common top folder):
- `train/<class>/*`, optional `val/<class>/*` and `test/<class>/*`;
- `<class>/*` alone, split 60/20/20 per class by seed;
- a CoOp split file `split_zhou_*.json` beside its images.
`classnames.json` maps a folder's name to the class name that is shown and put into the prompt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from sharpzo_engine.data.class_folders import from_folders
from sharpzo_engine.data.class_names import ReadText, judge_names, read_names
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
    "list_images",
    "read_layout",
    "survey_layout",
    "usable",
    "with_structure",
]

_FORMS_EXPECTED = "give train/<class>/*.jpg, <class>/*.jpg, or a split_zhou_*.json"


def read_layout(paths: Iterable[str], read_text: ReadText, seed: int = 1) -> Layout:
    """Recognise the form of a dataset from its file paths, for those who want a usable one.

    Arguments as in `survey_layout`.

    Raises:
        DatasetError: naming every problem found.
    """
    return usable(survey_layout(paths, read_text, seed))


def usable(layout: Layout) -> Layout:
    """The layout, if it has no errors.

    Raises:
        DatasetError: naming all of them.
    """
    errors = errors_among(layout.findings)
    if errors:
        raise DatasetError("; ".join(map(str, errors)))
    return layout


def survey_layout(paths: Iterable[str], read_text: ReadText, seed: int = 1) -> Layout:
    """Recognise the form of a dataset, as far as it goes; every problem is in its `findings`.

    Args:
        paths: posix paths of the files, relative to the root. Folders may be among them, with a
            slash at their end, so that empty ones are noticed.
        read_text: returns the text of one of them (used for the JSON files).
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
    """The layout of what lies below the top folder; `paths` are the files and the folders."""
    names, faults = read_names(paths, read_text)
    split_files = [f for f in files if is_split_file(f)]
    if split_files:
        layout = read_split(split_files[0], read_text, files)
        faults += _several_split_files(split_files)
    else:
        layout = from_folders(paths, names, seed)
    return replace(layout, findings=(*faults, *layout.findings))


def with_structure(layout: Layout, images: int) -> Layout:
    """The layout with the problems of its classes among its findings.

    Args:
        layout: what was made of the files.
        images: that there are, those of no class included.
    """
    found = [*layout.findings, *judge_names(layout.class_names), *_images(layout, images)]
    return replace(layout, findings=tuple(found))


def list_images(paths: Iterable[str]) -> tuple[list[str], int]:
    """Every image in whatever folder, sorted, and how many other files there are.

    Raises:
        DatasetError: there is none.
    """
    files = sorted(path for path in paths if not path.endswith("/"))
    images = [path for path in files if not is_litter(path) and is_image(path)]
    if not images:
        raise DatasetError(f"no images found (expected {', '.join(sorted(IMAGE_SUFFIXES))})")
    return images, len(files) - len(images)


def _common_top(paths: Sequence[str]) -> str:
    """The one folder that holds everything, with its slash; empty if there is none."""
    tops = {path.split("/", 1)[0] for path in paths}
    if len(tops) != 1 or any("/" not in path for path in paths):
        return ""
    top = tops.pop()
    # A dataset whose only folder is a split, or a single class, is no wrapper.
    holds_folders = any(path.count("/") > 1 for path in paths)
    return "" if split_name(top) or not holds_folders else f"{top}/"


def _several_split_files(split_files: Sequence[str]) -> list[Finding]:
    if len(split_files) < 2:
        return []
    message = f"there are several split files, and {split_files[0]!r} is read"
    fix = "leave one, or give the path of the one that is meant"
    return [finding("several_split_files", message, fix, split_files[1:])]


def _images(layout: Layout, images: int) -> Iterator[Finding]:
    """What is missing of images."""
    if not images:
        yield finding("no_images", "no training images found, nor any others", _FORMS_EXPECTED)
        return
    if not any(layout.entries()) and not layout.class_names:
        message = "no training images found: images lie at the root alone, in no class's folder"
        yield finding("images_at_root", message, _FORMS_EXPECTED, count=images)
        return
    if len(layout.class_names) < 2:
        fix = "a classifier needs two or more"
        yield finding("one_class", "only one class found", fix, count=len(layout.class_names))
    if layout.form is Form.TEST_FOLDERS:
        return
    if not layout.splits["train"]:
        yield finding("no_training_images", "no training images found", _FORMS_EXPECTED)
        return
    empty = [repr(name) for name, count in _per_name(layout, "train") if not count]
    if empty:
        message = "classes have no training images"
        yield finding("empty_class", message, "add some, or remove the class", empty)


def _per_name(layout: Layout, split: str) -> list[tuple[str, int]]:
    counts = Counter(entry.label for entry in layout.splits[split])
    return [(name, counts[label]) for label, name in enumerate(layout.class_names)]


def _unsupported(others: Sequence[str]) -> list[Finding]:
    lost = [f for f in others if is_other_image(f)]
    if not lost:
        return []
    message = "files are skipped because they are not JPEG, PNG or WebP"
    return [finding("unsupported_images", message, "convert them", lost)]
