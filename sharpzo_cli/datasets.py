"""`sharpzo datasets`: what is known of datasets before anything is tuned on them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sharpzo_cli.options import Classes, DatasetName, DatasetsRoot, Json

app = typer.Typer(
    help="Check datasets, list those that are known by name, write split files.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Seed = Annotated[int, typer.Option("--seed", min=0, help="Of the split, where there is none.")]


@app.command()
def check(
    dataset: DatasetName,
    root: DatasetsRoot = None,
    shots: Annotated[
        int | None,
        typer.Option("--shots", min=1, help="Training images per class that are wanted."),
    ] = None,
    seed: Seed = 1,
    classes: Classes = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="Look at names alone, not into the images.")
    ] = False,
    sheet: Annotated[
        Path | None,
        typer.Option("--contact-sheet", help="Where a picture of each class goes (.png, .jpg)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say everything that is wrong with a dataset, and what mends it; DATASET may be an archive.

    Exit code 2 if it cannot be tuned on.
    """
    from sharpzo_cli.checking import CheckRequest, check_dataset

    request = CheckRequest(dataset, root, shots, seed, classes or "all", fast, sheet)
    check_dataset(request, as_json=as_json)


@app.command(name="list")
def list_known(root: DatasetsRoot = None, as_json: Json = False) -> None:
    """List the datasets that are known by name, and which of them are below the root."""
    from sharpzo_cli.known import list_datasets

    list_datasets(root, as_json=as_json)


@app.command()
def split(
    dataset: DatasetName,
    root: DatasetsRoot = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Instead of split_zhou_*.json in the dataset's folder."),
    ] = None,
    seed: Seed = 1,
    force: Annotated[bool, typer.Option("--force", help="Replace a split file.")] = False,
) -> None:
    """Write CoOp's split file for a dataset: its own splits, or else some drawn by --seed."""
    from sharpzo_cli.known import write_split

    write_split(dataset, root, out, seed, force=force)
