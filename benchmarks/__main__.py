"""All benchmarks in one run.

    python -m benchmarks [--full] [--dataset PATH --backbone SPEC] [--sections ...]
                         [--json FILE] [--markdown FILE] [--resume]

The short form takes about a quarter of an hour on two cores: it shows that everything runs and
roughly what comes out; what the documentation states is of `--full`, which takes hours, but for
serving. Without a dataset it is the photos and the model in the folder that SHARPZO_REAL_DATA
names, else scikit-learn's handwritten digits on the bundled backbone.

One JSON file holds all measurements and what machine they are of; `--markdown` renders the tables
for docs/benchmarks.md. `--resume` continues an interrupted `--full` run.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from benchmarks import accuracy, dashboard, defaults, ingestion, memory, serving, time_to_accuracy
from benchmarks.support.output import RESULTS, Row, Table, machine_facts, to_markdown, write_json
from benchmarks.support.results import Results
from benchmarks.support.setting import TINY, Setting, digits_in, facts_of

SECTIONS = (
    "objective",
    "memory",
    "serving",
    "ingestion",
    "dashboard",
    "accuracy",
    "time_to_accuracy",
    "defaults",
)


@dataclass(frozen=True)
class Budget:
    """How much is measured."""

    short_objective: bool
    memory_classes: tuple[int, ...]
    passes: int  #: of accuracy and time to accuracy
    seeds: tuple[int, ...]  #: of accuracy
    seeds_of_time: tuple[int, ...]
    defaults_passes: int
    defaults_seeds: tuple[int, ...]
    variants: tuple[str, ...]
    plain_passes: int  #: that the plain text path is timed on
    serving: serving.Budget
    megabytes: int  #: of each archive that is read
    visits: int  #: to each page of the dashboard
    shots: int = 16


FULL = Budget(
    short_objective=False,
    memory_classes=memory.CLASSES,
    passes=accuracy.PASSES,
    seeds=accuracy.SEEDS,
    seeds_of_time=time_to_accuracy.SEEDS,
    defaults_passes=defaults.PASSES,
    defaults_seeds=defaults.SEEDS,
    variants=tuple(defaults.VARIANTS),
    plain_passes=time_to_accuracy.PLAIN_PASSES,
    serving=serving.FULL,
    megabytes=ingestion.MEGABYTES,
    visits=dashboard.RUNS,
)
SHORT = Budget(
    short_objective=True,
    memory_classes=(10,),
    passes=3_000,
    seeds=(1,),
    seeds_of_time=(1,),
    defaults_passes=1_000,
    defaults_seeds=(1,),
    variants=("default", "stage 1 alone", "stage 2 alone (change point 0)", "adam, jvp", "paper"),
    plain_passes=10,
    serving=serving.SHORT,
    megabytes=ingestion.SHORT_MEGABYTES,
    visits=3,
)


class Section(NamedTuple):
    """One benchmark's outcome."""

    rows: list[Row]
    tables: list[Table]


@contextmanager
def find_photos(options: argparse.Namespace) -> Iterator[tuple[Path, str]]:
    """A dataset's folder and a backbone."""
    real = Path(os.environ.get("SHARPZO_REAL_DATA", "/nonexistent"))
    if options.dataset:
        yield options.dataset.resolve(), options.backbone or TINY
    elif (real / "lite").is_dir():
        yield real / "clothing", options.backbone or f"local-dir:{real / 'lite'}"
    else:
        with TemporaryDirectory() as folder:
            yield digits_in(Path(folder)), options.backbone or TINY


def measure_objective(budget: Budget) -> Section:
    """The hot path."""
    from benchmarks import objective

    rows = objective.run(short=budget.short_objective)
    header = [heading for heading, _ in objective.COLUMNS.values()]
    lines = [
        [
            form.format(row[key]) if key in row else ""
            for key, (_, form) in objective.COLUMNS.items()
        ]
        for row in rows
    ]
    title = f"Losses: text tower of {' and '.join(objective.TOWERS)}, ratios are plain : ours"
    return Section(rows, [Table(title, header, lines)])


def measure_memory(budget: Budget) -> Section:
    """Peaks of processes."""
    rows = memory.run(budget.memory_classes)
    return Section(rows, memory.tables(rows))


