"""Forward passes and seconds until an accuracy is reached: `paper`, `default` and `reference`.

    python -m benchmarks.time_to_accuracy PHOTOS --backbone SPEC [--seeds 1 2 3] [--passes 30000]
                                          [--cap N] [--json FILE] [--resume]

The accuracy is the best that `paper` has on validation images within its budget; its passes are
those until it had it for the first time. `default` runs until it is validated at that accuracy:
after every generation in stage 1, and every 200 passes in stage 2, which its figures are too high
by at most.

`reference` runs on the fast text path, which has the same losses, to find out how many passes it
needs (at most `--cap`). Its seconds are those passes times what one takes on the plain path,
open_clip's own full forward of one candidate at a time, as the released code has it: the fastest of
some tens, on one thread or on all, for what else the machine does only ever adds (the JSON file has
the median too). What CMA-ES itself takes is left out. Both are in favour of `reference`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from benchmarks.objective import PlainEncoder
from benchmarks.support.output import RESULTS, Comparison, Row, Table, comparison_table
from benchmarks.support.results import Results
from benchmarks.support.setting import Setting, make_parser, setting_of
from sharpzo_engine import Objective, Progress, TuningConfig, TuningInterrupted
from sharpzo_engine.search.loop import Search
from sharpzo_engine.search.prompt_space import Array

SEEDS = (1, 2, 3)
PASSES = 30_000
PLAIN_PASSES = 30  # that the plain path is timed on
TARGETS = {"paper_passes": 10.0, "plain_seconds": 100.0}  # : default's


@dataclass(frozen=True)
class Reached:
    """Where a search was first validated at an accuracy; else what it spent in vain."""

    accuracy: float  #: a fraction
    passes: int
    seconds: float
    in_time: bool


def run_paper(setting: Setting, seed: int) -> tuple[float, Reached]:
    """Zero-shot's validation accuracy, and the best of the paper's method: when it had it."""
    search = setting.search(setting.paper(seed))
    search.run()
    # A budget below one generation leaves the hand-written prompt.
    moments = [
        Reached(record.val_accuracy, record.forward_passes, record.seconds, True)
        for record in search.history
        if record.val_accuracy is not None
    ] or [Reached(search.start.accuracy, search.forward_passes, search.seconds, True)]
    return search.start.accuracy, max(moments, key=lambda moment: moment.accuracy)


def run_until(setting: Setting, config: TuningConfig, accuracy: float) -> Reached:
    """Search until a step is validated at `accuracy`."""

    def stop(progress: Progress) -> None:
        record = progress.record
        if record and record.val_accuracy is not None and record.val_accuracy >= accuracy:
            raise TuningInterrupted

    search = setting.search(config, stop)
    try:
        search.run()
    except TuningInterrupted:
        last = search.history[-1]
        return Reached(last.val_accuracy or 0.0, last.forward_passes, last.seconds, True)
    return Reached(_best(search), search.forward_passes, search.seconds, False)


def _best(search: Search) -> float:
    """The highest validated accuracy."""
    validated = (record.val_accuracy or 0.0 for record in search.history)
    return max(validated, default=search.start.accuracy)


def time_plain_passes(setting: Setting, config: TuningConfig, count: int) -> list[float]:
    """Seconds of `count` losses by open_clip's own full forward, on as many threads as suit it.

    On a busy machine torch's threads wait for each other, and one alone may be faster.
    """
    objective, _ = setting.objectives(config)
    space = objective.space
    space.prompts = PlainEncoder(space, config.prompt.context)  # type: ignore[assignment]
    points = 0.1 * np.random.default_rng(0).normal(size=(count + 1, space.dim))
    threads = torch.get_num_threads()
    runs = []
    try:
        for number in sorted({1, threads}):
            torch.set_num_threads(number)
            runs.append(_seconds_of_each(objective, points)[1:])  # the first warms up
    finally:
        torch.set_num_threads(threads)
    return min(runs, key=min)


@torch.inference_mode()
def _seconds_of_each(objective: Objective, points: Array) -> list[float]:
    times = []
    for point in points:
        began = time.monotonic()
        objective(point[None])
        times.append(time.monotonic() - began)
    return times


def measure_seed(setting: Setting, seed: int, cap: int, plain_passes: int) -> list[Row]:
    """All three with one seed."""
    zero_shot, paper = run_paper(setting, seed)
    ours = run_until(setting, setting.config(seed, {"head": "none"}), paper.accuracy)
    config = replace(setting, passes=cap).config(seed, {}, "reference")
    reference = run_until(setting, config, paper.accuracy)
    times = time_plain_passes(setting, config, plain_passes)
    row = {
        "seed": seed,
        "target_accuracy": paper.accuracy,
        "zero_shot_accuracy": zero_shot,
        "plain_seconds_per_pass": min(times),
        "plain_seconds_per_pass_median": statistics.median(times),
        "plain_seconds": min(times) * reference.passes,
    }
    for name, reached in (("paper", paper), ("default", ours), ("reference", reference)):
        row |= {
            f"{name}_passes": reached.passes,
            f"{name}_seconds": reached.seconds,
            f"{name}_accuracy": reached.accuracy,
            f"{name}_reached": reached.in_time,
        }
    return [row]


def measure(
    setting: Setting, results: Results, cap: int | None = None, plain_passes: int = PLAIN_PASSES
) -> None:
    """Measure the seeds that are missing."""
    limit = cap or 2 * setting.passes
    for seed in setting.seeds:
        results.measure([seed], partial(measure_seed, setting, seed, limit, plain_passes))


def tables(rows: Sequence[Row], title: str) -> list[Table]:
    """What each takes per seed, and the medians of the ratios."""
    header = (
        "seed", "zero-shot", "target", "paper, passes", "default, passes", "paper, s", "default, s",
        "reference, passes", "plain, ms/pass", "reference, s",
    )  # fmt: skip
    note = (
        "Validation accuracies. The reference's seconds are its passes times the plain text path's "
        "seconds per pass; `>` marks a budget that ended before the target was reached."
    )
    lines = [_line(row) for row in sorted(rows, key=lambda row: int(row["seed"]))]
    compared = [
        _ratio(rows, "passes, paper : default", ("paper", "paper_passes"), "default_passes"),
        _ratio(rows, "seconds, paper : default", ("paper", "paper_seconds"), "default_seconds"),
        _ratio(
            rows,
            "seconds, reference on the plain path : default",
            ("reference", "plain_seconds"),
            "default_seconds",
        ),
    ]
    return [
        Table(f"Time to accuracy: {title}", header, lines, note),
        comparison_table(f"Ratios, medians over seeds: {title}", compared),
    ]


def _line(row: Row) -> list[str]:
    def shown(name: str, key: str, form: str) -> str:
        return ("" if row[f"{name}_reached"] else "> ") + form.format(row[key])

    accuracies = [f"{row[key]:.1%}" for key in ("zero_shot_accuracy", "target_accuracy")]
    figures = [shown(name, f"{name}_passes", "{:,}") for name in ("paper", "default")]
    figures += [shown(name, f"{name}_seconds", "{:,.1f}") for name in ("paper", "default")]
    figures.append(shown("reference", "reference_passes", "{:,}"))
    figures.append(f"{1000 * row['plain_seconds_per_pass']:.1f}")
    figures.append(shown("reference", "plain_seconds", "{:,.0f}"))
    return [str(row["seed"]), *accuracies, *figures]


def _ratio(rows: Sequence[Row], title: str, other: tuple[str, str], ours: str) -> Comparison:
    """Median of another's figure over ours; a seed on which ours is not reached counts as 0."""
    name, key = other
    ratios = [row[key] / row[ours] if row["default_reached"] else 0.0 for row in rows]
    bound = "" if all(row[f"{name}_reached"] for row in rows) else "> "
    value = statistics.median(ratios) if ratios else None
    return Comparison(title, value, TARGETS.get(key), form="{:.1f}", bound=bound)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = make_parser(__doc__, SEEDS, PASSES)
    parser.add_argument("--cap", type=int, help="passes of `reference` (default: 2 x --passes)")
    options = parser.parse_args(arguments)
    with setting_of(options) as setting:
        path = options.json or RESULTS / "time_to_accuracy.json"
        facts = {**setting.facts(), "cap": options.cap}
        results = Results.open(path, facts, resume=options.resume)
        measure(setting, results, options.cap)
        for table in tables(results.rows, setting.title):
            table.print()


if __name__ == "__main__":
    main()
