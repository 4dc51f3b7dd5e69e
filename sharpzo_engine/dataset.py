"""Datasets as lists of labelled files, and few-shot sampling. Datasets differ by data alone."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, replace
from pathlib import Path

from sharpzo_engine.errors import DatasetError, TooFewImages
from sharpzo_engine.layout import SPLITS, read_layout


@dataclass(frozen=True)
class Example:
    """One labelled image file."""

    path: Path
    label: int


@dataclass(frozen=True)
class Dataset:
    """Class names (label order) and three splits; `shots` is set once `few_shot` has sampled."""

    name: str
    class_names: tuple[str, ...]
    train: tuple[Example, ...]
    val: tuple[Example, ...] = ()
    test: tuple[Example, ...] = ()
    shots: int | None = None

    def split(self, name: str) -> tuple[Example, ...]:
        """One split by name.

        Raises:
            DatasetError: it is not one of train, val, test.
        """
        if name not in SPLITS:
            raise DatasetError(f"unknown split {name!r} (choose one of: {', '.join(SPLITS)})")
        examples: tuple[Example, ...] = getattr(self, name)
        return examples


def load_dataset(
    path: str | Path, shots: int | None = None, seed: int = 1, name: str | None = None
) -> Dataset:
    """Read a folder in one of the forms of `sharpzo_engine.layout`.

    With `shots`, the training split is sampled at once; otherwise `tune` does it.

    Raises:
        DatasetError: not a folder, or no classes found in it.
        TooFewImages: a class has fewer training images than `shots`.
    """
    root = Path(path)
    if not root.is_dir():
        raise DatasetError(f"{root} is not a folder (give the folder that holds the classes)")
    files = list_folder(root)
    layout = read_layout(files, lambda f: (root / f).read_text(encoding="utf-8"), seed)
    train, val, test = (
        tuple(Example(root / entry.path, entry.label) for entry in layout.splits[split])
        for split in SPLITS
    )
    dataset = Dataset(name or root.resolve().name, layout.class_names, train, val, test)
    return dataset if shots is None else few_shot(dataset, shots, seed)


def list_folder(root: Path) -> list[str]:
    """The files below a folder, and its folders with a slash at their end; links are followed.

    Posix paths, relative to the folder.
    """
    found: list[str] = []
    seen: set[str] = set()
    for place, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link back
            folders.clear()
            continue
        seen.add(real)
        below = Path(place).relative_to(root)
        found += [f"{(below / name).as_posix()}/" for name in folders]
        found += [(below / name).as_posix() for name in files]
    return found


def few_shot(dataset: Dataset, shots: int, seed: int) -> Dataset:
    """Draw `shots` training images per class without replacement.

    The draw is CoOp's (labels in order of first appearance, `random.sample`), so that the same list
    and seed give CoOp's subset. CoOp repeats images where a class is short of them; we refuse.

    Raises:
        TooFewImages: naming the classes and what would mend it.
    """
    by_label = group_by_label(dataset.train)
    short = {label: len(group) for label, group in by_label.items() if len(group) < shots}
    if short:
        raise TooFewImages(
            too_few_message({dataset.class_names[i]: n for i, n in short.items()}, shots)
        )
    rng = random.Random(seed)  # noqa: S311 - sampling, not a secret
    sample = [example for group in by_label.values() for example in rng.sample(group, shots)]
    return replace(dataset, train=tuple(sample), shots=shots)


def too_few_message(short: dict[str, int], shots: int) -> str:
    """Say which classes have fewer images than shots, and the mend."""
    listed = ", ".join(f"{name!r} has {count}" for name, count in list(short.items())[:5])
    fewest = min(short.values())
    mend = f"add images, or lower shots to {fewest}"
    return f"fewer training images than shots = {shots}: {listed} ({mend})"


def group_by_label(examples: tuple[Example, ...]) -> dict[int, list[Example]]:
    """Label -> examples, labels in order of first appearance."""
    groups: dict[int, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.label, []).append(example)
    return groups
