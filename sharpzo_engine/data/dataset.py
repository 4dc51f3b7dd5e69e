"""Datasets as lists of labelled files, and few-shot sampling."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path

from sharpzo_engine.data.folders import list_files
from sharpzo_engine.data.layout import SPLITS, Part, labels_of
from sharpzo_engine.data.layout_detection import list_images, usable
from sharpzo_engine.data.sources import open_source
from sharpzo_engine.errors import DatasetError, TooFewImages

UNLABELLED_PER_CLASS = 5  #: fewer unlabelled images move a class's mean at random


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
    classes: Part = "all"  #: which of the original dataset's classes these are

    @property
    def test_only(self) -> bool:
        """Whether it has no training images."""
        return not self.train

    def split(self, name: str) -> tuple[Example, ...]:
        """One split by name.

        Raises:
            DatasetError: the name is not train, val or test.
        """
        if name not in SPLITS:
            raise DatasetError(f"unknown split {name!r} (choose one of: {', '.join(SPLITS)})")
        examples: tuple[Example, ...] = getattr(self, name)
        return examples


def load_dataset(
    path: str | Path,
    shots: int | None = None,
    seed: int = 1,
    name: str | None = None,
    *,
    root: str | Path | None = None,
    classes: Part = "all",
) -> Dataset:
    """Read a dataset from a folder (see `layout_detection`), a split file, or by its name.

    Args:
        path: the folder, the split file, or a name in the catalogue such as `eurosat`.
        shots: training images per class to sample now; None leaves the sampling to `tune`.
        seed: seed of the sample, and of the split if the dataset has none.
        name: name shown in reports; None uses the folder's or the catalogue's name.
        root: folder of the catalogue's datasets; None uses SHARPZO_DATASETS_ROOT.
        classes: `base` keeps the first half of the classes (rounded up), `new` the others, after
            the shots are sampled.

    Raises:
        DatasetError: the dataset does not exist or is not usable; lists every problem.
        TooFewImages: a class has fewer training images than `shots`.
    """
    source = open_source(path, root, seed)
    layout = usable(source.layout)
    train, val, test = (
        tuple(Example(source.folder / entry.path, entry.label) for entry in layout.splits[split])
        for split in SPLITS
    )
    dataset = Dataset(name or source.name, layout.class_names, train, val, test)
    if shots is None:
        return select_classes(dataset, classes)
    return few_shot(dataset, shots, seed, classes)


def list_unlabelled(folder: str | Path) -> tuple[Path, ...]:
    """The images in a folder and all folders below it, sorted; their names say nothing.

    In a folder that has a folder `train`, as datasets do, only the images in `train`.

    Raises:
        DatasetError: it is not a folder, cannot be listed, or has no images.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DatasetError(f"{root} is not a folder (name the folder of the unlabelled images)")
    if (root / "train").is_dir():
        root /= "train"
    try:
        images, _ = list_images(list_files(root))
    except DatasetError as error:
        raise DatasetError(f"{root}: {error}") from error
    return tuple(root / image for image in images)


def check_unlabelled(images: int, classes: int) -> None:
    """Check that there are enough unlabelled images to learn from.

    Raises:
        TooFewImages: there are fewer than five per class.
    """
    wanted = UNLABELLED_PER_CLASS * classes
    if images < wanted:
        raise TooFewImages(
            f"{images} unlabelled images are too few for {classes} classes (give {wanted} or more, "
            f"{UNLABELLED_PER_CLASS} per class, or none)"
        )


def few_shot(dataset: Dataset, shots: int, seed: int, classes: Part = "all") -> Dataset:
    """Draw `shots` training images per class without replacement, then keep some of the classes.

    Samples as CoOp does (labels in order of first appearance, `random.sample`), so that the same
    list and seed give CoOp's subset. Where CoOp repeats the images of a class that has too few,
    this raises an error, except for classes that are not kept.

    Raises:
        DatasetError: there are no training images, or fewer than two classes are kept.
        TooFewImages: lists the classes and how to fix it.
    """
    if dataset.test_only:
        message = f"{dataset.name} has only test images (tune on another dataset, evaluate on it)"
        raise DatasetError(message)
    by_label = group_by_label(dataset.train)
    cut_already = dataset.classes == classes
    kept = labels_of("all" if cut_already else classes, len(dataset.class_names))
    short = {i: len(group) for i, group in by_label.items() if len(group) < shots and i in kept}
    if short:
        raise TooFewImages(
            too_few_message({dataset.class_names[i]: n for i, n in short.items()}, shots)
        )
    rng = random.Random(seed)  # noqa: S311 - sampling, not a secret
    sample: list[Example] = []
    for group in by_label.values():
        # CoOp samples from every class, which advances the generator.
        enough = len(group) >= shots
        sample += rng.sample(group, shots) if enough else rng.choices(group, k=shots)
    return select_classes(replace(dataset, train=tuple(sample), shots=shots), classes)


def select_classes(dataset: Dataset, classes: Part) -> Dataset:
    """Keep some of the classes, numbered from 0; a dataset that has only these is unchanged.

    Raises:
        DatasetError: the dataset was reduced to other classes, or fewer than two are left.
    """
    if classes in ("all", dataset.classes):
        return dataset
    if dataset.classes != "all":
        raise DatasetError(
            f"the dataset was loaded with only its {dataset.classes} classes (load it with all)"
        )
    labels = labels_of(classes, len(dataset.class_names))
    if len(labels) < 2:
        raise DatasetError(
            f"the {classes} half of {len(dataset.class_names)} classes has {len(labels)} (add "
            "classes: a classifier needs two or more)"
        )

    def kept(examples: tuple[Example, ...]) -> tuple[Example, ...]:
        return tuple(
            replace(e, label=e.label - labels.start) for e in examples if e.label in labels
        )

    return replace(
        dataset,
        class_names=dataset.class_names[labels.start : labels.stop],
        train=kept(dataset.train),
        val=kept(dataset.val),
        test=kept(dataset.test),
        classes=classes,
    )


def too_few_message(short: dict[str, int], shots: int) -> str:
    """Message that lists the classes with fewer images than shots, and the fix."""
    listed = ", ".join(f"{name!r} has {count}" for name, count in list(short.items())[:5])
    fewest = min(short.values())
    fix = f"add images, or lower shots to {fewest}"
    return f"fewer training images than shots = {shots}: {listed} ({fix})"


def group_by_label(examples: tuple[Example, ...]) -> dict[int, list[Example]]:
    """Label -> examples, labels in order of first appearance."""
    groups: dict[int, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.label, []).append(example)
    return groups
