"""What `head: auto` serves beside every head without a search: `benchmarks.accuracy --few-shots`.

A run is a dataset, a number of shots and a seed: a whole search with at most `shots` validation
images per class, from which the served classifier is chosen as `tune` does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import product

from benchmarks.support.feature_file import FeatureFile, search
from benchmarks.support.few_shots import GDA, INFORMED, SHOTS, read
from benchmarks.support.output import (
    Comparison,
    Row,
    Table,
    comparison_table,
    mean_and_deviation,
    percent,
)
from benchmarks.support.results import Results
from benchmarks.support.setting import Setting
from sharpzo_engine.heads.fitting import fit_gda
from sharpzo_engine.heads.stacking import (
    HEAD_ALONE,
    PROMPT,
    TEMPLATES,
    TIP_ADAPTER,
    WRITTEN_STACKED,
    ZERO_SHOT,
    Stacking,
    accuracy,
)
from sharpzo_engine.result import FinishedSearch, fit_head

SEEDS, PASSES = (1, 2, 3, 4, 5), 4_000
LINEAR, SERVED, SERVES = "logistic regression", "served", "serves"
#: Columns of what needs no search, in this order.
OTHERS = (ZERO_SHOT, TEMPLATES, GDA, LINEAR, TIP_ADAPTER, WRITTEN_STACKED, INFORMED)
#: Points that what is served may be worse than the best of the others: on the mean, on a dataset.
MEAN_TARGET, WORST_TARGET = -0.5, -2.0


def measure(settings: Sequence[Setting], results: Results) -> None:
    """Run what is missing, seed by seed, so that a run broken off has whole seeds."""
    files = [read(each.folder, each.backbone, each.cache) for each in settings]
    for seed in settings[0].seeds:
        for setting, file in zip(settings, files, strict=True):
            for count in SHOTS:
                one = replace(setting, shots=count)
                key: list[str | int] = [setting.folder.stem, count, seed]
                results.measure(key, partial(run, one, file, seed))


def run(setting: Setting, file: FeatureFile, seed: int) -> list[Row]:
    """Test accuracies (fractions) of every classifier, and which one is served."""
    config = setting.config(seed, {"head": "auto"})
    shots, judges = file.few_shot(config.shots, seed), file.judges(config.shots)
    found = search(setting.backbone, file.class_names, shots, judges, config)
    finished = FinishedSearch(config, found, {}, shots, judges, "official")
    auto, gda, linear = (_stacking(finished, head) for head in ("auto", "gda", "linear"))
    heads = {
        **{name: auto.rows[name] for name in (ZERO_SHOT, TEMPLATES, TIP_ADAPTER, WRITTEN_STACKED)},
        GDA: fit_gda(shots, len(file.class_names)),
        LINEAR: linear.rows[HEAD_ALONE],
        INFORMED: gda.rows[HEAD_ALONE],
        PROMPT: auto.rows[PROMPT],
        SERVED: auto.served.head,
    }
    return [
        {
            "dataset": setting.folder.stem,
            "shots": config.shots,
            "seed": seed,
            **{name: accuracy(head, file.test) for name, head in heads.items()},
            SERVES: auto.served.name,
            "forward_passes": found.forward_passes,
            "seconds": found.seconds,
        }
    ]


def _stacking(finished: FinishedSearch, head: str) -> Stacking:
    config = finished.config.model_copy(update={"head": head})
    return fit_head(replace(finished, config=config))


def tables(rows: Sequence[Row], passes: int) -> list[Table]:
    """Means over seeds; and what is served against the best of the others on each dataset."""
    datasets = list(dict.fromkeys(str(row["dataset"]) for row in rows))
    shots = sorted({int(row["shots"]) for row in rows})
    lines: list[list[str]] = []
    gains: dict[int, dict[str, float]] = {count: {} for count in shots}
    for dataset, count in product(datasets, shots):
        own = [row for row in rows if (row["dataset"], row["shots"]) == (dataset, count)]
        if not own:
            continue
        *others, served = (_mean(own, name) for name in (*OTHERS, SERVED))
        gains[count][dataset] = gain = served - max(others)
        cells = [*(f"{mean:.1f}" for mean in others), percent([row[SERVED] for row in own])]
        lines.append([dataset, str(count), *cells, f"{gain:+.1f}"])
    seeds = len({row["seed"] for row in rows})
    title = f"Heads and what is served: test accuracy, %; {passes:,} forward passes, {seeds} seeds"
    header = ("dataset", "shots", *OTHERS, SERVED, "to the best")
    note = (
        "Means over seeds; of what is served ± standard deviation, and its difference to the best "
        "mean of the others, in points."
    )
    compared = [line for count in shots for line in _compare(count, gains[count])]
    return [
        Table(title, header, lines, note),
        comparison_table("Served, to the best of the others on each dataset", compared),
    ]


def _mean(rows: Sequence[Row], name: str) -> float:
    return 100 * mean_and_deviation([row[name] for row in rows])[0]


def _compare(shots: int, gains: dict[str, float]) -> list[Comparison]:
    worst = min(gains, key=lambda name: gains[name])
    return [
        Comparison(
            f"shots {shots}: mean", mean_and_deviation(list(gains.values()))[0], MEAN_TARGET
        ),
        Comparison(f"shots {shots}: worst, {worst}", gains[worst], WORST_TARGET),
    ]
