"""What each default is worth: the prompt at equal forward passes, one choice changed at a time.

python -m benchmarks.ablation PHOTOS --backbone local-dir:PATH [--passes 10000] [--seeds 1 2 3]

Prints a table; `--json FILE` writes the numbers.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

from sharpzo_engine import TuneResult, TuningConfig, load_backbone, load_dataset, tune
from sharpzo_engine.backbone import Backbone

#: Name -> (preset, values laid over it).
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("default", {}),
    "sharpness": ("default", {"cma": {"sharpness_estimator": "zo"}}),
    "sharpness every 10": (
        "default",
        {"cma": {"sharpness_estimator": "zo", "sharpness_interval": 10}},
    ),
    "full covariance": ("default", {"cma": {"covariance": "full"}}),
    "stage 1 alone": ("default", {"method": "cma-es"}),
    "stage 2 alone": ("default", {"method": "zo"}),
    "step size 0.03": ("default", {"zo": {"learning_rate": 0.03}}),
    "1 direction": ("default", {"zo": {"queries": 1}}),
    "normal directions": ("default", {"zo": {"directions": "gaussian"}}),
    "constant step size": ("default", {"zo": {"schedule": "constant"}}),
    "mask": ("default", {"zo": {"mask": "gradient"}}),
    "normal projection": ("default", {"prompt": {"projection": "gaussian"}}),
    "projection scale 1": ("default", {"prompt": {"projection_scale": 1.0}}),
    "projection scale 16": ("default", {"prompt": {"projection_scale": 16.0}}),
    "paper": ("paper", {}),
}


@dataclass(frozen=True)
class Row:
    """One variant over all seeds; accuracies are fractions."""

    variant: str
    test_accuracy: float
    deviation: float
    zero_shot_accuracy: float
    training_loss: float
    forward_passes: float
    seconds: float


def measure(
    name: str, folder: Path, backbone: Backbone, seeds: list[int], passes: int, cache: Path
) -> Row:
    """Tune with every seed."""
    preset, values = VARIANTS[name]
    results: list[TuneResult] = []
    for seed in seeds:
        budget = {"max_forward_passes": passes, "seed": seed, "head": "none"}
        config = TuningConfig.parse({**values, **budget}, preset)
        dataset = load_dataset(folder, shots=config.shots, seed=seed)
        results.append(tune(dataset, backbone, config, cache_dir=cache))

    def mean(key: str) -> float:
        return statistics.mean(float(result.metrics[key] or 0) for result in results)

    accuracies = [float(result.metrics["prompt_test_accuracy"] or 0) for result in results]
    return Row(
        name,
        statistics.mean(accuracies),
        statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
        mean("zero_shot_accuracy"),
        mean("loss"),
        mean("forward_passes"),
        mean("seconds"),
    )


def print_rows(rows: list[Row], title: str) -> None:
    """The table."""
    table = Table("variant", "test accuracy", "zero-shot", "loss", "passes", "seconds", title=title)
    for row in rows:
        table.add_row(
            row.variant,
            f"{row.test_accuracy:.1%} ± {row.deviation:.1%}",
            f"{row.zero_shot_accuracy:.1%}",
            f"{row.training_loss:.3f}",
            f"{row.forward_passes:.0f}",
            f"{row.seconds:.0f}",
        )
    Console().print(table)


def main() -> None:
    """Measure the variants and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--backbone", default="tiny")
    parser.add_argument("--pretrained")
    parser.add_argument("--passes", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    backbone = load_backbone(options.backbone, options.pretrained)
    with TemporaryDirectory() as cache:
        rows = [
            measure(name, options.dataset, backbone, options.seeds, options.passes, Path(cache))
            for name in options.variants
        ]
    print_rows(rows, f"{options.dataset.name}, {options.backbone}, {options.passes} passes")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2))


if __name__ == "__main__":
    main()
