"""`sharpzo encoders`: CLIP models as folders that ONNX Runtime runs without torch's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from sharpzo_cli import completion
from sharpzo_cli import options as opt
from sharpzo_cli.help_panels import Panel, PanelGroup

app = typer.Typer(
    name="encoders",
    cls=PanelGroup,
    help="Export CLIP models to ONNX Runtime, also in float16 and int8.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

EncoderFolder = Annotated[
    Path, typer.Argument(metavar="DIR", help="Folder written by `sharpzo encoders export`.")
]


@app.command(rich_help_panel=Panel.LOCAL)
def export(
    backbone: Annotated[
        str,
        typer.Argument(
            metavar="BACKBONE",
            help="tiny, an open_clip model, or local-dir:PATH.",
            autocompletion=completion.local_backbones,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    pretrained: Annotated[
        str | None, typer.Option("--pretrained", help="Tag of open_clip, or a checkpoint file.")
    ] = None,
    precision: Annotated[
        Literal["fp32", "fp16", "int8"], typer.Option("--precision", help="fp32, fp16 or int8.")
    ] = "fp32",
    calibrate: Annotated[
        Path | None,
        typer.Option("--calibrate", help="Folder of photos to calibrate and compare on."),
    ] = None,
    min_agreement: Annotated[
        float,
        typer.Option(
            "--min-agreement",
            min=0.0,
            max=1.0,
            help="Smallest share of photos with the same label as from the original.",
        ),
    ] = 0.98,
    as_json: opt.Json = False,
) -> None:
    """Write a model as a folder for --backbone onnx-dir:DIR.

    The exit code is 1, and nothing is written, if too few photos get the original's label.
    """
    from sharpzo_cli.encoder_folders import ExportRequest, export_folder

    request = ExportRequest(backbone, pretrained, out, precision, calibrate, min_agreement)
    export_folder(request, as_json=as_json)


@app.command(rich_help_panel=Panel.LOCAL)
def check(
    folder: EncoderFolder,
    photos: Annotated[
        Path | None, typer.Option("--photos", help="Folder of photos to compare on.")
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """Measure an exported folder against the original again, and its speed."""
    from sharpzo_cli.encoder_folders import check_folder

    check_folder(folder, photos, as_json=as_json)


@app.command("list", rich_help_panel=Panel.LOCAL)
def list_encoders(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder in which to look for encoders.")
    ] = Path(),
    as_json: opt.Json = False,
) -> None:
    """List the exported encoders below a folder."""
    from sharpzo_cli.encoder_folders import list_folders

    list_folders(folder, as_json=as_json)
