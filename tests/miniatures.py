"""Small copies of the catalogue's datasets, made of its own facts: a few classes, a few images."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from sharpzo_engine.data.catalogue import CATALOGUE, KnownDataset
from sharpzo_engine.data.catalogue_readers import CLASS_NAMES, VARIANTS
from sharpzo_engine.data.layout import SPLITS, Form

#: Images per class. ImageNet has no validation images, its variants have none to train on.
IMAGES = {"train": 4, "val": 2, "test": 2}
#: Synset -> name as CLIP's list has it; two of them are called alike there.
SYNSETS = {
    "n01440764": "tench",
    "n01443537": "goldfish",
    "n02123045": "tabby_cat",
    "n03773504": "missile",
    "n04008634": "missile",
}
OF_200 = ("n01443537", "n02123045", "n04008634")  # of ImageNet-A and -R
#: Class folders or names, where they are not those that the catalogue renames.
CLASSES = ("red_fox", "green_frog", "blue_bird")
VARIANT_NAMES = ("707-320", "DC-9-30", "F-16A/B")

#: How the originals lay out images that are in no folder per class.
_PLACES: dict[str, Callable[[str, int], str]] = {
    "oxford_pets": lambda name, number: f"{name}_{number}.jpg",
    "oxford_flowers": lambda _, number: f"image_{number:05}.jpg",
    "stanford_cars": lambda _, number: f"cars_train/{number:05}.jpg",
    "sun397": lambda name, number: f"{name[0]}/{name}/sun_{number}.jpg",
}


def make_miniature(known: KnownDataset, root: Path) -> Path:
    """Write a small copy of a dataset below `root` and return its folder."""
    folder = root / known.folder
    _MAKERS[known.form](known, folder)
    return folder


def make_all(root: Path) -> Path:
    """Write every dataset of the catalogue; returns `root`."""
    for known in CATALOGUE:
        make_miniature(known, root)
    return root


def class_folders(known: KnownDataset) -> tuple[str, ...]:
    """Folders of the miniature's classes, as the original names some of its own."""
    return (
        (*known.renamed, "Forest", "River")
        if known.key == "eurosat"
        else (
            *known.renamed,
            *CLASSES,
        )
    )


def rows_of(known: KnownDataset) -> dict[str, list[tuple[str, int, str]]]:
    """The split file of a miniature, class after class."""
    place = _PLACES.get(known.key, lambda name, number: f"{name}/{number}.jpg")
    rows: dict[str, list[tuple[str, int, str]]] = {split: [] for split in SPLITS}
    number = 0
    for label, name in enumerate(class_folders(known)):
        for split in SPLITS:
            for _ in range(IMAGES[split]):
                rows[split].append((place(name, number), label, known.renamed.get(name, name)))
                number += 1
    return rows


def _make_split_file(known: KnownDataset, folder: Path) -> None:
    rows = rows_of(known)
    for split in SPLITS:
        for path, label, _ in rows[split]:
            save(folder / known.images / path, label)
    for name in known.left_out:
        save(folder / known.images / name / "0.jpg", 9)
    (folder / known.split_file).write_text(json.dumps(rows))


def _make_lists(known: KnownDataset, folder: Path) -> None:
    lines: dict[str, list[str]] = {split: [] for split in SPLITS}
    number = 0
    for label, name in enumerate(VARIANT_NAMES):
        for split in SPLITS:
            for _ in range(IMAGES[split]):
                save(folder / known.images / f"{number:07}.jpg", label)
                lines[split].append(f"{number:07} {name}")
                number += 1
    (folder / VARIANTS).write_text("\n".join(VARIANT_NAMES) + "\n")
    for split in SPLITS:
        (folder / f"images_variant_{split}.txt").write_text("\n".join(lines[split]) + "\n")


def _make_synsets(known: KnownDataset, folder: Path) -> None:
    for label, synset in enumerate(SYNSETS):
        for place, count in (("train", IMAGES["train"]), ("val", IMAGES["test"])):
            for number in range(count):
                file = f"{synset}_{place}_{number}.JPEG"
                save(folder / known.images / place / synset / file, label)
    write_class_names(folder)


def _make_test_folders(known: KnownDataset, folder: Path) -> None:
    synsets: Sequence[str] = OF_200 if known.classes == 200 else tuple(SYNSETS)
    for synset in synsets:
        label = list(SYNSETS).index(synset)
        name = str(label) if known.numbered else synset
        for number in range(IMAGES["test"]):
            save(folder / known.images / name / f"{known.key}_{number}.jpg", label)


_MAKERS: Mapping[Form, Callable[[KnownDataset, Path], None]] = {
    Form.SPLIT_FILE: _make_split_file,
    Form.LISTS: _make_lists,
    Form.SPLIT_FOLDERS: _make_synsets,
    Form.TEST_FOLDERS: _make_test_folders,
}


def write_class_names(folder: Path) -> None:
    """ImageNet's list of class names."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{synset} {name}" for synset, name in SYNSETS.items()]
    (folder / CLASS_NAMES).write_text("\n".join(lines) + "\n")


def save(path: Path, label: int) -> None:
    """A noisy image of its class's colour, unlike every other."""
    colour = np.random.default_rng(label).integers(40, 215, 3)
    noise = np.random.default_rng(list(str(path).encode())).integers(-40, 40, (36, 40, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((colour + noise).astype(np.uint8)).save(path)
