"""`Layout`: the labelled images of a dataset by class and split, as paths and numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

from sharpzo_engine.data.diagnostics import Finding

SPLITS = ("train", "val", "test")
Part = Literal["all", "base", "new"]  #: of the classes


class Form(StrEnum):
    """How a dataset stores its classes and splits."""

    SPLIT_FOLDERS = "split folders"  #: train/<class>/*
    CLASS_FOLDERS = "class folders"  #: <class>/*, split by seed
    SPLIT_FILE = "split file"  #: split_zhou_*.json
    LISTS = "lists"  #: text files with a line per image
    TEST_FOLDERS = "test folders"  #: <class>/*, only for testing


@dataclass(frozen=True)
class Entry:
    """One labelled image: its path below the dataset's root (posix) and its class index."""

    path: str
    label: int


@dataclass(frozen=True)
class Layout:
    """The classes and splits of a dataset, and their problems."""

    class_names: tuple[str, ...]  #: display names, in label order
    splits: Mapping[str, tuple[Entry, ...]]  #: train, val and test
    form: Form = Form.CLASS_FOLDERS
    skipped: int = 0  #: files that are neither images nor metadata, hidden files included
    findings: tuple[Finding, ...] = ()  #: problems of the layout itself, not of image files

    def counts(self) -> dict[str, dict[str, int]]:
        """Split name -> class name -> number of images, including zeros."""
        return {split: _count(entries, self.class_names) for split, entries in self.splits.items()}

    def entries(self) -> Iterator[Entry]:
        """The images of all splits."""
        for split in SPLITS:
            yield from self.splits[split]


def labels_of(classes: Part, count: int) -> range:
    """The labels of a part of `count` classes: all, the first half (rounded up), or the rest."""
    half = (count + 1) // 2
    return {"all": range(count), "base": range(half), "new": range(half, count)}[classes]


def part_of(layout: Layout, classes: Part) -> Layout:
    """The layout of some of the classes, numbered from 0."""
    labels = labels_of(classes, len(layout.class_names))
    return replace(
        layout,
        class_names=layout.class_names[labels.start : labels.stop],
        splits={
            split: tuple(
                Entry(entry.path, entry.label - labels.start)
                for entry in entries
                if entry.label in labels
            )
            for split, entries in layout.splits.items()
        },
    )


def _count(entries: Sequence[Entry], class_names: Sequence[str]) -> dict[str, int]:
    counts = Counter(entry.label for entry in entries)
    return {name: counts[label] for label, name in enumerate(class_names)}
