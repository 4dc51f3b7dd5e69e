"""Test accuracy at an equal budget of forward passes: every method, the yardsticks, the heads.

    python -m benchmarks.accuracy PHOTOS --backbone SPEC [--methods ...] [--seeds 1 2 3 4 5]
                                  [--passes 30000] [--shots 16] [--json FILE] [--resume]

`first-order` is the yardstick with gradients by backpropagation (CoOp): every learning rate of a
short list is run, and the one with the lowest validation loss counts. One run of `default` says all
of zero-shot, the prompt, the prompt with its head, and Tip-Adapter; GDA alone is fitted to the same
shots and needs neither passes nor validation. The JSON file is written after every run; `--resume`
skips what it holds, so that several processes may share it.

    python -m benchmarks.accuracy DATA... --backbone SPEC --few-shots [--passes 4000]

compares heads without a search, and what `head: auto` serves after one, at 1 to 16 shots. DATA is
any number of folders of photos, files of features, and `digits`, which brings its backbone `tiny`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.support import few_shots, served
from benchmarks.support.output import (
    RESULTS,
    Comparison,
    Row,
    Table,
    comparison_table,
    mean_and_deviation,
    percent,
)
from benchmarks.support.results import Results
from benchmarks.support.setting import Setting, facts_of, make_parser, settings_of
from sharpzo_engine import TuneResult, TuningConfig
from sharpzo_engine.heads.fitting import fit_gda
from sharpzo_engine.heads.stacking import accuracy

SEEDS = (1, 2, 3, 4, 5)
PASSES = 30_000
LEARNING_RATES = (0.03, 0.1, 0.3)  # of the first-order yardstick
FIRST_ORDER_STEPS = 3_000  # by which it has converged

ZERO_SHOT, PROMPT, STACKED = "zero-shot", "default", "default + head"
GDA, TIP_ADAPTER, FIRST_ORDER = "GDA alone", "Tip-Adapter", "first-order"
#: Rows of the table, in this order.
ROWS = (
    ZERO_SHOT, "paper", "reference", "cma-es", "zo", PROMPT, FIRST_ORDER, STACKED, GDA, TIP_ADAPTER,
)  # fmt: skip
#: Which row should be how many points above which other, at least.
TARGETS = (
    (PROMPT, "paper", 5.0),
    (PROMPT, FIRST_ORDER, -1.5),
    (STACKED, GDA, 0.0),
    (STACKED, FIRST_ORDER, 8.0),
)


def run_paper(setting: Setting, seed: int) -> list[Row]:
    """The paper's method."""
    return [_row("paper", setting.tune(setting.paper(seed)))]


def run_reference(setting: Setting, seed: int) -> list[Row]:
    """The released code, its accidents included; its change point is never reached."""
    return [_row("reference", setting.tune(setting.config(seed, {}, "reference")))]


def run_cma(setting: Setting, seed: int) -> list[Row]:
    """Stage 1 alone (Black-Box Tuning)."""
    config = setting.config(seed, {"method": "cma-es", "head": "none"})
    return [_row("cma-es", setting.tune(config))]


def run_zo(setting: Setting, seed: int) -> list[Row]:
    """Adam on random gradients by central differences (as MeZO)."""
    zo = {"optimizer": "adam", "estimator": "rge"}
    config = setting.config(seed, {"method": "zo", "head": "none", "zo": zo})
    return [_row("zo", setting.tune(config))]


def run_first_order(setting: Setting, seed: int) -> list[Row]:
    """Adam with gradients by backpropagation; the learning rate is chosen on validation."""
    runs = [(rate, setting.tune(_first_order(setting, seed, rate))) for rate in LEARNING_RATES]
    rate, best = min(runs, key=lambda run: run[1].metrics["val_loss"] or 0.0)
    steps = best.metrics["steps"]
    return [_row(FIRST_ORDER, best, backward_passes=steps, learning_rate=rate)]


def run_default(setting: Setting, seed: int) -> list[Row]:
    """One run, which provides the prompt, its head, and both heads without the prompt."""
    result = setting.tune(setting.config(seed, {"head": "auto"}))
    metrics = result.metrics
    free = {"forward_passes": 0, "seconds": None}
    return [
        _row(ZERO_SHOT, result, test_accuracy=metrics["zero_shot_accuracy"], **free),
        _row(PROMPT, result),
        _row(STACKED, result, test_accuracy=metrics["test_accuracy"]),
        _row(TIP_ADAPTER, result, test_accuracy=metrics["tip_adapter_test_accuracy"], **free),
        _gda(setting, seed),
    ]


Method = Callable[[Setting, int], list[Row]]
METHODS: dict[str, Method] = {
    "default": run_default,
    "paper": run_paper,
    "reference": run_reference,
    "cma-es": run_cma,
    "zo": run_zo,
    "first-order": run_first_order,
}


