"""The commands and their options. What a command does is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sharpzo_cli import completion, datasets, encoders, jobs, keys, prompts
from sharpzo_cli import options as opt
from sharpzo_cli.help_panels import Panel, PanelGroup

app = typer.Typer(
    name="sharpzo",
    cls=PanelGroup,
    help="Adapt CLIP to your own classes with forward passes only.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(datasets.app, rich_help_panel=Panel.LOCAL)
app.add_typer(encoders.app, rich_help_panel=Panel.LOCAL)
app.add_typer(jobs.app, rich_help_panel=Panel.REMOTE)
app.add_typer(prompts.app, rich_help_panel=Panel.REMOTE)
app.add_typer(keys.app, rich_help_panel=Panel.OPERATOR)

Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")]
OtherBackbone = Annotated[
    str | None, typer.Option("--backbone", help="Backbone to use instead of the prompt's own.")
]
OtherPretrained = Annotated[
    str | None, typer.Option("--pretrained", help="Weights to use instead of the prompt's own.")
]


def _print_version(wanted: bool) -> None:
    if wanted:
        from sharpzo_engine import __version__

        typer.echo(f"sharpzo {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[  # is_eager: read before everything else
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Show the version and exit."
        ),
    ] = False,
    debug: Annotated[  # read by `main`, at any position
        bool, typer.Option("--debug", help="Show a traceback if something goes wrong.")
    ] = False,
) -> None:
    """Adapt CLIP to your own classes with forward passes only."""


@app.command(rich_help_panel=Panel.LOCAL)
def tune(
    dataset: opt.DatasetName,
    unlabelled: Annotated[
        Path | None,
        typer.Option(
            "--unlabelled",
            metavar="FOLDER",
            help="More images of these classes, five per class or more; labels are not read.",
        ),
    ] = None,
    shots: opt.Shots = None,
    seed: opt.Seed = None,
    passes: opt.Passes = None,
    head: opt.Head = None,
    root: opt.DatasetsRoot = None,
    classes: opt.Classes = None,
    backbone: Annotated[
        str,
        typer.Option(
            "--backbone",
            help="tiny, an open_clip model, local-dir:PATH, onnx-dir:PATH or remote:URL.",
            autocompletion=completion.local_backbones,
        ),
    ] = "tiny",
    pretrained: Annotated[
        str | None, typer.Option("--pretrained", help="Tag of open_clip, or a checkpoint file.")
    ] = None,
    preset: opt.Preset = "default",
    config: opt.ConfigFile = None,
    values: opt.Values = None,
    device: Device = "auto",
    out: Annotated[Path, typer.Option("--out", help="Prompt file to write.")] = Path(
        "prompt.safetensors"
    ),
    report: Annotated[
        Path | None,
        typer.Option("--report", help="HTML report to write, with a JSON one beside it."),
    ] = None,
    no_report: Annotated[bool, typer.Option("--no-report", help="Write no report.")] = False,
    checkpoint_dir: Annotated[
        Path | None, typer.Option("--checkpoint-dir", help="Folder for checkpoints.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the checkpoint in --checkpoint-dir.")
    ] = False,
    as_json: opt.Json = False,
) -> None:
    """Tune a prompt on a dataset; write a prompt file and a report."""
    from sharpzo_cli.tuning import TuneRequest, run_tuning
    from sharpzo_cli.values import Hyperparameters

    request = TuneRequest(
        dataset=dataset,
        unlabelled=unlabelled,
        root=root,
        hyperparameters=Hyperparameters(
            config,
            tuple(values or ()),
            {
                "shots": shots,
                "seed": seed,
                "max_forward_passes": passes,
                "head": head,
                "classes": classes,
            },
        ),
        preset=preset or "default",
        backbone=backbone,
        pretrained=pretrained,
        device=device,
        out=out,
        report=report,
        no_report=no_report,
        checkpoint_dir=checkpoint_dir,
        resume=resume,
    )
    run_tuning(request, as_json=as_json)


@app.command(rich_help_panel=Panel.LOCAL)
def classify(
    artifact: opt.ArtifactPath,
    images: opt.Images,
    top_k: opt.TopK = opt.DEFAULT_TOP_K,
    backbone: OtherBackbone = None,
    pretrained: OtherPretrained = None,
    device: Device = "auto",
    calibrated: opt.Calibrated = False,
    zero_shot: opt.ZeroShot = False,
    as_json: opt.Json = False,
) -> None:
    """Label images with a tuned prompt."""
    from sharpzo_cli.local_inference import ClassifyOptions, Model, classify_images

    options = ClassifyOptions(top_k, calibrated=calibrated, zero_shot=zero_shot, as_json=as_json)
    classify_images(Model(artifact, backbone, pretrained, device), images, options)


@app.command(rich_help_panel=Panel.LOCAL)
def evaluate(
    artifact: opt.ArtifactPath,
    dataset: opt.DatasetName,
    root: opt.DatasetsRoot = None,
    classes: opt.Classes = None,
    split: opt.TestSplit = "test",
    backbone: OtherBackbone = None,
    pretrained: OtherPretrained = None,
    device: Device = "auto",
    as_json: opt.Json = False,
) -> None:
    """Measure the accuracy of a tuned prompt on a dataset.

    With --classes, images are distinguished among those classes only; names that are new to the
    prompt get its tuned context.
    """
    from sharpzo_cli.local_inference import EvaluationData, Model, evaluate_dataset

    data = EvaluationData(dataset, root, split, classes)
    evaluate_dataset(Model(artifact, backbone, pretrained, device), data, as_json=as_json)


@app.command(rich_help_panel=Panel.LOCAL)
def export(
    artifact: opt.ArtifactPath,
    form: opt.Form = "npy",
    calibrated: opt.Calibrated = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write; default: beside the prompt file.")
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """Export a tuned prompt for use without SharpZO."""
    from sharpzo_cli.exporting import export_prompt

    export_prompt(artifact, form, out, calibrated=calibrated, as_json=as_json)


@app.command(rich_help_panel=Panel.LOCAL)
def demo(
    out: Annotated[
        Path, typer.Option("--out", help="Folder for the prompt file and the report.")
    ] = Path("sharpzo-demo"),
) -> None:
    """Tune on handwritten digits, end to end, in a temporary service."""
    from sharpzo_cli.demo.run import run_demo

    run_demo(out)


@app.command(rich_help_panel=Panel.OPERATOR)
def serve(
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on.")] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="Port; 0 picks a free one.")
    ] = None,
    data_dir: opt.DataDir = None,
    no_worker: Annotated[bool, typer.Option("--no-worker", help="Run the API alone.")] = False,
) -> None:
    """Run the API, the dashboard and a worker."""
    from sharpzo_cli.processes import run_service

    run_service(host, port, data_dir, with_worker=not no_worker)


@app.command(rich_help_panel=Panel.OPERATOR)
def worker(data_dir: opt.DataDir = None) -> None:
    """Run a worker alone."""
    from sharpzo_cli.processes import run_worker

    run_worker(data_dir)


@app.command(rich_help_panel=Panel.OPERATOR)
def migrate(data_dir: opt.DataDir = None) -> None:
    """Create the database, or upgrade it to this version's schema."""
    from sharpzo_cli.processes import run_migrations

    run_migrations(data_dir)
