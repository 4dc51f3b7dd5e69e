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
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any

from sharpzo_engine.errors import DatasetError
from sharpzo_engine.findings import Finding, errors_among, finding
from sharpzo_engine.split_file import SplitFile, parse_split_file

SPLITS = ("train", "val", "test")
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
MAX_CLASSES = 10_000
MAX_CLASS_NAME = 200  # characters
SHARES = (0.6, 0.2)  # train and val, of each class, where the dataset has no splits of its own

CLASS_NAMES_FILE = "classnames.json"
_IGNORED = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini"})
_SPLIT_ALIASES = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}
#: Of images that are not read, and that somebody may miss.
_OTHER_IMAGES = frozenset(
    {".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".tif", ".tiff"}
)
_FORMS_EXPECTED = "give train/<class>/*.jpg, <class>/*.jpg, or a split_zhou_*.json"

ReadText = Callable[[str], str]


class Form(StrEnum):
    """How a dataset tells its classes and splits."""

    SPLIT_FOLDERS = "split folders"  #: train/<class>/*
    CLASS_FOLDERS = "class folders"  #: <class>/*, split by seed
    SPLIT_FILE = "split file"  #: split_zhou_*.json
    LISTS = "lists"  #: text files with a line for each image
    TEST_FOLDERS = "test folders"  #: <class>/*, all of them to be tested on


@dataclass(frozen=True)
class Entry:
    """One labelled image: its path below the dataset's root (posix) and its class index."""

    path: str
    label: int


@dataclass(frozen=True)
class Layout:
    """The classes and splits of a dataset, and what is wrong with them."""

    class_names: tuple[str, ...]  #: display names, in label order
    splits: Mapping[str, tuple[Entry, ...]]  #: train, val and test
    form: Form = Form.CLASS_FOLDERS
    skipped: int = 0  #: files that are neither images nor metadata, litter of systems included
    findings: tuple[Finding, ...] = ()  #: problems of the layout itself; of images it knows nothing

    def counts(self) -> dict[str, dict[str, int]]:
        """Split name -> class name -> number of images; zero included."""
        return {split: _count(entries, self.class_names) for split, entries in self.splits.items()}

    def entries(self) -> Iterator[Entry]:
        """The images of all splits."""
        for split in SPLITS:
            yield from self.splits[split]


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
    names, faults = _display_names(below, lambda path: read_text(top + path))
    split_files = [f for f in files if is_split_file(f)]
    if split_files:
        layout = from_split_file(read_text(top + split_files[0]), files)
        faults += _several_split_files(split_files)
    else:
        layout = _from_folders(below, names, seed)
    litter = sum(not path.endswith("/") for path in listed) - len(files)
    others = [f for f in files if not is_image(f) and not f.endswith(".json")]
    layout = replace(
        layout,
        splits={
            split: tuple(Entry(top + entry.path, entry.label) for entry in entries)
            for split, entries in layout.splits.items()
        },
        skipped=litter + len(others),
        findings=(*faults, *layout.findings, *_unsupported(others)),
    )
    return with_structure(layout, sum(map(is_image, files)))


def with_structure(layout: Layout, images: int) -> Layout:
    """The layout with the problems of its classes among its findings.

    Args:
        layout: what was made of the files.
        images: that there are, those of no class included.
    """
    found = [*layout.findings, *_names(layout.class_names), *_images(layout, images)]
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


def is_litter(path: str) -> bool:
    """Whether a file was left by an operating system or is hidden."""
    parts = PurePosixPath(path).parts
    return any(part in _IGNORED or part.startswith(".") for part in parts)


def is_image(path: str) -> bool:
    """Whether a file's name is that of an image that is read."""
    return PurePosixPath(path).suffix.lower() in IMAGE_SUFFIXES


def is_split_file(path: str) -> bool:
    """Whether a file in the dataset's root is CoOp's split file."""
    return re.fullmatch(r"split_zhou_[^/]*\.json", path) is not None


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


# Names


def _display_names(
    paths: Sequence[str], read_text: ReadText
) -> tuple[Mapping[str, str], list[Finding]]:
    """Folder -> name as `classnames.json` has it, and what is wrong with that file."""
    if CLASS_NAMES_FILE not in paths:
        return {}, []
    try:
        names = parse_json(read_text(CLASS_NAMES_FILE), CLASS_NAMES_FILE)
    except DatasetError as error:
        return {}, [finding("metadata_invalid", *_said(error))]
    if not isinstance(names, dict) or not all(isinstance(v, str) for v in names.values()):
        message = f"{CLASS_NAMES_FILE} must map folder names to class names (strings)"
        return {}, [
            finding("metadata_invalid", message, 'write it like {"shoes": "running shoes"}')
        ]
    known = {part for path in paths for part in path.split("/")[:-1]}
    return names, _unused_names(names, known)


def _unused_names(names: Mapping[str, str], known: set[str]) -> list[Finding]:
    unused = [repr(folder) for folder in names if folder not in known]
    if not unused:
        return []
    message, mend = f"{CLASS_NAMES_FILE} names folders that are not there", "correct their names"
    return [finding("classnames_unused", message, mend, unused)]


def parse_json(text: str, name: str) -> Any:  # noqa: ANN401 - the caller checks
    """What a JSON file holds.

    Raises:
        DatasetError: it is none.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise DatasetError(f"{name} is not valid JSON (mend the file)") from None


def display_name(folder: str, names: Mapping[str, str]) -> str:
    """The class name of a folder: from `classnames.json`, or its own name with spaces."""
    return names.get(folder, folder).replace("_", " ").strip()


def _names(class_names: Sequence[str]) -> Iterator[Finding]:
    """What is wrong with the names of classes as such."""
    if len(class_names) > MAX_CLASSES:
        message = f"{len(class_names)} classes (at most {MAX_CLASSES})"
        yield finding("too_many_classes", message, "leave some out", count=len(class_names))
    for name, count in Counter(class_names).items():
        if count > 1:
            message = f"{count} classes are called {name[:40]!r}"
            yield finding("duplicate_class_name", message, "names must differ", count=count)
    yield from _alike(class_names)
    if not all(class_names):
        mend = f"name its folder in {CLASS_NAMES_FILE}"
        yield finding("class_name_invalid", "a class has an empty name", mend)
    bad = [n for n in class_names if len(n) > MAX_CLASS_NAME or not n.isprintable()]
    if bad:
        message = "class names are too long or hold control characters"
        shown = [repr(name[:40]) for name in bad]
        yield finding("class_name_invalid", message, "rename their folders", shown)


def _alike(class_names: Sequence[str]) -> Iterator[Finding]:
    """Names that CLIP's tokenizer makes the same of, although they differ."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(class_names):
        groups.setdefault(_as_tokenised(name), []).append(name)
    alike = [" and ".join(map(repr, group)) for group in groups.values() if len(group) > 1]
    if alike:
        message = "names of classes that the text encoder cannot tell apart"
        yield finding("class_names_alike", message, "make one class of them, or rename one", alike)


def _as_tokenised(name: str) -> str:
    """A name without what CLIP's tokenizer drops: letter case, spaces, Unicode forms."""
    return " ".join(unicodedata.normalize("NFC", name).casefold().split())


def _loosely(name: str) -> str:
    """A name without what people mistype: also without spaces, hyphens and underscores."""
    return re.sub(r"[\s_-]+", "", _as_tokenised(name))


# Folders


def _from_folders(files: Sequence[str], names: Mapping[str, str], seed: int) -> Layout:
    """A layout from files, and folders that end in a slash."""
    placed = [(PurePosixPath(f).parts, f) for f in files]
    if any(_split_name(p[0]) and is_image(f) for p, f in placed if len(p) > 2):
        found = _by_split(placed)
        layout = _from_split_folders(found, names)
        classes = [item for items in found.values() for item in items]
    else:
        classes = [(p[0], f) for p, f in placed if len(p) > 1 or f.endswith("/")]
        layout = split_by_seed(classes, names, seed)
    used = {path for _, path in classes}
    lost = [f for f in files if is_image(f) and f not in used]
    if lost and any(layout.entries()):
        message, mend = "images lie outside the folders of classes", "move or remove them"
        left_out = finding("images_left_out", message, mend, lost)
        layout = replace(layout, findings=(*layout.findings, left_out))
    return layout


def _by_split(
    placed: Sequence[tuple[tuple[str, ...], str]],
) -> dict[str, list[tuple[str, str]]]:
    """Split -> (folder of a class, file or that folder itself)."""
    found: dict[str, list[tuple[str, str]]] = {split: [] for split in SPLITS}
    for parts, path in placed:
        split = _split_name(parts[0])
        if split and (len(parts) > 2 or (len(parts) == 2 and path.endswith("/"))):
            found[split].append((parts[1], path))
    return found


def _from_split_folders(
    found: Mapping[str, Sequence[tuple[str, str]]], names: Mapping[str, str]
) -> Layout:
    sources = [found["train"]] if found["train"] else [found[split] for split in SPLITS]
    folders = sorted({folder for source in sources for folder, _ in source})
    index = {folder: label for label, folder in enumerate(folders)}
    return Layout(
        tuple(display_name(folder, names) for folder in folders),
        {
            split: tuple(
                Entry(path, index[folder])
                for folder, path in found[split]
                if is_image(path) and folder in index
            )
            for split in SPLITS
        },
        Form.SPLIT_FOLDERS,
        findings=tuple(_labels_that_train_lacks(found, folders)),
    )


def _labels_that_train_lacks(
    found: Mapping[str, Sequence[tuple[str, str]]], folders: Sequence[str]
) -> Iterator[Finding]:
    close = {_loosely(folder): folder for folder in folders}
    for split in ("val", "test"):
        holding = {folder for folder, path in found[split] if is_image(path)}
        unknown = sorted(holding - set(folders))
        if unknown:
            yield finding(
                "label_mismatch",
                f"{split}/ has classes that train/ lacks",
                "class folders must have the same names in every split, case included",
                [_with_near_miss(name, close) for name in unknown],
            )


def _with_near_miss(name: str, close: Mapping[str, str]) -> str:
    meant = close.get(_loosely(name))
    # Only escapes show how two names differ that look the same.
    show = ascii if meant is not None and _as_tokenised(meant) == _as_tokenised(name) else repr
    return show(name) if meant is None else f"{show(name)} where train/ has {show(meant)}"


def split_by_seed(
    labelled: Sequence[tuple[str, str]],
    names: Mapping[str, str],
    seed: int,
    shares: tuple[float, float] = SHARES,
) -> Layout:
    """Split the images of each class at random.

    Args:
        labelled: (folder of the class, file); what is no image only makes its class known.
        names: folder -> class name.
        seed: decides the split.
        shares: of each class, for train and val; the rest is for test.
    """
    by_folder: dict[str, list[str]] = {}
    for folder, path in sorted(labelled):
        paths = by_folder.setdefault(folder, [])
        if is_image(path):
            paths.append(path)
    rng = random.Random(seed)  # noqa: S311 - a split, not a secret
    splits: dict[str, list[Entry]] = {split: [] for split in SPLITS}
    for label, paths in enumerate(by_folder.values()):
        rng.shuffle(paths)
        train_end = round(len(paths) * shares[0])
        val_end = train_end + round(len(paths) * shares[1])
        cuts = (paths[:train_end], paths[train_end:val_end], paths[val_end:])
        for split, part in zip(SPLITS, cuts, strict=True):
            splits[split].extend(Entry(path, label) for path in sorted(part))
    class_names = tuple(display_name(folder, names) for folder in by_folder)
    return Layout(class_names, {split: tuple(splits[split]) for split in SPLITS})


# Split files


def from_split_file(text: str, files: Sequence[str], folder: str | None = None) -> Layout:
    """What CoOp's split file says of these files.

    Args:
        text: of the split file.
        files: that there are, relative to the root.
        folder: that the listed paths are relative to, with its slash; none looks for it.
    """
    nothing = Layout((), dict.fromkeys(SPLITS, ()), Form.SPLIT_FILE)
    try:
        split_file = parse_split_file(text)
    except DatasetError as error:
        return replace(nothing, findings=(finding("split_file_invalid", *_said(error)),))
    names = tuple(name.replace("_", " ").strip() for name in split_file.class_names)
    known = set(files)
    if folder is None:
        folder = _image_folder(files, split_file)
    if folder is None:
        message = "none of the folders holds the images that the split file lists"
        missing = finding("split_file_images_missing", message, "put them beside the split file")
        return replace(nothing, class_names=names, findings=(missing,))
    rows = {
        split: [(folder + row.path, row.label) for row in split_file.splits[split]]
        for split in SPLITS
    }
    lost = [path for split in SPLITS for path, _ in rows[split] if path not in known]
    return Layout(
        names,
        {
            split: tuple(Entry(path, label) for path, label in rows[split] if path in known)
            for split in SPLITS
        },
        Form.SPLIT_FILE,
        findings=missing_images(lost, "of the split file"),
    )


def missing_images(paths: Sequence[str], listed_where: str) -> tuple[Finding, ...]:
    """That images are listed but not there, if there are any."""
    if not paths:
        return ()
    message = f"{len(paths)} images {listed_where} are missing"
    mend = "get them, or take them out of the list"
    shown = [f"e.g. {paths[0]!r}"]
    return (finding("split_file_images_missing", message, mend, shown, count=len(paths)),)


def _image_folder(files: Sequence[str], split_file: SplitFile) -> str | None:
    """The folder that a split file's paths are relative to: the root or one below."""
    for split in SPLITS:
        for row in split_file.splits[split]:
            holding = [
                f.removesuffix(row.path)
                for f in files
                if f == row.path or f.endswith("/" + row.path)
            ]
            if holding:
                return min(holding, key=len)
    return None if any(split_file.splits.values()) else ""


def _several_split_files(split_files: Sequence[str]) -> list[Finding]:
    if len(split_files) < 2:
        return []
    message = f"there are several split files, and {split_files[0]!r} is read"
    mend = "leave one, or give the path of the one that is meant"
    return [finding("several_split_files", message, mend, split_files[1:])]


# Problems of the whole


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
        mend = "a classifier needs two or more"
        yield finding("one_class", "only one class found", mend, count=len(layout.class_names))
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
    lost = [f for f in others if PurePosixPath(f).suffix.lower() in _OTHER_IMAGES]
    if not lost:
        return []
    message = "files are skipped because they are not JPEG, PNG or WebP"
    return [finding("unsupported_images", message, "convert them", lost)]


def _count(entries: Sequence[Entry], class_names: Sequence[str]) -> dict[str, int]:
    counts = Counter(entry.label for entry in entries)
    return {name: counts[label] for label, name in enumerate(class_names)}


def _said(error: DatasetError) -> tuple[str, str]:
    """Message and mend of an error that ends in `(mend)`."""
    message, _, mend = str(error).removesuffix(")").rpartition(" (")
    return message, mend
