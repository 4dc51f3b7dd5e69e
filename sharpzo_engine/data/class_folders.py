"""Datasets with one folder per class: `train/<class>/*`, or only `<class>/*`."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from sharpzo_engine.data.class_names import as_tokenised, display_name, loosely
from sharpzo_engine.data.diagnostics import Finding, finding
from sharpzo_engine.data.file_names import is_image, is_other_image, split_name
from sharpzo_engine.data.layout import SPLITS, Entry, Form, Layout

SHARES = (0.6, 0.2)  # train and val of each class, if the dataset has no splits of its own


def from_folders(files: Sequence[str], names: Mapping[str, str], seed: int) -> Layout:
    """Build a layout from a list of files and of folders, which end in a slash."""
    placed = [(tuple(f.removesuffix("/").split("/")), f) for f in files]
    if any(split_name(p[0]) and is_image(f) for p, f in placed if len(p) > 2):
        found = _by_split(placed)
        layout = from_split_folders(found, names)
        classes = [item for items in found.values() for item in items]
    else:
        folders = _folders_of_classes(placed)
        classes = [(p[0], f) for p, f in placed if p[0] in folders]
        layout = split_by_seed(classes, names, seed)
    used = {path for _, path in classes}
    lost = [f for f in files if is_image(f) and f not in used]
    if lost and any(layout.entries()):
        message, fix = "images are outside the class folders", "move or remove them"
        left_out = finding("images_left_out", message, fix, lost)
        layout = replace(layout, findings=(*layout.findings, left_out))
    return layout


def _folders_of_classes(placed: Sequence[tuple[tuple[str, ...], str]]) -> set[str]:
    """Folders that contain images, of unsupported formats as well, and empty folders.

    A folder with only other files (annotations, notes) is not a class.
    """
    inside = [(parts[0], f) for parts, f in placed if len(parts) > 1 and not f.endswith("/")]
    with_images = {folder for folder, f in inside if is_image(f) or is_other_image(f)}
    listed = {parts[0] for parts, f in placed if f.endswith("/")}
    return with_images | (listed - {folder for folder, _ in inside})


def _by_split(
    placed: Sequence[tuple[tuple[str, ...], str]],
) -> dict[str, list[tuple[str, str]]]:
    """Split -> (class folder, a file or the folder itself)."""
    found: dict[str, list[tuple[str, str]]] = {split: [] for split in SPLITS}
    for parts, path in placed:
        split = split_name(parts[0])
        if split and (len(parts) > 2 or (len(parts) == 2 and path.endswith("/"))):
            found[split].append((parts[1], path))
    return found


def from_split_folders(
    found: Mapping[str, Sequence[tuple[str, str]]],
    names: Mapping[str, str],
    order: Sequence[str] = (),
) -> Layout:
    """Build the layout of images whose split and folder are known.

    Args:
        found: split -> (class folder, path); a path that is not an image only adds its class.
        names: folder -> class name.
        order: folders in label order; other folders follow, sorted.
    """
    sources = [found["train"]] if found["train"] else [found[split] for split in SPLITS]
    rank = {folder: place for place, folder in enumerate(order)}
    folders = sorted(
        {folder for source in sources for folder, _ in source},
        key=lambda folder: (rank.get(folder, len(rank)), folder),
    )
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
    close = {loosely(folder): folder for folder in folders}
    for split in ("val", "test"):
        holding = {folder for folder, path in found[split] if is_image(path)}
        unknown = sorted(holding - set(folders))
        if unknown:
            yield finding(
                "label_mismatch",
                f"{split}/ has classes that train/ does not have",
                "give class folders the same names in every split, including letter case",
                [_with_near_miss(name, close) for name in unknown],
            )


def _with_near_miss(name: str, close: Mapping[str, str]) -> str:
    meant = close.get(loosely(name))
    # Two names that look the same can only be told apart in escaped form.
    show = ascii if meant is not None and as_tokenised(meant) == as_tokenised(name) else repr
    return show(name) if meant is None else f"{show(name)} where train/ has {show(meant)}"


def split_by_seed(
    labelled: Sequence[tuple[str, str]],
    names: Mapping[str, str],
    seed: int,
    shares: tuple[float, float] = SHARES,
) -> Layout:
    """Split the images of each class at random.

    Args:
        labelled: (class folder, path); a path that is not an image only adds its class.
        names: folder -> class name.
        seed: decides the split.
        shares: fractions of each class for train and val; the rest is for test.
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
