"""The paper's datasets and ImageNet's variants, as one table.

Folders and files have the names of CoOp's instructions, so that a collection made for CoOp or its
successors works unchanged. Sizes are from the CoOp paper (arXiv 2109.01134, Table 5).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from sharpzo_engine.data.layout import Form

SPLIT_FILES_URL = "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md"

_PHOTO = "a photo of a {}."


@dataclass(frozen=True)
class KnownDataset:
    """How to read a dataset that is known by its name."""

    key: str  #: also the name of the paper's preset, if there is one
    title: str
    folder: str  #: below the root
    form: Form
    images: str  #: image folder below `folder`; empty for `folder` itself
    classes: int
    sizes: tuple[int, int, int]  #: training, validation and test images
    url: str  #: official page
    template: str = _PHOTO  #: CoOp's hand-written prompt
    names: tuple[str, ...] = ()  #: other names
    split_file: str = ""
    renamed: Mapping[str, str] = field(default_factory=dict)  #: folder -> class name
    left_out: frozenset[str] = frozenset()  #: folders that are not classes
    numbered: bool = False  #: folders are named by class numbers instead of synsets


#: Two names in CLIP's list of ImageNet classes occur twice; one class of each pair is renamed.
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
    """Find a dataset by name; ignores letter case, hyphens, spaces and underscores."""
    wanted = _plain(name)
    for known in CATALOGUE:
        if wanted in map(_plain, (known.key, known.title, known.folder, *known.names)):
            return known
    return None


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
