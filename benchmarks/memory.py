"""Peak memory of tuning and of its yardsticks, each in a process of its own.

    python -m benchmarks.memory [--backbone SPEC] [--classes 10 100] [--json FILE]

Without `--backbone` it is a ViT-B/32 of full size with random weights, for memory does not depend
on their values. Every process loads the model and embeds the same pictures; then

- `inference` puts the class prompts through open_clip's own text forward, once: what it takes to
  use CLIP at all;
- `tuning` makes some steps of a search, by default (CMA-ES, then Gauss-Newton) or by CMA-ES alone;
- `backpropagation` takes one gradient, through open_clip's own full forward (as CoOp does) or
  through this project's packed encoder;
- `tuning without torch` is the default on an exported encoder in ONNX Runtime, in a process that
  never loads torch.

A process's peak is what Linux calls VmHWM: interpreter, libraries and weights included.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from benchmarks.support.memory_cases import CASES, EXPORT, EXPORTED, RANDOM
from benchmarks.support.output import (
    RESULTS,
    Comparison,
    Row,
    Table,
    comparison_table,
    machine_facts,
    write_json,
)

CLASSES = (10, 100)
PICTURES = 64
PICTURES_IN = "pictures"
SIDE = 256  # pixels
BASE = "inference"
TARGET = 1.3  # tuning : inference


def write_pictures(folder: Path, count: int = PICTURES) -> None:
    """Pictures of noise."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(count):
        pixels = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03}.png")


def peak_mib(case: str, classes: int, folder: Path, backbone: str, pretrained: str | None) -> float:
    """Peak resident MiB of a fresh process that does `case`."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.support.memory_cases",
        case,
        str(classes),
        str(folder / PICTURES_IN),
        "--encoders",
        str(folder),
    ]
    command += ["--backbone", backbone]
    command += ["--pretrained", pretrained] if pretrained else []
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(found.stdout.splitlines()[-1])


def run(
    classes: Sequence[int] = CLASSES,
    backbone: str = RANDOM,
    pretrained: str | None = None,
    cases: Sequence[str] = (*CASES, *EXPORTED),
) -> list[Row]:
    """Measure every case with every number of classes."""
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_pictures(folder / PICTURES_IN)
        if set(cases) & set(EXPORTED):
            peak_mib(EXPORT, classes[0], folder, backbone, pretrained)
        return [
            {
                "backbone": Path(backbone).name,
                "classes": count,
                "case": case,
                "peak_mib": peak_mib(case, count, folder, backbone, pretrained),
            }
            for count in classes
            for case in cases
        ]


def tables(rows: Sequence[Row]) -> list[Table]:
    """Peaks, and their ratios to plain inference."""
    peaks = {(row["case"], row["classes"]): row["peak_mib"] for row in rows}
    counts = sorted({row["classes"] for row in rows})
    cases = [case for case in (*CASES, *EXPORTED) if any(row["case"] == case for row in rows)]
    header = ["", *(f"{count} classes, {what}" for count in counts for what in ("MiB", "ratio"))]
    lines = []
    for case in cases:
        line = [case]
        for count in counts:
            line.append(f"{peaks[case, count]:.0f}")
            line.append(f"{peaks[case, count] / peaks[BASE, count]:.2f}")
        lines.append(line)
    compared = [
        Comparison(
            f"{case} : {BASE}, {count} classes",
            peaks[case, count] / peaks[BASE, count],
            TARGET,
            at_most=True,
            form="{:.2f}",
        )
        for case in cases
        if case.startswith("tuning")
        for count in counts
    ]
    note = "Peak resident memory of a fresh process, interpreter and weights included."
    return [
        Table(f"Memory: {rows[0]['backbone']}", header, lines, note),
        comparison_table("Memory: ratios", compared),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default=RANDOM)
    parser.add_argument("--pretrained")
    parser.add_argument("--classes", type=int, nargs="+", default=list(CLASSES))
    parser.add_argument("--json", type=Path, default=RESULTS / "memory.json")
    options = parser.parse_args(arguments)
    rows = run(options.classes, options.backbone, options.pretrained)
    for table in tables(rows):
        table.print()
    write_json(options.json, {"machine": machine_facts(), "rows": rows})


if __name__ == "__main__":
    main()
