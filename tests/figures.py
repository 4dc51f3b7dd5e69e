"""Promises with a number each: measured, kept in a file, and written as the table of a document."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

ROOT = Path(__file__).parents[1]
END = "<!-- end of figures -->"

L = TypeVar("L")


@dataclass(frozen=True)
class Measured:
    """One figure as it came out."""

    measured: str
    runs: int
    worst: str
    kept: bool  #: Whether what was wanted was reached


@dataclass(frozen=True)
class Figure(Generic[L]):
    """What is promised, and how it is measured."""

    promise: str
    wanted: str
    measure: Callable[[L], Measured]

    @property
    def name(self) -> str:
        return self.measure.__name__.replace("_", "-")


@dataclass(frozen=True)
class Book(Generic[L]):
    """The figures of one document; `command` is the make target that measures them."""

    command: str
    figures: Sequence[Figure[L]]
    document: Path
    root: Path = ROOT

    @property
    def results_file(self) -> Path:
        """Where results are kept as soon as there are some."""
        return self.root / "build" / f"{self.command}.json"

    @property
    def begin(self) -> str:
        """The line above the table."""
        return f"<!-- figures: written by make {self.command} -->"

    def measure(self, lab: L, scale: float, only: str | None = None) -> int:
        """Measure, print and keep; a whole run writes the table. Returns the exit code."""
        chosen = [figure for figure in self.figures if only in (None, figure.name)]
        results = self._read_results()
        for number, figure in enumerate(chosen, 1):
            print(f"[{number}/{len(chosen)}] {figure.name} ...", flush=True)
            results[figure.name] = _measure(figure, lab, scale)
            self.results_file.parent.mkdir(exist_ok=True)
            self.results_file.write_text(json.dumps(results, indent=2))
        whole = all(result["scale"] >= 1 for result in results.values())
        if whole and len(results) == len(self.figures):
            self._write_table(results)
        return 0 if all(results[figure.name]["kept"] for figure in chosen) else 1

    def _read_results(self) -> dict[str, dict[str, Any]]:
        known = {figure.name for figure in self.figures}
        file = self.results_file
        results = json.loads(file.read_text()) if file.exists() else {}
        return {name: result for name, result in results.items() if name in known}

    def _write_table(self, results: dict[str, dict[str, Any]]) -> None:
        before, _, rest = self.document.read_text().partition(self.begin)
        after = rest.partition(END)[2]
        text = f"{before}{self.begin}\n\n{self.table(results)}\n\n{END}{after}"
        self.document.write_text(text)
        print(f"the table is in {self.document.relative_to(self.root)}")

    def table(self, results: dict[str, dict[str, Any]]) -> str:
        """The results in Markdown."""
        lines = ["| figure | wanted | measured | runs | worst |", "|---|---|---|---|---|"]
        for figure in self.figures:
            result = results[figure.name]
            found = (result["measured"], result["runs"], result["worst"])
            cells = [
                str(cell).replace("|", "/") for cell in (figure.promise, figure.wanted, *found)
            ]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)


def _measure(figure: Figure[L], lab: L, scale: float) -> dict[str, Any]:
    started = time.monotonic()
    try:
        measured = figure.measure(lab)
    except Exception as error:  # the other figures are worth having
        traceback.print_exc()
        measured = Measured(f"{type(error).__name__}", 0, str(error)[:200], kept=False)
    seconds = round(time.monotonic() - started)
    print(f"    {'kept' if measured.kept else 'MISSED'} in {seconds} s: {measured}", flush=True)
    return asdict(measured) | {"scale": scale, "seconds": seconds}
