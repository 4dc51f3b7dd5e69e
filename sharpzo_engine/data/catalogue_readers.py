"""Reads the catalogue's datasets: one reader per form, not per dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sharpzo_engine.data.catalogue import SPLIT_FILES_URL, KnownDataset
from sharpzo_engine.data.class_folders import from_split_folders, split_by_seed
from sharpzo_engine.data.diagnostics import Finding, finding
from sharpzo_engine.data.file_names import is_image, is_litter
from sharpzo_engine.data.folders import list_files, read_text
from sharpzo_engine.data.layout import SPLITS, Entry, Form, Layout
from sharpzo_engine.data.layout_detection import with_structure
from sharpzo_engine.data.split_file import missing_images, read_split
from sharpzo_engine.errors import DatasetError

CLASS_NAMES = "classnames.txt"  # ImageNet: "n01440764 tench"
VARIANTS = "variants.txt"  # FGVC-Aircraft: one class name per line
COOP_SHARES = (0.5, 0.2)  # train and val, where CoOp split class folders
IMAGENET = "imagenet"  # folder whose list of names is also used for its variants


def read_known(known: KnownDataset, root: Path) -> Layout:
    """Read the layout of a dataset below `root`; paths are relative to the dataset's folder.

    Raises:
        DatasetError: a folder or file does not exist; says where to get it.
    """
    folder = root / known.folder
    if not folder.is_dir():
        raise _missing(known, folder, "the folder")
    layout, images = _READERS[known.form](known, folder)
    layout = with_structure(layout, images)
    return replace(layout, findings=(*layout.findings, *_unlike_published(known, layout)))


def split_known(known: KnownDataset, root: Path, seed: int) -> Layout:
    """Split a dataset's class folders by seed, in the proportions that CoOp used.

    Raises:
        DatasetError: the dataset has no class folders.
    """
    folder = root / known.folder
    if not _has_class_folders(known, folder):
        place = folder / known.images
        raise DatasetError(
            f"{known.title} cannot be split here: {place} has no class folders "
            f"(get {known.split_file or 'its lists'} from {SPLIT_FILES_URL})"
        )
    labelled = list(_class_folders(known, folder))
    layout = split_by_seed(labelled, known.renamed, seed, COOP_SHARES)
    return with_structure(layout, len(labelled))


def _missing(known: KnownDataset, place: Path, what: str, fix: str | None = None) -> DatasetError:
    """The error that a part of a dataset is missing, with the place to get it."""
    usual = f"get it from {known.url}; {SPLIT_FILES_URL} describes the folders"
    return DatasetError(f"{known.title}: {what} {place} does not exist ({fix or usual})")


def _below(folder: Path, images: str) -> tuple[list[str], str]:
    """The files of the image folder, as paths below `folder`, and its prefix with a slash."""
    prefix = f"{images}/" if images else ""
    return [prefix + path for path in list_files(folder / images)], prefix


# Readers: (dataset, its folder) -> (layout, number of images)


def _read_split_file(known: KnownDataset, folder: Path) -> tuple[Layout, int]:
    split_file = folder / known.split_file
    if not (folder / known.images).is_dir():
        raise _missing(known, folder / known.images, "the folder of images")
    if not split_file.is_file():
        fix = f"get it from {SPLIT_FILES_URL}"
        if _has_class_folders(known, folder):
            fix += (
                f"; or create another split with `sharpzo datasets split {known.key} "
                f"--root {folder.parent}`"
            )
        raise _missing(known, split_file, "the split file", fix)
    files, prefix = _below(folder, known.images)
    layout = read_split(known.split_file, lambda name: read_text(folder / name), files, prefix)
    return layout, sum(map(is_image, files))


def _read_lists(known: KnownDataset, folder: Path) -> tuple[Layout, int]:
    """FGVC-Aircraft: `variants.txt`, and a list with lines `image variant` per split."""
    if not (folder / known.images).is_dir():
        raise _missing(known, folder / known.images, "the folder of images")
    names = _lines(known, folder / VARIANTS)
    labels = {name: label for label, name in enumerate(names)}
    files, prefix = _below(folder, known.images)
    there = set(files)
    rows = {split: list(_variant_rows(known, folder, split, prefix)) for split in SPLITS}
    every = [row for split in SPLITS for row in rows[split]]
    lost = [path for path, _ in every if path not in there]
    strange = [f"{path}: {name[:40]!r}" for path, name in every if name not in labels]
    layout = Layout(
        tuple(name.replace("_", " ") for name in names),
        {
            split: tuple(Entry(p, labels[n]) for p, n in rows[split] if p in there and n in labels)
            for split in SPLITS
        },
        known.form,
        findings=(*missing_images(lost, "of the lists"), *_strange_variants(strange)),
    )
    return layout, sum(map(is_image, files))


def _variant_rows(
    known: KnownDataset, folder: Path, split: str, prefix: str
) -> Iterator[tuple[str, str]]:
    """(image, variant) of each line of a list."""
    for line in _lines(known, folder / f"images_variant_{split}.txt"):
        image, _, name = line.partition(" ")
        yield f"{prefix}{image}.jpg", name


def _strange_variants(images: Sequence[str]) -> Iterator[Finding]:
    if images:
        message, fix = f"the lists contain classes that are not in {VARIANTS}", "correct them"
        yield finding("metadata_invalid", message, fix, images)


def _read_synsets(known: KnownDataset, folder: Path) -> tuple[Layout, int]:
    """ImageNet: `train/<synset>/*`, and `val/<synset>/*` as the test split."""
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
    """A variant of ImageNet that is only for testing: `<synset>/*`, or `<number>/*`."""
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
    """(folder directly below `images`, path of the image below `folder`), sorted."""
    for path in sorted(list_files(folder / images)):
        parts = path.split("/")
        if len(parts) > 1 and is_image(path) and not is_litter(path):
            yield parts[0], f"{images}/{path}"


def _class_folders(known: KnownDataset, folder: Path) -> Iterator[tuple[str, str]]:
    for name, path in _in_folders(folder, known.images):
        if name not in known.left_out:
            yield name, path


def _has_class_folders(known: KnownDataset, folder: Path) -> bool:
    """Whether two or more folders directly below the image folder contain images."""
    place = folder / known.images
    if known.form is not Form.SPLIT_FILE or not known.images or not place.is_dir():
        return False
    folders = [p for p in place.iterdir() if p.is_dir() and p.name not in known.left_out]
    return len(folders) > 1 and all(any(is_image(f.name) for f in p.iterdir()) for p in folders)


def _synset_names(known: KnownDataset, folder: Path) -> dict[str, str]:
    """Synset -> class name in ImageNet's order, from the dataset's own list or ImageNet's."""
    places = (folder / CLASS_NAMES, folder.parent / IMAGENET / CLASS_NAMES)
    place = next((place for place in places if place.is_file()), places[0])
    pairs = (line.partition(" ") for line in _lines(known, place))
    names = {synset: name.strip().replace("_", " ") for synset, _, name in pairs}
    return names | {synset: name for synset, name in known.renamed.items() if synset in names}