def _first_order(setting: Setting, seed: int, rate: float) -> TuningConfig:
    values = {
        "method": "first-order",
        "head": "none",
        "total_steps": min(FIRST_ORDER_STEPS, setting.passes),
        "zo": {"learning_rate": rate},
    }
    return setting.config(seed, values)


def _gda(setting: Setting, seed: int) -> Row:
    """Gaussian discriminant analysis of all shots; there is nothing to choose."""
    dataset = setting.dataset(seed)
    shots, test = (setting.features(split) for split in (dataset.train, dataset.test))
    began = time.monotonic()
    head = fit_gda(shots, len(dataset.class_names))
    seconds = time.monotonic() - began
    return {
        "row": GDA,
        "seed": seed,
        "test_accuracy": accuracy(head, test),
        "forward_passes": 0,
        "backward_passes": 0,
        "seconds": seconds,
    }


def _row(name: str, result: TuneResult, **more: float | None) -> Row:
    """What a run says about a row of the table; the prompt's accuracy unless stated."""
    metrics = result.metrics
    return {
        "row": name,
        "seed": result.prompt.metadata["config"]["seed"],
        "test_accuracy": metrics["prompt_test_accuracy"],
        "val_accuracy": metrics["val_accuracy"],
        "forward_passes": metrics["forward_passes"],
        "backward_passes": 0,
        "seconds": metrics["seconds"],
        **more,
    }


def measure(setting: Setting, results: Results, methods: Sequence[str] = tuple(METHODS)) -> None:
    """Run what is missing, seed by seed, so that a run broken off has whole seeds."""
    for seed in setting.seeds:
        for name in methods:
            results.measure([name, seed], partial(METHODS[name], setting, seed))


def tables(rows: Sequence[Row], title: str) -> list[Table]:
    """Accuracies and costs, means over the seeds; and the differences that matter."""
    header = ("method", "test accuracy", "seeds", "forward passes", "backward passes", "seconds")
    lines = [_line(name, found) for name in ROWS if (found := _of(rows, name))]
    note = (
        "Mean ± standard deviation over seeds; features are computed once and not in the seconds."
    )
    compared = [
        Comparison(f"{name} - {other}", _difference(rows, name, other), target)
        for name, other, target in TARGETS
    ]
    return [
        Table(f"Accuracy: {title}", header, lines, note),
        comparison_table(f"Differences: {title}", compared),
    ]


def _of(rows: Sequence[Row], name: str) -> list[Row]:
    return [row for row in rows if row["row"] == name and row["test_accuracy"] is not None]


def _line(name: str, rows: Sequence[Row]) -> list[str]:
    def mean(key: str, form: str) -> str:
        values = [row[key] for row in rows if row[key] is not None]
        return form.format(mean_and_deviation(values)[0]) if any(values) else ""

    accuracies = percent([row["test_accuracy"] for row in rows])
    passes = [mean(f"{way}_passes", "{:,.0f}") for way in ("forward", "backward")]
    return [name, accuracies, str(len(rows)), *passes, mean("seconds", "{:,.1f}")]


def _difference(rows: Sequence[Row], name: str, other: str) -> float | None:
    """Points between two rows, over the seeds that both have."""
    first, second = (
        {row["seed"]: row["test_accuracy"] for row in _of(rows, one)} for one in (name, other)
    )
    shared = sorted(first.keys() & second.keys())
    if not shared:
        return None
    return 100 * mean_and_deviation([first[seed] - second[seed] for seed in shared])[0]


def _compare_heads(settings: Sequence[Setting], json: Path | None, *, resume: bool) -> None:
    path = json or RESULTS / "few_shots.json"
    results = Results.open(path, facts_of(settings), resume=resume)
    served.measure(settings, results)
    for table in (
        *(few_shots.compare(setting) for setting in settings),
        *served.tables(results.rows, settings[0].passes),
    ):
        table.print()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = make_parser(__doc__, SEEDS, PASSES, datasets="+")
    parser.set_defaults(passes=None)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--few-shots", action="store_true", help="heads at 1 to 16 shots")
    options = parser.parse_args(arguments)
    options.passes = options.passes or (served.PASSES if options.few_shots else PASSES)
    if len(options.dataset) > 1 and not options.few_shots:
        parser.error("several datasets are compared by --few-shots alone (name one, or add it)")
    with settings_of(options, options.dataset) as settings:
        if options.few_shots:
            _compare_heads(settings, options.json, resume=options.resume)
            return
        (setting,) = settings
        path = options.json or RESULTS / "accuracy.json"
        results = Results.open(path, setting.facts(), resume=options.resume)
        measure(setting, results, options.methods)
        for table in tables(results.rows, setting.title):
            table.print()


if __name__ == "__main__":
    main()