def measure_serving(budget: Budget) -> Section:
    """The service against the bare encoder."""
    rows = serving.run(budget.serving)
    return Section(rows, serving.tables(rows))


def measure_ingestion(budget: Budget) -> Section:
    """Archives of photos, uploaded and read."""
    rows = ingestion.run(budget.megabytes)
    return Section(rows, ingestion.tables(rows))


def measure_dashboard(budget: Budget) -> Section:
    """The pages in a browser, where there is one."""
    if dashboard.CHROMIUM is None:
        return Section([], [Table("Dashboard", ("not measured: there is no chromium",), [])])
    rows = dashboard.run(budget.visits)
    return Section(rows, dashboard.tables(rows))


def measure_accuracy(setting: Setting, parts: Path, *, resume: bool) -> Section:
    """All methods at one budget."""
    results = Results.open(parts / "accuracy.json", setting.facts(), resume=resume)
    accuracy.measure(setting, results)
    return Section(results.rows, accuracy.tables(results.rows, setting.title))


def measure_time(setting: Setting, parts: Path, plain_passes: int, *, resume: bool) -> Section:
    """Passes and seconds to the paper's accuracy."""
    results = Results.open(parts / "time_to_accuracy.json", setting.facts(), resume=resume)
    time_to_accuracy.measure(setting, results, plain_passes=plain_passes)
    return Section(results.rows, time_to_accuracy.tables(results.rows, setting.title))


def measure_defaults(
    setting: Setting, parts: Path, variants: Sequence[str], *, resume: bool
) -> Section:
    """One choice at a time."""
    results = Results.open(parts / "defaults.json", facts_of([setting]), resume=resume)
    defaults.measure([setting], results, variants)
    return Section(results.rows, defaults.tables(results.rows, setting.passes))


def measure_all(
    budget: Budget, setting: Setting, parts: Path, sections: Sequence[str], *, resume: bool
) -> Iterator[tuple[str, Section]]:
    """The sections with their names; those on photos keep what they have in `parts`."""
    large = replace(setting, seeds=budget.seeds, passes=budget.passes)
    few = replace(large, seeds=budget.seeds_of_time)
    less = replace(setting, seeds=budget.defaults_seeds, passes=budget.defaults_passes)
    plain_passes, variants = budget.plain_passes, budget.variants
    measures: dict[str, Callable[[], Section]] = {
        "objective": lambda: measure_objective(budget),
        "memory": lambda: measure_memory(budget),
        "serving": lambda: measure_serving(budget),
        "ingestion": lambda: measure_ingestion(budget),
        "dashboard": lambda: measure_dashboard(budget),
        "accuracy": lambda: measure_accuracy(large, parts, resume=resume),
        "time_to_accuracy": lambda: measure_time(few, parts, plain_passes, resume=resume),
        "defaults": lambda: measure_defaults(less, parts, variants, resume=resume),
    }
    for name in sections:
        yield name, measures[name]()


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--full", action="store_true", help="full budgets and all seeds")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--dataset", type=Path)
    parser.add_argument("--backbone")
    parser.add_argument("--pretrained")
    parser.add_argument("--cache", type=Path, help="where to keep image features")
    parser.add_argument("--resume", action="store_true", help="skip what was measured before")
    parser.add_argument("--json", type=Path, help=f"default: {RESULTS}/full.json or short.json")
    parser.add_argument("--markdown", type=Path)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None, budget: Budget | None = None) -> None:
    """Measure, print and write."""
    options = parse(arguments)
    budget = budget or (FULL if options.full else SHORT)
    path = options.json or RESULTS / ("full.json" if options.full else "short.json")
    found: dict[str, list[Row]] = {}
    tables: list[Table] = []
    with find_photos(options) as (folder, backbone), TemporaryDirectory() as cache:
        setting = Setting(
            folder, backbone, options.pretrained, options.cache or Path(cache), budget.shots
        )
        began = time.monotonic()
        for name, section in measure_all(
            budget, setting, path.parent / path.stem, options.sections, resume=options.resume
        ):
            found[name] = section.rows
            tables += section.tables
            for table in section.tables:
                table.print()
            write_json(path, {"machine": machine_facts(), **found})
        print(f"{time.monotonic() - began:.0f} s in all; written to {path}")
    if options.markdown:
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        options.markdown.write_text(to_markdown(machine_facts(), tables))


if __name__ == "__main__":
    main()