def _unknown_synsets(unknown: Sequence[str]) -> Iterator[Finding]:
    if unknown:
        message = f"there are folders that {CLASS_NAMES} does not list"
        fix = "remove them, or complete the list"
        yield finding("label_mismatch", message, fix, [repr(name) for name in unknown])


def _lines(known: KnownDataset, path: Path) -> Sequence[str]:
    """The lines of a text file, stripped, without empty ones."""
    if not path.is_file():
        fix = f"get it from {SPLIT_FILES_URL}" if path.name == CLASS_NAMES else None
        raise _missing(known, path, "the file", fix)
    return [line for line in map(str.strip, read_text(path).splitlines()) if line]


def _unlike_published(known: KnownDataset, layout: Layout) -> Iterable[Finding]:
    """A warning that the dataset differs from the published one."""
    sizes = tuple(len(layout.splits[split]) for split in SPLITS)
    if (len(layout.class_names), sizes) == (known.classes, known.sizes):
        return
    published = f"{known.classes:,} classes and {_slashed(known.sizes)} images"
    message = (
        f"{known.title} was published with {published} (train / val / test), but has "
        f"{len(layout.class_names):,} classes and {_slashed(sizes)} images here"
    )
    yield finding("unlike_published", message, "complete it before you compare results")


def _slashed(sizes: Sequence[int]) -> str:
    return " / ".join(f"{size:,}" for size in sizes)
