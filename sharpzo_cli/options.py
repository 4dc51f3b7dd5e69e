"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sharpzo_engine.labelled import Part

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
