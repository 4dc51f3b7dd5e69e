"""CoOp's split files: `split_zhou_*.json`, which list the training, validation and test images."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from sharpzo_engine.data.diagnostics import Finding, finding, split_hint
from sharpzo_engine.data.layout import SPLITS, Entry, Form, Layout
from sharpzo_engine.errors import DatasetError
from sharpzo_engine.files import write_atomically


class Row(NamedTuple):
    """One labelled image; the path is relative to the dataset's image folder."""

    path: str
    label: int
    class_name: str


@dataclass(frozen=True)
class SplitFile:
    """`{split: [[path, label, class name], ...]}` for train, val and test, in the file's order."""

    splits: Mapping[str, tuple[Row, ...]]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each label, from 0."""
        names = {row.label: row.class_name for split in SPLITS for row in self.splits[split]}
        return tuple(names[label] for label in range(len(names)))


def read_split_file(path: Path) -> SplitFile:
    """Read a split file.

    Raises:
        DatasetError: it cannot be read, or is not in CoOp's form.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read: {error} (use CoOp's split file)") from error
    return parse_split_file(text)


def write_split_file(path: Path, split_file: SplitFile) -> None:
    """Write a split file atomically.

    Raises:
        OSError: the write failed.
    """
    content = {split: [list(row) for row in split_file.splits[split]] for split in SPLITS}
    text = json.dumps(content, ensure_ascii=False, indent=1)
    write_atomically(path, text.encode())


def parse_split_file(text: str) -> SplitFile:
    """Parse a split file.

    Raises:
        DatasetError: it is not in CoOp's form, or its labels contradict one another.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise DatasetError("the split file is not valid JSON (fix the file)") from None
    try:
        splits = {split: tuple(_row(item) for item in content[split]) for split in SPLITS}
    except (KeyError, TypeError, ValueError):
        raise DatasetError(
            "the split file must contain train, val and test, each a list of [path, label, class "
            "name] (create it with `sharpzo datasets split`)"
        ) from None
    _check_labels(row for split in SPLITS for row in splits[split])
    return SplitFile(splits)


def read_split(
    path: str, read_text: Callable[[str], str], files: Sequence[str], folder: str | None = None
) -> Layout:
    """Build the layout of a split file; its problems are in the layout's findings.

    Args:
        path: path of the split file.
        read_text: returns its text; may raise DatasetError.
        files: the existing files, relative to the root.
        folder: folder (with its slash) that the listed paths are relative to; None searches it.
    """
    nothing = Layout((), dict.fromkeys(SPLITS, ()), Form.SPLIT_FILE)
    try:
        split_file = parse_split_file(read_text(path))
    except DatasetError as error:
        return replace(nothing, findings=(finding("split_file_invalid", *split_hint(error)),))
    names = tuple(name.replace("_", " ").strip() for name in split_file.class_names)
    known = set(files)
    if folder is None:
        folder = _image_folder(files, split_file)
    if folder is None:
        message = "the images that the split file lists are not in any folder"
        missing = finding("split_file_images_missing", message, "put them next to the split file")
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
    """A finding about listed images that do not exist, if there are any."""
    if not paths:
        return ()
    message = f"{len(paths)} images {listed_where} are missing"
    fix = "add them, or remove them from the list"
    shown = [f"e.g. {paths[0]!r}"]
    return (finding("split_file_images_missing", message, fix, shown, count=len(paths)),)


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


def _row(item: Sequence[Any]) -> Row:
    path, label, name = item
    if not (isinstance(path, str) and type(label) is int and isinstance(name, str)):
        raise TypeError
    return Row(path, label, name)


def _check_labels(rows: Iterable[Row]) -> None:
    names: dict[int, str] = {}
    for row in rows:
        if names.setdefault(row.label, row.class_name) != row.class_name:
            raise DatasetError(
                f"the split file calls label {row.label} both {names[row.label][:40]!r} and "
                f"{row.class_name[:40]!r} (give each label one name)"
            )
    if sorted(names) != list(range(len(names))):
        raise DatasetError(
            "the split file's labels must be 0, 1, 2, ... without gaps (renumber them)"
        )
