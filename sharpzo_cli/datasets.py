"""`sharpzo datasets`: datasets on this machine, and those uploaded to a service."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from sharpzo_cli import options as opt
from sharpzo_cli.errors import UsageProblem
from sharpzo_cli.formatting import show_dataset, show_datasets
from sharpzo_cli.help_panels import Panel, PanelGroup
from sharpzo_cli.output import print_deleted, print_items, print_model, say_id
from sharpzo_cli.remote import service

app = typer.Typer(
    name="datasets",
    cls=PanelGroup,
    help="Check, list and split datasets; upload them to a service.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

SplitSeed = Annotated[
    int, typer.Option("--seed", min=0, help="Seed of the split, for a dataset without one.")
]


@app.command(rich_help_panel=Panel.LOCAL)
def check(
    dataset: opt.DatasetName,
    root: opt.DatasetsRoot = None,
    shots: Annotated[
        int | None, typer.Option("--shots", min=1, help="Training images per class to ask for.")
    ] = None,
    seed: SplitSeed = 1,
    classes: opt.Classes = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="Check file names only, without opening images.")
    ] = False,
    sheet: Annotated[
        Path | None,
        typer.Option("--contact-sheet", help="Picture of every class to write (.png, .jpg)."),
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """Report every problem of a dataset, with a fix for each.

    DATASET may also be an archive. The exit code is 2 if the dataset cannot be used for tuning.
    """
    from sharpzo_cli.dataset_check import CheckRequest, check_dataset

    request = CheckRequest(dataset, root, shots, seed, classes or "all", fast, sheet)
    check_dataset(request, as_json=as_json)


@app.command("list", rich_help_panel=Panel.LOCAL)
def list_datasets(
    root: opt.DatasetsRoot = None,
    remote: Annotated[
        bool, typer.Option("--remote", help="List the datasets uploaded to a service instead.")
    ] = False,
    limit: opt.Limit = opt.DEFAULT_LIMIT,
    url: opt.Url = opt.DEFAULT_URL,
    as_json: opt.Json = False,
) -> None:
    """List the datasets known by name, or uploaded ones with --remote.

    --limit and --url apply to --remote only.
    """
    if not remote:
        from sharpzo_cli.catalogue import list_datasets

        list_datasets(root, as_json=as_json)
        return
    if root is not None:
        raise UsageProblem("--root does not apply to --remote", "leave out one of them")
    with service(url) as client:
        found = list(islice(client.datasets.list(), limit))
    print_items("datasets", found, show_datasets, as_json=as_json)


@app.command(rich_help_panel=Panel.LOCAL)
def split(
    dataset: opt.DatasetName,
    root: opt.DatasetsRoot = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="File to write; default: split_zhou_*.json in the dataset's folder."
        ),
    ] = None,
    seed: SplitSeed = 1,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing split file.")] = False,
    as_json: opt.Json = False,
) -> None:
    """Write a split file in CoOp's format.

    It has the dataset's own splits, or a random split drawn with --seed.
    """
    from sharpzo_cli.catalogue import write_split

    write_split(dataset, root, out, seed, force=force, as_json=as_json)


@app.command(rich_help_panel=Panel.REMOTE)
def upload(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Folder or archive.")],
    name: Annotated[
        str | None, typer.Option("--name", help="Name; default: that of the folder or file.")
    ] = None,
    unlabelled: Annotated[
        bool,
        typer.Option("--unlabelled", help="Images without classes, for classification only."),
    ] = False,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Return before the service has processed it.")
    ] = False,
    url: opt.Url = opt.DEFAULT_URL,
    as_json: opt.Json = False,
) -> None:
    """Upload a dataset and print its id when it is ready.

    The exit code is 2 if the dataset cannot be used.
    """
    with service(url) as client:
        dataset = client.datasets.upload(path, name, labelled=not unlabelled, wait=not no_wait)
    print_model(dataset, say_id, as_json=as_json)


@app.command(rich_help_panel=Panel.REMOTE)
def show(dataset: opt.DatasetId, url: opt.Url = opt.DEFAULT_URL, as_json: opt.Json = False) -> None:
    """Show an uploaded dataset."""
    with service(url) as client:
        found = client.datasets.get(dataset)
    print_model(found, show_dataset, as_json=as_json)


@app.command(rich_help_panel=Panel.REMOTE)
def delete(
    dataset: opt.DatasetId, url: opt.Url = opt.DEFAULT_URL, as_json: opt.Json = False
) -> None:
    """Delete an uploaded dataset that no job needs."""
    with service(url) as client:
        client.datasets.delete(dataset)
    print_deleted(dataset, as_json=as_json)
