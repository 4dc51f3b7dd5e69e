"""The commands and their options. What they do is imported when they run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sharpzo_cli import completion, jobs, keys, prompts
from sharpzo_cli.datasets import app as datasets
from sharpzo_cli.options import (
    DEFAULT_TOP_K,
    Classes,
    ConfigFile,
    DatasetName,
    DatasetsRoot,
    ExportForm,
    Json,
    Preset,
    Split,
    Values,
)

app = typer.Typer(
    name="sharpzo",
    help="Adapt CLIP to your own classes with forward passes only.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(keys.app)
app.add_typer(datasets, name="datasets")
app.add_typer(jobs.app)
app.add_typer(prompts.app)

ArtifactPath = Annotated[
    Path, typer.Argument(metavar="ARTIFACT", help="Prompt file (safetensors).")
]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Folder of everything the service keeps.")
]
Calibrated = Annotated[
    bool, typer.Option("--calibrated", help="Divide the logits by the prompt's temperature.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")]
OtherBackbone = Annotated[
    str | None, typer.Option("--backbone", help="Instead of the one the artifact names.")
]
OtherPretrained = Annotated[
    str | None, typer.Option("--pretrained", help="Instead of the one the artifact names.")
]


def _tell_version(asked: bool) -> None:
    if asked:
        from sharpzo_engine import __version__

        typer.echo(f"sharpzo {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[  # is_eager: read before everything else
        bool,
        typer.Option("--version", is_eager=True, callback=_tell_version, help="Tell the version."),
    ] = False,
    debug: Annotated[  # read by `main`, wherever it stands
        bool, typer.Option("--debug", help="Show a traceback when something goes wrong.")
    ] = False,
) -> None:
    """Adapt CLIP to your own classes with forward passes only."""


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option("--out", help="Folder for the prompt file and the report.")
    ] = Path("sharpzo-demo"),
) -> None:
    """Tune on real handwritten digits through the service, end to end."""
    from sharpzo_cli.demo.run import run_demo

    run_demo(out)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on.")] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="Port; 0 takes a free one.")
    ] = None,
    data_dir: DataDir = None,
    no_worker: Annotated[
        bool, typer.Option("--no-worker", help="Start no worker beside the API.")
    ] = False,
) -> None:
    """Run the API and the dashboard, with one worker as a child process."""
    from sharpzo_cli.processes import run_service

    run_service(host, port, data_dir, with_worker=not no_worker)


@app.command()
def worker(data_dir: DataDir = None) -> None:
    """Run a tuning worker."""
    from sharpzo_cli.processes import run_worker

    run_worker(data_dir)


@app.command()
def migrate(data_dir: DataDir = None) -> None:
    """Bring the database to this version's schema."""
    from sharpzo_cli.processes import run_migrations

    run_migrations(data_dir)


@app.command()
def tune(
    dataset: DatasetName,
    root: DatasetsRoot = None,
    classes: Classes = None,
    backbone: Annotated[
        str,
        typer.Option(
            "--backbone",
            help="tiny, an open_clip model, or local-dir:PATH.",
            autocompletion=completion.local_backbones,
        ),
    ] = "tiny",
    pretrained: Annotated[
        str | None, typer.Option("--pretrained", help="Tag of open_clip, or a checkpoint file.")
    ] = None,
    preset: Preset = "default",
    config: ConfigFile = None,
    values: Values = None,
    device: Device = "auto",
    out: Annotated[Path, typer.Option("--out", help="Where the prompt file goes.")] = Path(
        "prompt.safetensors"
    ),
    report: Annotated[
        Path | None,
        typer.Option("--report", help="Where the HTML report goes, a JSON one beside it."),
    ] = None,
    no_report: Annotated[bool, typer.Option("--no-report", help="Write no report.")] = False,
    checkpoint_dir: Annotated[
        Path | None, typer.Option("--checkpoint-dir", help="Folder that lets a run be resumed.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint in that folder.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Tune a prompt on this machine; write it to a file, and a report beside it."""
    from sharpzo_cli.tuning import TuneRequest, run_tuning

    request = TuneRequest(
        dataset=dataset,
        root=root,
        classes=classes,
        backbone=backbone,
        pretrained=pretrained,
        preset=preset,
        config=config,
        values=tuple(values or ()),
        device=device,
        out=out,
        report=report,
        no_report=no_report,
        checkpoint_dir=checkpoint_dir,
        resume=resume,
    )
    run_tuning(request, as_json=as_json)


@app.command()
def classify(
    artifact: ArtifactPath,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Images to label.")],
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="Labels per image.")] = DEFAULT_TOP_K,
    backbone: OtherBackbone = None,
    pretrained: OtherPretrained = None,
    device: Device = "auto",
    calibrated: Calibrated = False,
    zero_shot: Annotated[
        bool, typer.Option("--zero-shot", help="Show what the hand-written prompt says as well.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Label images with a tuned prompt, on this machine."""
    from sharpzo_cli.local_inference import Model, Shown, classify_images

    shown = Shown(top_k, calibrated=calibrated, zero_shot=zero_shot, as_json=as_json)
    classify_images(Model(artifact, backbone, pretrained, device), images, shown)


@app.command()
def evaluate(
    artifact: ArtifactPath,
    dataset: DatasetName,
    root: DatasetsRoot = None,
    classes: Classes = None,
    split: Annotated[Split, typer.Option("--split", help="Of the dataset.")] = Split.TEST,
    backbone: OtherBackbone = None,
    pretrained: OtherPretrained = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure a tuned prompt on a dataset: accuracy, per class, confusion matrix.

    With --classes, images are told apart among those classes alone, and names that are new to the
    prompt get its tuned context.
    """
    from sharpzo_cli.local_inference import Model, Subject, evaluate_dataset

    subject = Subject(dataset, root, split, classes)
    evaluate_dataset(Model(artifact, backbone, pretrained, device), subject, as_json=as_json)


@app.command()
def export(
    artifact: ArtifactPath,
    form: Annotated[
        ExportForm, typer.Option("--format", help="A numpy matrix or an ONNX model.")
    ] = ExportForm.NPY,
    calibrated: Calibrated = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Instead of beside the prompt file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a tuned prompt as a file that needs nothing of ours to be used."""
    from sharpzo_cli.exporting import export_prompt

    export_prompt(artifact, form, out, calibrated=calibrated, as_json=as_json)
