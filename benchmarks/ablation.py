"""What each default is worth: the prompt at equal forward passes, one choice changed at a time.

    python -m benchmarks.ablation PHOTOS --backbone SPEC [--variants ...] [--seeds 1 2 3]
                                  [--passes 10000] [--json FILE] [--resume]

No heads. Variants that equal the default are left out, so that the list may name every value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from benchmarks.support.output import RESULTS, Row, Table, mean_and_deviation, percent
from benchmarks.support.results import Results
from benchmarks.support.setting import Setting, make_parser, setting_of
from sharpzo_engine import TuningConfig

SEEDS = (1, 2, 3)
PASSES = 10_000
DEFAULT, PAPER = "default", "paper"

#: Name -> what is laid over the default preset.
CHOICES: dict[str, dict[str, Any]] = {
    "stage 1 alone": {"method": "cma-es"},
    "stage 2 alone (change point 0)": {"change_point": 0},
    **{f"change point {after}": {"change_point": after} for after in (20, 100)},
    "sharpness zo": {"cma": {"sharpness_estimator": "zo"}},
    "sharpness zo, every 10": {"cma": {"sharpness_estimator": "zo", "sharpness_interval": 10}},
    "step size by tpa": {"cma": {"step_size_adaptation": "tpa"}},
    "full covariance": {"cma": {"covariance": "full"}},
    "box of 5": {"cma": {"bound": 5.0}},
    "ranking in bfloat16": {"cma": {"ranking_precision": "bfloat16"}},
    **{f"{count} directions": {"zo": {"queries": count}} for count in (8, 16, 32)},
    **{f"memory {steps}": {"zo": {"memory": steps}} for steps in (0, 4, 8)},
    "adam, jvp": {"zo": {"optimizer": "adam", "estimator": "jvp"}},
    "adam, rge": {"zo": {"optimizer": "adam", "estimator": "rge"}},
    "adam, 1 direction": {"zo": {"optimizer": "adam", "queries": 1}},
    "adam, normal directions": {"zo": {"optimizer": "adam", "directions": "gaussian"}},
    "adam, constant step": {"zo": {"optimizer": "adam", "schedule": "constant"}},
    "adam, mask by gradient": {"zo": {"optimizer": "adam", "mask": "gradient"}},
    "adam, mask by z-score": {"zo": {"optimizer": "adam", "mask": "z-score"}},
    "sgd, jvp": {"zo": {"optimizer": "sgd", "estimator": "jvp"}},
    "sgd, rge": {"zo": {"optimizer": "sgd", "estimator": "rge"}},
    "normal projection": {"prompt": {"projection": "gaussian"}},
    **{
        f"projection scale {scale:g}": {"prompt": {"projection_scale": scale}}
        for scale in (1.0, 4.0, 16.0, 64.0)
    },
}
VARIANTS: Mapping[str, dict[str, Any]] = {
    DEFAULT: {},
    **{
        name: values
        for name, values in CHOICES.items()
        if TuningConfig.parse(values) != TuningConfig()
    },
    PAPER: {},
}


def run(setting: Setting, name: str, seed: int) -> list[Row]:
    """Tune one variant with one seed; accuracies are fractions."""
    if name == PAPER:
        config = setting.paper(seed)
    else:
        config = setting.config(seed, {**VARIANTS[name], "head": "none"})
    metrics = setting.tune(config).metrics
    return [
        {
            "row": name,
            "seed": seed,
            "test_accuracy": metrics["prompt_test_accuracy"],
            "val_loss": metrics["val_loss"],
            "loss": metrics["loss"],
            "forward_passes": metrics["forward_passes"],
            "seconds": metrics["seconds"],
        }
    ]


def measure(setting: Setting, results: Results, variants: Sequence[str] = tuple(VARIANTS)) -> None:
    """Run what is missing, seed by seed."""
    for seed in setting.seeds:
        for name in variants:
            results.measure([name, seed], partial(run, setting, name, seed))


def tables(rows: Sequence[Row], title: str) -> list[Table]:
    """Means over the seeds."""
    header = (
        "variant", "test accuracy", "to default", "training loss", "validation loss", "passes",
        "seconds",
    )  # fmt: skip
    found = {name: [row for row in rows if row["row"] == name] for name in VARIANTS}
    base = {row["seed"]: row["test_accuracy"] for row in found[DEFAULT]}
    lines = [_line(name, of_name, base) for name, of_name in found.items() if of_name]
    note = (
        "Mean ± standard deviation over seeds; the difference is over the seeds of both, in points."
    )
    return [Table(f"Ablation: {title}", header, lines, note)]


def _line(name: str, rows: Sequence[Row], base: Mapping[int, float]) -> list[str]:
    def mean(key: str, form: str) -> str:
        values = [row[key] for row in rows if row[key] is not None]
        return form.format(mean_and_deviation(values)[0]) if values else ""

    pairs = [row["test_accuracy"] - base[row["seed"]] for row in rows if row["seed"] in base]
    apart = f"{100 * mean_and_deviation(pairs)[0]:+.1f}" if pairs and name != DEFAULT else ""
    return [
        name,
        percent([row["test_accuracy"] for row in rows]),
        apart,
        mean("loss", "{:.3f}"),
        mean("val_loss", "{:.3f}"),
        mean("forward_passes", "{:,.0f}"),
        mean("seconds", "{:,.1f}"),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = make_parser(__doc__, SEEDS, PASSES)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options = parser.parse_args(arguments)
    with setting_of(options) as setting:
        path = options.json or RESULTS / "ablation.json"
        results = Results.open(path, setting.facts(), resume=options.resume)
        measure(setting, results, options.variants)
        for table in tables(results.rows, setting.title):
            table.print()


if __name__ == "__main__":
    main()
