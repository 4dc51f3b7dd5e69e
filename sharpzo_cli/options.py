"""Arguments and options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sharpzo_cli import completion
from sharpzo_engine.data.layout import Part


class Split(StrEnum):
    """A part of a dataset."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"


class JobStatus(StrEnum):
    """Where a job stands; the service's own list, which a client's installation lacks."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class JobKind(StrEnum):
    """What a job is for."""

    TUNING = "tuning"
    EVALUATION = "evaluation"
    CLASSIFICATION = "classification"


class ResultForm(StrEnum):
    """What the file of a classification is."""

    JSONL = "jsonl"
    CSV = "csv"


class ExportForm(StrEnum):
    """What a prompt is exported as."""

    NPY = "npy"
    ONNX = "onnx"


DatasetName = Annotated[
    str,
    typer.Argument(
        metavar="DATASET",
        help="Folder with train/<class>/* or <class>/*, a split file, or a name (eurosat ...).",
    ),
]
DatasetsRoot = Annotated[
    Path | None,
    typer.Option(
        "--root", help="Folder of the datasets known by name; else SHARPZO_DATASETS_ROOT."
    ),
]
Classes = Annotated[
    Part | None,
    typer.Option(
        "--classes", help="all, base (the first half of the classes) or new (the others)."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]

Preset = Annotated[
    str,
    typer.Option(
        "--preset",
        help="default, fast, paper, reference, or a dataset of the paper (eurosat ...).",
        autocompletion=completion.presets,
    ),
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="JSON or YAML file laid over the preset.")
]
Values = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="One value over all that, e.g. zo.learning_rate=1e-3."
    ),
]

# Of commands that talk to a service. Its key comes from SHARPZO_API_KEY and never from an option,
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
    typer.Option("--watch", help="Show it until it has ended; exit code 1 unless it succeeds."),
]
Limit = Annotated[int, typer.Option("--limit", min=1, help="How many, newest first.")]
DEFAULT_URL = completion.DEFAULT_URL
DEFAULT_LIMIT = 20
DEFAULT_TOP_K = 5
