"""What benchmarks hand out: tables for people, JSON for programs, Markdown for the documentation.

Nothing here loads torch, so that a process whose memory is measured may import it.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

RESULTS = Path("benchmarks/results")
PACKAGES = ("torch", "open_clip_torch", "cma", "numpy")
WIDTH = 140  # columns of a terminal that is none
DASH = "\N{EN DASH}"  # for what was not measured

Row = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """Figures with a title; the first column is text, the others are numbers."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def print(self) -> None:
        """To the terminal."""
        console = Console(width=None if Console().is_terminal else WIDTH)
        table = RichTable(title=self.title, title_justify="left")
        for index, name in enumerate(self.header):
            table.add_column(name, justify="right" if index else "left")
        for row in self.rows:
            table.add_row(*row)
        console.print(table)
        if self.note:
            console.print(self.note, style="dim", highlight=False)

    def to_markdown(self) -> str:
        """The same as a section of a document."""
        rule = ["---", *["--:"] * (len(self.header) - 1)]
        lines = [f"| {' | '.join(cells)} |" for cells in (self.header, rule, *self.rows)]
        note = f"\n\n{self.note}" if self.note else ""
        return f"### {self.title}\n\n" + "\n".join(lines) + note


@dataclass(frozen=True)
class Comparison:
    """A figure beside the one that it should reach."""

    name: str
    value: float | None  #: None where it was not measured
    target: float | None  #: None where nothing is aimed at
    at_most: bool = False  #: whether smaller is better
    form: str = "{:+.1f} points"
    bound: str = ""  #: `> ` where the figure is known to be larger, by how much is not

    @property
    def verdict(self) -> str:
        """Whether the figure is on the target's right side."""
        if self.value is None or self.target is None:
            return ""
        beyond = self.target - self.value if self.at_most else self.value - self.target
        return "met" if beyond >= 0 else "missed"

    def cells(self) -> list[str]:
        """Its row in a table."""
        sign = "≤" if self.at_most else "≥"
        value = DASH if self.value is None else self.bound + self.form.format(self.value)
        target = "" if self.target is None else f"{sign} {self.form.format(self.target)}"
        return [self.name, value, target, self.verdict]


def comparison_table(title: str, comparisons: Sequence[Comparison]) -> Table:
    """What was aimed at, and what was hit."""
    header = ("", "measured", "target", "")
    return Table(title, header, [comparison.cells() for comparison in comparisons])


def percent(values: Sequence[float]) -> str:
    """Mean and, of several, the standard deviation of fractions."""
    if not values:
        return DASH
    mean, spread = mean_and_deviation(values)
    return f"{mean:.1%}" + (f" ± {100 * spread:.1f}" if len(values) > 1 else "")


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation, which is 0 for a single value."""
    mean = math.fsum(values) / len(values)
    square = math.fsum((value - mean) ** 2 for value in values)
    return mean, math.sqrt(square / max(1, len(values) - 1))


def write_json(path: Path, value: object) -> None:
    """Write at once or not at all; what is not a finite number is null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(_finite(value), indent=2, ensure_ascii=False) + "\n")
    temporary.replace(path)


def machine_facts() -> Row:
    """What figures depend on beside the code."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }


def describe_machine(facts: Row) -> str:
    """The facts in a sentence."""
    packages = ", ".join(f"{name} {facts[name]}" for name in PACKAGES)
    return (
        f"Measured {facts['date'][:10]} on {facts['processor']}, {facts['cores']} cores "
        f"({facts['system']}), Python {facts['python']}, {packages}."
    )


def to_markdown(facts: Row, tables: Sequence[Table]) -> str:
    """All tables as a document's body."""
    return "\n\n".join([describe_machine(facts), *(table.to_markdown() for table in tables)]) + "\n"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "an unnamed processor"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
