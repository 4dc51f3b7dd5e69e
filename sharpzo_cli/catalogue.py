"""`sharpzo datasets list` and `split`: the datasets known by name, and split files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from sharpzo_cli.errors import UsageProblem
from sharpzo_cli.output import print_json, print_table, say, writable
from sharpzo_engine.data.catalogue import CATALOGUE
from sharpzo_engine.data.file_names import is_split_file
from sharpzo_engine.data.layout import SPLITS
from sharpzo_engine.data.layout_detection import usable
from sharpzo_engine.data.sources import ROOT_VARIABLE, open_unsplit
from sharpzo_engine.data.split_file import Row, SplitFile, write_split_file

if TYPE_CHECKING:
    from sharpzo_engine.data.catalogue import KnownDataset
    from sharpzo_engine.data.sources import Source


def list_datasets(root: Path | None, *, as_json: bool) -> None:
    """Print the datasets known by name, and whether each one's folder is in the root."""
    place = root or (Path(os.environ[ROOT_VARIABLE]) if os.environ.get(ROOT_VARIABLE) else None)
    here = {known.key: place is not None and (place / known.folder).is_dir() for known in CATALOGUE}
    if as_json:
        listed = [_facts(known) | {"here": here[known.key]} for known in CATALOGUE]
        print_json({"root": place and str(place), "datasets": listed})
        return
    rows = [
        (
            known.key,
            f"{known.classes:,}",
            *(f"{size:,}" if size else "" for size in known.sizes),
            known.folder,
            "yes" if here[known.key] else "",
        )
        for known in CATALOGUE
    ]
    title = f"In {place}" if place else f"Set their folder with --root or {ROOT_VARIABLE}"
    print_table(title, ("name", "classes", *SPLITS, "folder", "here"), rows, compact=True)


def _facts(known: KnownDataset) -> dict[str, object]:
    return {
        "name": known.key,
        "title": known.title,
        "folder": known.folder,
        "form": str(known.form),
        "classes": known.classes,
        **dict(zip(SPLITS, known.sizes, strict=True)),
        "template": known.template,
        "url": known.url,
    }


def write_split(
    dataset: str, root: Path | None, out: Path | None, seed: int, *, force: bool, as_json: bool
) -> None:
    """Write a split file.

    Raises:
        UsageProblem: it would replace one, or its name is not that of a split file.
        DatasetError: the dataset does not exist, or cannot be split.
    """
    source = open_unsplit(dataset, root, seed)
    usable(source.layout)
    target = out or source.folder / _file_name(source)
    if not is_split_file(target.name):
        fix = "call it split_zhou_NAME.json"
        raise UsageProblem(f"{target.name} is not a name of a split file", fix)
    if target.exists() and not force:
        raise UsageProblem(f"{target} already exists", "replace it with --force")
    split_file = as_split_file(source)
    write_split_file(writable(target), split_file)
    sizes = {split: len(split_file.splits[split]) for split in SPLITS}
    names = split_file.class_names
    if as_json:
        print_json({"file": str(target), "classes": list(names), "splits": sizes})
        return
    counts = ", ".join(f"{size:,} {split}" for split, size in sizes.items())
    say(f"{target}: {len(names)} classes, {counts}")


def as_split_file(source: Source) -> SplitFile:
    """Return the splits of a dataset, with paths relative to its image folder."""
    known = source.known
    prefix = f"{known.images}/" if known and known.images else ""
    names = source.layout.class_names
    return SplitFile(
        {
            split: tuple(
                Row(entry.path.removeprefix(prefix), entry.label, names[entry.label])
                for entry in source.layout.splits[split]
            )
            for split in SPLITS
        }
    )


def _file_name(source: Source) -> str:
    if source.known is not None:
        return source.known.split_file
    return f"split_zhou_{source.name}.json"
