"""Measurements in a JSON file that grows one by one, so that a long run can be broken off."""

from __future__ import annotations

import fcntl
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.support.output import Row, machine_facts, write_json


@dataclass
class Results:
    """Measurements of one benchmark under one setting, kept in a file (or nowhere).

    A measurement is a row with a `key` of strings or numbers that identifies it. Several processes
    may add to the same file at a time.
    """

    path: Path | None
    setting: Row
    rows: list[Row] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path | None, setting: Row, *, resume: bool) -> Results:
        """Start a new file, or continue with the results in the file.

        Raises:
            SystemExit: the file is of another setting.
        """
        results = cls(path, setting)
        if path and path.is_file() and resume:
            results.rows = results._stored()
        elif path:
            results._write()
        return results

    def measure(self, key: list[str | int], measure: Callable[[], list[Row]]) -> None:
        """Measure what `key` names, unless that is done; several rows may come of it."""
        if any(row["key"] == key for row in self.rows):
            return
        began = time.monotonic()
        found = [{"key": key, **row} for row in measure()]
        print(*key, f"took {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        if self.path is None:
            self.rows += found
            return
        with self._locked():
            others = [row for row in self._stored() if row["key"] != key]
            self.rows = [*others, *found]
            self._write()

    def _stored(self) -> list[Row]:
        if self.path is None or not self.path.is_file():
            return []
        stored = json.loads(self.path.read_text())
        if stored.get("setting") != self.setting:
            raise SystemExit(f"{self.path} holds measurements of another setting (name another)")
        rows: list[Row] = stored["rows"]
        return rows

    def _write(self) -> None:
        if self.path:
            facts = {"machine": machine_facts(), "setting": self.setting, "rows": self.rows}
            write_json(self.path, facts)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold a lock file beside the results: the file itself is replaced by every writer."""
        assert self.path is not None
        with self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
