"""The paper's datasets and ImageNet's variants: one table of facts, and a reader for each form.

Folders and files are named as CoOp's instructions have them, so that a collection made for CoOp or
its successors is found as it is. Sizes are those of the CoOp paper (arXiv 2109.01134, Table 5).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from sharpzo_engine.errors import DatasetError
from sharpzo_engine.findings import Finding, finding
from sharpzo_engine.folders import list_files, read_text
from sharpzo_engine.layout import (
    SPLITS,
    Entry,
    Form,
    Layout,
    from_split_file,
    from_split_folders,
    is_image,
    is_litter,
    missing_images,
    split_by_seed,
    with_structure,
)

SPLIT_FILES_URL = "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md"
CLASS_NAMES = "classnames.txt"  # of ImageNet: "n01440764 tench"
VARIANTS = "variants.txt"  # of FGVC-Aircraft: a class name on each line
COOP_SHARES = (0.5, 0.2)  # train and val, where CoOp made splits of class folders

_PHOTO = "a photo of a {}."


@dataclass(frozen=True)
class KnownDataset:
    """What has to be known of a dataset to read it by its name."""

    key: str  #: also the name of the paper's preset, if there is one
    title: str
    folder: str  #: below the root
    form: Form
    images: str  #: folder that paths are relative to, below `folder`; empty for `folder` itself
    classes: int
    sizes: tuple[int, int, int]  #: images to train, validate and test on; 0 where there are none
    url: str  #: official page
    template: str = _PHOTO  #: CoOp's hand-written prompt
    names: tuple[str, ...] = ()  #: by which it is known as well
    split_file: str = ""
    renamed: Mapping[str, str] = field(default_factory=dict)  #: folder -> class name
    left_out: frozenset[str] = frozenset()  #: folders that are no classes
    numbered: bool = False  #: folders are numbers of ImageNet's classes instead of synsets


#: Two names stand for two classes each in CLIP's list of ImageNet's; one of either is renamed.
_AMBIGUOUS_SYNSETS = {"n04008634": "projectile", "n04355933": "sunglass"}

CATALOGUE: tuple[KnownDataset, ...] = (
    KnownDataset(
        key="imagenet",
        title="ImageNet",
        folder="imagenet",
        form=Form.SPLIT_FOLDERS,
        images="images",
        classes=1000,
        sizes=(1_281_167, 0, 50_000),
        url="https://www.image-net.org/",
        renamed=_AMBIGUOUS_SYNSETS,
    ),
    KnownDataset(
        key="caltech101",
        title="Caltech101",
        folder="caltech-101",
        form=Form.SPLIT_FILE,
        images="101_ObjectCategories",
        classes=100,
        sizes=(4_128, 1_649, 2_465),
        url="https://data.caltech.edu/records/mzrjq-6wc02",
        split_file="split_zhou_Caltech101.json",
        renamed={
            "airplanes": "airplane",
            "Faces": "face",
            "Leopards": "leopard",
            "Motorbikes": "motorbike",
        },
        left_out=frozenset({"BACKGROUND_Google", "Faces_easy"}),
    ),
    KnownDataset(
        key="oxford_pets",
        title="OxfordPets",
        folder="oxford_pets",
        form=Form.SPLIT_FILE,
        images="images",
        classes=37,
        sizes=(2_944, 736, 3_669),
        url="https://www.robots.ox.ac.uk/~vgg/data/pets/",
        template="a photo of a {}, a type of pet.",
        names=("pets",),
        split_file="split_zhou_OxfordPets.json",
    ),
    KnownDataset(
        key="stanford_cars",
        title="StanfordCars",
        folder="stanford_cars",
        form=Form.SPLIT_FILE,
        images="",
        classes=196,
        sizes=(6_509, 1_635, 8_041),
        url="https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
        names=("cars",),
        split_file="split_zhou_StanfordCars.json",
    ),
    KnownDataset(
        key="oxford_flowers",
        title="Flowers102",
        folder="oxford_flowers",
        form=Form.SPLIT_FILE,
        images="jpg",
        classes=102,
        sizes=(4_093, 1_633, 2_463),
        url="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        template="a photo of a {}, a type of flower.",
        names=("flowers",),
        split_file="split_zhou_OxfordFlowers.json",
    ),
    KnownDataset(
        key="food101",
        title="Food101",
        folder="food-101",
        form=Form.SPLIT_FILE,
        images="images",
        classes=101,
        sizes=(50_500, 20_200, 30_300),
        url="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        template="a photo of {}, a type of food.",
        names=("food",),
        split_file="split_zhou_Food101.json",
    ),
    KnownDataset(
        key="fgvc",
        title="FGVCAircraft",
        folder="fgvc_aircraft",
        form=Form.LISTS,
        images="images",
        classes=100,
        sizes=(3_334, 3_333, 3_333),
        url="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
        template="a photo of a {}, a type of aircraft.",
        names=("aircraft",),
    ),
    KnownDataset(
        key="sun397",
        title="SUN397",
        folder="sun397",
        form=Form.SPLIT_FILE,
        images="SUN397",
        classes=397,
        sizes=(15_880, 3_970, 19_850),
        url="https://vision.princeton.edu/projects/2010/SUN/",
        split_file="split_zhou_SUN397.json",
    ),
    KnownDataset(
        key="dtd",
        title="DTD",
        folder="dtd",
        form=Form.SPLIT_FILE,
        images="images",
        classes=47,
        sizes=(2_820, 1_128, 1_692),
        url="https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        template="{} texture.",
        names=("describable_textures",),
        split_file="split_zhou_DescribableTextures.json",
    ),
    KnownDataset(
        key="eurosat",
        title="EuroSAT",
        folder="eurosat",
        form=Form.SPLIT_FILE,
        images="2750",
        classes=10,
        sizes=(13_500, 5_400, 8_100),
        url="https://github.com/phelber/EuroSAT",
        template="a centered satellite photo of {}.",
        split_file="split_zhou_EuroSAT.json",
        renamed={
            "AnnualCrop": "Annual Crop Land",
            "HerbaceousVegetation": "Herbaceous Vegetation Land",
            "Highway": "Highway or Road",
            "Industrial": "Industrial Buildings",
            "Pasture": "Pasture Land",
            "PermanentCrop": "Permanent Crop Land",
            "Residential": "Residential Buildings",
            "SeaLake": "Sea or Lake",
        },
    ),
    KnownDataset(
        key="ucf101",
        title="UCF101",
        folder="ucf101",
        form=Form.SPLIT_FILE,
        images="UCF-101-midframes",
        classes=101,
        sizes=(7_639, 1_898, 3_783),
        url="https://www.crcv.ucf.edu/data/UCF101.php",
        template="a photo of a person doing {}.",
        split_file="split_zhou_UCF101.json",
    ),
    KnownDataset(
        key="imagenet_v2",
        title="ImageNetV2",
        folder="imagenetv2",
        form=Form.TEST_FOLDERS,
        images="imagenetv2-matched-frequency-format-val",
        classes=1000,
        sizes=(0, 0, 10_000),
        url="https://github.com/modestyachts/ImageNetV2",
        renamed=_AMBIGUOUS_SYNSETS,
        numbered=True,
    ),
    KnownDataset(
        key="imagenet_sketch",
        title="ImageNet-Sketch",
        folder="imagenet-sketch",
        form=Form.TEST_FOLDERS,
        images="images",
        classes=1000,
        sizes=(0, 0, 50_889),
        url="https://github.com/HaohanWang/ImageNet-Sketch",
        renamed=_AMBIGUOUS_SYNSETS,
    ),
    KnownDataset(
        key="imagenet_a",
        title="ImageNet-A",
        folder="imagenet-adversarial",
        form=Form.TEST_FOLDERS,
        images="imagenet-a",
        classes=200,
        sizes=(0, 0, 7_500),
        url="https://github.com/hendrycks/natural-adv-examples",
        renamed=_AMBIGUOUS_SYNSETS,
    ),
    KnownDataset(
        key="imagenet_r",
        title="ImageNet-R",
        folder="imagenet-rendition",
        form=Form.TEST_FOLDERS,
        images="imagenet-r",
        classes=200,
        sizes=(0, 0, 30_000),
        url="https://github.com/hendrycks/imagenet-r",
        renamed=_AMBIGUOUS_SYNSETS,
    ),
)

_IMAGENET = CATALOGUE[0]


def find(name: str) -> KnownDataset | None:
    """The dataset of that name; letter case, hyphens, spaces and underscores do not count."""
    wanted = _plain(name)
    for known in CATALOGUE:
        if wanted in map(_plain, (known.key, known.title, known.folder, *known.names)):
            return known
    return None


def read_known(known: KnownDataset, root: Path) -> Layout:
    """The layout of a dataset below `root`; paths are relative to its own folder.

    Raises:
        DatasetError: a folder or a file is not there, saying where to get it.
    """
    folder = root / known.folder
    if not folder.is_dir():
        raise _missing(known, folder, "the folder")
    layout, images = _READERS[known.form](known, folder)
    layout = with_structure(layout, images)
    return replace(layout, findings=(*layout.findings, *_unlike_published(known, layout)))


def split_known(known: KnownDataset, root: Path, seed: int) -> Layout:
    """A split of our own of a dataset's class folders, in the shares that CoOp took.

    Raises:
        DatasetError: its images are not in a folder per class.
    """
    folder = root / known.folder
    if not _has_class_folders(known, folder):
        place = folder / known.images
        raise DatasetError(
            f"{known.title} cannot be split here: {place} holds no folder per class "
            f"(get {known.split_file or 'its lists'} from {SPLIT_FILES_URL})"
        )
    labelled = list(_class_folders(known, folder))
    layout = split_by_seed(labelled, known.renamed, seed, COOP_SHARES)
    return with_structure(layout, len(labelled))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _missing(known: KnownDataset, place: Path, what: str, mend: str = "") -> DatasetError:
    """That something of a dataset is not there, and where to get it."""
    return DatasetError(
        f"{known.title}: {what} {place} does not exist ({mend or f'get it from {known.url}'}, and "
        f"see {SPLIT_FILES_URL} for how files are laid out)"
    )


def _below(folder: Path, images: str) -> tuple[list[str], str]:
    """The files of the image folder, as paths below `folder`, and that folder with its slash."""
    prefix = f"{images}/" if images else ""
    return [prefix + path for path in list_files(folder / images)], prefix


# Readers: (dataset, its folder) -> (layout, images that there are)


def _read_split_file(known: KnownDataset, folder: Path) -> tuple[Layout, int]:
    split_file = folder / known.split_file
    if not (folder / known.images).is_dir():
        raise _missing(known, folder / known.images, "the folder of images")
    if not split_file.is_file():
        mend = f"get it by way of {SPLIT_FILES_URL}"
        if _has_class_folders(known, folder):
            mend += (
                f"; or make one of the class folders with `sharpzo datasets split {known.key} "
                f"--root {folder.parent}`, whose results compare with nobody's"
            )
        raise _missing(known, split_file, "the split file", mend)
    files, prefix = _below(folder, known.images)
    return from_split_file(read_text(split_file), files, prefix), sum(map(is_image, files))


def _read_lists(known: KnownDataset, folder: Path) -> tuple[Layout, int]:
    """FGVC-Aircraft: `variants.txt`, and lines `image variant` for each split."""
    if not (folder / known.images).is_dir():
        raise _missing(known, folder / known.images, "the folder of images")
    names = _lines(known, folder / VARIANTS)
    labels = {name: label for label, name in enumerate(names)}
    files, prefix = _below(folder, known.images)
    there = set(files)
    splits: dict[str, list[Entry]] = {split: [] for split in SPLITS}
    lost: list[str] = []
    strange: list[str] = []
    for split in SPLITS:
        for line in _lines(known, folder / f"images_variant_{split}.txt"):
            image, _, name = line.partition(" ")
            path = f"{prefix}{image}.jpg"
            if name not in labels:
                strange.append(repr(line[:60]))
            elif path not in there:
                lost.append(path)
            else:
                splits[split].append(Entry(path, labels[name]))
    findings = [*missing_images(lost, "of the lists"), *_strange_lines(strange)]
    class_names = tuple(name.replace("_", " ") for name in names)
    layout = Layout(
        class_names,
        {split: tuple(entries) for split, entries in splits.items()},
        known.form,
        findings=tuple(findings),
    )
    return layout, sum(map(is_image, files))


def _strange_lines(lines: Sequence[str]) -> Iterator[Finding]:
    if lines:
        message, mend = f"lines of the lists name a class that {VARIANTS} lacks", "correct them"
        yield finding("metadata_invalid", message, mend, lines)


def _read_synsets(known: KnownDataset, folder: Path) -> tuple[Layout, int]:
    """ImageNet: `train/<synset>/*` and, to test on, `val/<synset>/*`."""
    names = _synset_names(known, folder)
    found: dict[str, list[tuple[str, str]]] = {split: [] for split in SPLITS}
    for split, place in (("train", "train"), ("test", "val")):
        where = f"{known.images}/{place}"
        if not (folder / where).is_dir():
            raise _missing(known, folder / where, f"the folder of {split} images")
        found[split] = list(_in_folders(folder, where))
    layout = from_split_folders(found, names, list(names))
    unknown = _unknown_synsets(sorted({name for name, _ in found["train"]} - names.keys()))
    layout = replace(layout, findings=(*layout.findings, *unknown))
    return layout, len(found["train"]) + len(found["test"])


def _read_test_folders(known: KnownDataset, folder: Path) -> tuple[Layout, int]:
    """A variant of ImageNet that is only tested on: `<synset>/*`, or `<number>/*`."""
    if not (folder / known.images).is_dir():
        raise _missing(known, folder / known.images, "the folder of images")
    names = _synset_names(known, folder)
    synsets = list(names)
    numbers = {str(number): synset for number, synset in enumerate(synsets)}
    placed = [
        (numbers.get(name, name) if known.numbered else name, path)
        for name, path in _in_folders(folder, known.images)
    ]
    unknown = sorted({name for name, _ in placed} - names.keys())
    present = {name for name, _ in placed}
    classes = [synset for synset in synsets if synset in present]
    index = {synset: label for label, synset in enumerate(classes)}
    test = tuple(Entry(path, index[name]) for name, path in placed if name in index)
    layout = Layout(
        tuple(names[synset] for synset in classes),
        {"train": (), "val": (), "test": test},
        known.form,
        findings=tuple(_unknown_synsets(unknown)),
    )
    return layout, len(placed)


_READERS: Mapping[Form, Callable[[KnownDataset, Path], tuple[Layout, int]]] = {
    Form.SPLIT_FILE: _read_split_file,
    Form.LISTS: _read_lists,
    Form.SPLIT_FOLDERS: _read_synsets,
    Form.TEST_FOLDERS: _read_test_folders,
}


def _in_folders(folder: Path, images: str) -> Iterator[tuple[str, str]]:
    """(name of the folder directly below `images`, image as a path below `folder`), sorted."""
    for path in sorted(list_files(folder / images)):
        parts = path.split("/")
        if len(parts) > 1 and is_image(path) and not is_litter(path):
            yield parts[0], f"{images}/{path}"


def _class_folders(known: KnownDataset, folder: Path) -> Iterator[tuple[str, str]]:
    for name, path in _in_folders(folder, known.images or "."):
        if name not in known.left_out:
            yield name, path


def _has_class_folders(known: KnownDataset, folder: Path) -> bool:
    """Whether images lie directly in two or more folders of the image folder."""
    place = folder / known.images
    if known.form is not Form.SPLIT_FILE or not known.images or not place.is_dir():
        return False
    folders = [p for p in place.iterdir() if p.is_dir() and p.name not in known.left_out]
    return len(folders) > 1 and all(any(is_image(f.name) for f in p.iterdir()) for p in folders)


def _synset_names(known: KnownDataset, folder: Path) -> dict[str, str]:
    """Synset -> class name in ImageNet's order, from the dataset's own list or ImageNet's."""
    places = (folder / CLASS_NAMES, folder.parent / _IMAGENET.folder / CLASS_NAMES)
    place = next((place for place in places if place.is_file()), places[0])
    pairs = (line.partition(" ") for line in _lines(known, place))
    names = {synset: name.strip().replace("_", " ") for synset, _, name in pairs}
    return names | {synset: name for synset, name in known.renamed.items() if synset in names}


