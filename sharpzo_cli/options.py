"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from sharpzo_cli import completion
from sharpzo_engine.data.layout import Part

Split = Literal["train", "val", "test"]
HeadKind = Literal["auto", "none", "gda", "linear"]
#: The service's own list, which is not installed with `sharpzo[client]`.
JobStatus = Literal[
    "queued", "running", "pausing", "paused", "cancelling", "succeeded", "failed", "cancelled"
]
JobKind = Literal["tuning", "evaluation", "classification"]

DatasetName = Annotated[
    str,
    typer.Argument(
        metavar="DATASET",
        help="Folder with train/<class>/* or <class>/*, a split file, or a name (eurosat ...).",
    ),
]
DatasetsRoot = Annotated[
    Path | None,
    typer.Option("--root", help="Folder of datasets known by name; else SHARPZO_DATASETS_ROOT."),
]
Classes = Annotated[
    Part | None,
    typer.Option("--classes", help="all, base (the first half) or new (the second half)."),
]
TestSplit = Annotated[Split, typer.Option("--split", help="Split to evaluate on.")]
Images = Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Images to label.")]
TopK = Annotated[int, typer.Option("--top-k", min=1, help="Labels per image.")]
Calibrated = Annotated[
    bool, typer.Option("--calibrated", help="Divide the logits by the prompt's temperature.")
]
ZeroShot = Annotated[
    bool, typer.Option("--zero-shot", help="Also show predictions of the hand-written prompt.")
]
Form = Annotated[
    Literal["npy", "onnx"],
    typer.Option("--format", help="npy is a numpy matrix, onnx an ONNX model."),
]
ArtifactPath = Annotated[
    Path, typer.Argument(metavar="ARTIFACT", help="Prompt file (safetensors).")
]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Folder with all data of the service.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]

# Hyperparameters, strongest first: their own options, --set, --config, --preset.
Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        help="default, fast, paper, reference, or a dataset of the paper (eurosat ...).",
        autocompletion=completion.presets,
    ),
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="JSON or YAML file; overrides --preset.")
]
Values = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any hyperparameter (zo.learning_rate=1e-3); overrides --config.",
    ),
]
Shots = Annotated[
    int | None, typer.Option("--shots", min=1, help="Training images per class; overrides --set.")
]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Random seed; overrides --set.")]
Passes = Annotated[
    int | None,
    typer.Option("--passes", min=1, help="Budget of forward passes; overrides --set."),
]
Head = Annotated[
    HeadKind | None,
    typer.Option("--head", help="What is served with or in place of the prompt; overrides --set."),
]

# Of commands that talk to a service. The key comes from SHARPZO_API_KEY and never from an option,
# which every user of the machine could read.
Url = Annotated[
    str,
    typer.Option(
        "--url",
        envvar=completion.URL_VARIABLE,
        show_envvar=False,
        help="Address of the service; else SHARPZO_URL.",
    ),
]
JobId = Annotated[
    str, typer.Argument(metavar="JOB", help="Id of the job.", autocompletion=completion.jobs)
]
DatasetId = Annotated[
    str,
    typer.Argument(
        metavar="DATASET_ID",
        help="Id of an uploaded dataset.",
        autocompletion=completion.datasets,
    ),
]
PromptRef = Annotated[
    str,
    typer.Argument(
        metavar="PROMPT",
        help="Id, name (its newest version), name:version or name@alias.",
        autocompletion=completion.prompts,
    ),
]
Watch = Annotated[
    bool,
    typer.Option("--watch", help="Follow the job until it ends; exit code 1 unless it succeeds."),
]
Limit = Annotated[int, typer.Option("--limit", min=1, help="How many to list, newest first.")]
DEFAULT_URL = completion.DEFAULT_URL
DEFAULT_LIMIT = 20
DEFAULT_TOP_K = 5
