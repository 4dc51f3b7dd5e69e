"""What each default is worth: the prompt at equal forward passes, one choice changed at a time.

    python -m benchmarks.defaults [DATA ...] [--backbone SPEC] [--variants ...] [--seeds 1 2]
                                  [--passes 10000] [--json FILE] [--resume]

One table over several datasets, as a choice that helps on one may harm on others. DATA are folders
of photos, files of features, and `digits`, which brings its backbone `tiny`; without any, the
datasets in the folder that SHARPZO_REAL_DATA names, with the backbone there, and `digits`.

No heads. Searches run on features of centre crops. Variants that equal the default are left out, so
that the list may name every value.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from math import sqrt
from pathlib import Path
from typing import Any

from benchmarks.support.feature_file import FeatureFile, prompt_accuracy, search
from benchmarks.support.few_shots import read
from benchmarks.support.output import DASH, RESULTS, Row, Table, mean_and_deviation, percent
from benchmarks.support.results import Results
from benchmarks.support.setting import DIGITS, Setting, facts_of, make_parser, settings_of
from sharpzo_engine import TuningConfig

SEEDS = (1, 2)
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
    "as many passes as the rule takes": {"max_forward_passes": None},
    **{
        name: values
        for name, values in CHOICES.items()
        if TuningConfig.parse(values) != TuningConfig()
    },
    PAPER: {},
}


def run(setting: Setting, file: FeatureFile, name: str, seed: int) -> list[Row]:
    """Tune one variant with one seed; accuracies are fractions."""
    if name == PAPER:
        config = setting.paper(seed)
    else:
        config = setting.config(seed, {**VARIANTS[name], "head": "none"})
    shots, judges = file.few_shot(config.shots, seed), file.judges(config.shots)
    found = search(setting.backbone, file.class_names, shots, judges, config)
    return [
        {
            "dataset": setting.folder.stem,
            "row": name,
            "seed": seed,
            "test_accuracy": prompt_accuracy(found, file.test),
            "val_loss": found.best.score.loss,
            "loss": found.training_loss,
            "forward_passes": found.forward_passes,
            "seconds": found.seconds,
        }
    ]


def measure(
    settings: Sequence[Setting], results: Results, variants: Sequence[str] = tuple(VARIANTS)
) -> None:
    """Run what is missing, seed by seed; the default always, as all are compared with it."""
    files = [read(each.folder, each.backbone, each.cache) for each in settings]
    for seed in settings[0].seeds:
        for name in dict.fromkeys((DEFAULT, *variants)):
            for setting, file in zip(settings, files, strict=True):
                key = [setting.folder.stem, name, seed]
                results.measure(key, partial(run, setting, file, name, seed))


def tables(rows: Sequence[Row], passes: int) -> list[Table]:
    """One line per variant: differences to the default over the seeds that both have."""
    sets = list(dict.fromkeys(row["dataset"] for row in rows))
    found = {(row["row"], row["dataset"], row["seed"]): row["test_accuracy"] for row in rows}
    default = [[value for key, value in found.items() if key[:2] == (DEFAULT, s)] for s in sets]
    lines = [[DEFAULT, *map(percent, default), ""]]
    for name in dict.fromkeys(row["row"] for row in rows if row["row"] != DEFAULT):
        apart = [
            [
                100 * (value - found[DEFAULT, dataset, seed])
                for (variant, of, seed), value in found.items()
                if (variant, of) == (name, dataset) and (DEFAULT, of, seed) in found
            ]
            for dataset in sets
        ]
        means = [mean_and_deviation(values)[0] for values in apart if values]
        lines.append([name, *map(_points, apart), _points(means)])
    note = (
        "Of the default the test accuracy, of the others the difference to it, in points: means "
        "over the same seeds, and in the last column over datasets; ± standard error."
    )
    title = f"Defaults: the prompt alone, {passes:,} forward passes"
    return [Table(title, ("variant", *sets, "mean"), lines, note)]


def _points(values: Sequence[float]) -> str:
    """Mean and, of several, its standard error."""
    if not values:
        return DASH
    mean, deviation = mean_and_deviation(values)
    return f"{mean:+.1f}" + (f" ± {deviation / sqrt(len(values)):.1f}" if values[1:] else "")


def known_sets(folder: Path | None) -> list[Path]:
    """The datasets to look at if none is named; `folder` is SHARPZO_REAL_DATA."""
    digits = Path(DIGITS)
    if folder is None:
        return [digits]
    features = folder / "features"
    return [folder / "clothing", features / "flowers.npz", features / "scenes.npz", digits]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    real = os.environ.get("SHARPZO_REAL_DATA")
    folder = Path(real) if real else None
    parser = make_parser(__doc__, SEEDS, PASSES, datasets="*")
    if folder:
        parser.set_defaults(backbone=f"local-dir:{folder / 'lite'}")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options = parser.parse_args(arguments)
    with settings_of(options, options.dataset or known_sets(folder)) as settings:
        results = Results.open(
            options.json or RESULTS / "defaults.json", facts_of(settings), resume=options.resume
        )
        measure(settings, results, options.variants)
        for table in tables(results.rows, options.passes):
            table.print()


if __name__ == "__main__":
    main()