def _unknown_synsets(unknown: Sequence[str]) -> Iterator[Finding]:
    if unknown:
        message = f"there are folders that {CLASS_NAMES} does not name"
        mend = "remove them, or complete the list"
        yield finding("label_mismatch", message, mend, [repr(name) for name in unknown])


def _lines(known: KnownDataset, path: Path) -> Sequence[str]:
    """The lines of a text file, stripped, without empty ones."""
    if not path.is_file():
        mend = f"get it by way of {SPLIT_FILES_URL}" if path.name == CLASS_NAMES else ""
        raise _missing(known, path, "the file", mend)
    return [line for line in map(str.strip, read_text(path).splitlines()) if line]


def _unlike_published(known: KnownDataset, layout: Layout) -> Iterable[Finding]:
    """That figures will not compare with published ones."""
    sizes = tuple(len(layout.splits[split]) for split in SPLITS)
    if (len(layout.class_names), sizes) == (known.classes, known.sizes):
        return
    published = f"{known.classes:,} classes and {_slashed(known.sizes)} images"
    message = (
        f"{known.title} has {published} (train / val / test) where it was published, and "
        f"{len(layout.class_names):,} classes and {_slashed(sizes)} images here"
    )
    yield finding("unlike_published", message, "complete it before figures are compared")


def _slashed(sizes: Sequence[int]) -> str:
    return " / ".join(f"{size:,}" for size in sizes)
