"""`sharpzo datasets`: those on this machine before anything is tuned on them, and uploaded ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sharpzo_cli.errors import UsageProblem
from sharpzo_cli.options import (
    DEFAULT_LIMIT,
    DEFAULT_URL,
    Classes,
    DatasetId,
    DatasetName,
    DatasetsRoot,
    Json,
    Limit,
    Url,
)

app = typer.Typer(
    help="Check datasets, list those that are known by name, write split files; upload them.",
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
    """Say everything that is wrong with a dataset, and how to fix it; DATASET may be an archive.

    Exit code 2 if it cannot be tuned on.
    """
    from sharpzo_cli.dataset_check import CheckRequest, check_dataset

    request = CheckRequest(dataset, root, shots, seed, classes or "all", fast, sheet)
    check_dataset(request, as_json=as_json)


@app.command(name="list")
def list_datasets(
    root: DatasetsRoot = None,
    remote: Annotated[
        bool, typer.Option("--remote", help="Those that were uploaded to the service instead.")
    ] = False,
    limit: Limit = DEFAULT_LIMIT,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """List the datasets that are known by name, and which of them are below the root.

    With --remote: those of a service, newest first; --limit and --url are for these.
    """
    if not remote:
        from sharpzo_cli.catalogue import list_datasets

        list_datasets(root, as_json=as_json)
        return
    if root is not None:
        raise UsageProblem("a service has no --root", "leave --root or --remote out")
    from sharpzo_cli.remote_datasets import list_uploaded

    list_uploaded(url, limit, as_json=as_json)


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
    as_json: Json = False,
) -> None:
    """Write CoOp's split file for a dataset: its own splits, or else some drawn by --seed."""
    from sharpzo_cli.catalogue import write_split

    write_split(dataset, root, out, seed, force=force, as_json=as_json)


@app.command()
def upload(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Folder or archive.")],
    name: Annotated[
        str | None, typer.Option("--name", help="What to call it; else as the folder or file.")
    ] = None,
    unlabelled: Annotated[
        bool, typer.Option("--unlabelled", help="Images in whatever folders, to be classified.")
    ] = False,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Return before the service has read it.")
    ] = False,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Upload a dataset to a service and wait until it is ready; print its id.

    Exit code 2 if it cannot be used.
    """
    from sharpzo_cli.remote_datasets import upload_dataset

    upload_dataset(url, path, name, labelled=not unlabelled, wait=not no_wait, as_json=as_json)


@app.command()
def show(dataset: DatasetId, url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """Show an uploaded dataset."""
    from sharpzo_cli.remote_datasets import show_uploaded

    show_uploaded(url, dataset, as_json=as_json)


@app.command()
def delete(dataset: DatasetId, url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """Delete an uploaded dataset that no job needs."""
    from sharpzo_cli.remote_datasets import delete_uploaded

    delete_uploaded(url, dataset, as_json=as_json)
