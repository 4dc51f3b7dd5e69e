"""Pages of the documentation as lists of blocks, and what runs a block.

Sybil finds the blocks and keeps the line numbers of tracebacks right. What a page's blocks share is
here: a namespace for its Python, variables for its shell, and what the last one printed.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sybil import Document, Example, Lexeme
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser

from sharpzo_client import Client

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUN = ("python", "sh", "json")
#: What is shown and not run: output, drawings, and files.
SHOWN = ("text", "yaml", "ini", "nginx", "sql", "promql")
OPT_OUT = re.compile(r"<!-- not run: (.*?) -->\s*\Z", re.DOTALL)
SECONDS = 150
EXACT = {"code", "status", "type", "title"}  # of a problem: not only there, but the same


@dataclass
class Page:
    """One page while it runs, in a folder of its own."""

    path: Path
    folder: Path
    environment: dict[str, str]
    substitutions: Mapping[str, str]
    printed: str = ""

    def run(self) -> int:
        """Run its blocks in order, up to the first that fails; how many there were.

        Raises:
            AssertionError: names the block's line, and what it said.
        """
        blocks = document(self.path)
        done = 0
        try:
            for example in blocks.examples():
                done += 1
                self._run(example)
        except Exception as error:
            where = f"{os.path.relpath(self.path, ROOT)}, block at line {example.line}"
            raise AssertionError(f"{where}: {type(error).__name__}: {error}") from error
        finally:
            # Programs leave them to their end; this process goes on.
            for value in blocks.namespace.values():
                if isinstance(value, Client):
                    value.close()
        return done

    def _run(self, example: Example) -> None:
        run = {"python": self._python, "sh": self._sh, "json": self._json}
        run[example.region.lexemes["arguments"]](example)

    def _python(self, example: Example) -> None:
        source = example.parsed
        text = replaced(source, self.substitutions)
        example.parsed = Lexeme(text, source.offset, source.line_offset)
        example.namespace.setdefault("__name__", "__main__")
        out = io.StringIO()
        with (
            contextlib.chdir(self.folder),
            variables(self.environment),
            contextlib.redirect_stdout(out),
        ):
            PythonEvaluator()(example)
        self.printed = out.getvalue()

    def _sh(self, example: Example) -> None:
        script = replaced(example.parsed, self.substitutions)
        state = self.folder.parent / "environment"
        # Variables of a block are there in those that follow.
        script = f"set -a\ntrap 'env -0 >\"{state}\"' EXIT\n{script}"
        done = subprocess.run(
            ["bash", "-e", "-u", "-o", "pipefail", "-c", script],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        if done.returncode:
            raise AssertionError(f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
        self.environment = dict(
            entry.split("=", 1) for entry in state.read_text().split("\0") if "=" in entry
        )
        self.printed = done.stdout

    def _json(self, example: Example) -> None:
        """What a request before it printed has these keys, with values of these kinds."""
        shown = json.loads(example.parsed)
        answers = [a for a in json_values(self.printed) if not differences(shown, a)]
        if not answers:
            found = json_values(self.printed)
            reasons = differences(shown, found[-1]) if found else "nothing was printed"
            raise AssertionError(f"no such answer: {reasons}\n{self.printed[:3000]}")


def document(path: Path) -> Document:
    """The page with the blocks that are to be run."""
    found = Document.parse(str(path), *(CodeBlockParser(name, lambda _: None) for name in RUN))
    found.regions = [
        (start, region) for start, region in found.regions if not OPT_OUT.search(found.text[:start])
    ]
    return found


def languages(path: Path) -> Iterator[tuple[int, str]]:
    """Line and language of every block of a page."""
    inside = ""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        fence = re.match(r"\s*(`{3,}|~{3,})(.*)", line)
        if not fence:
            continue
        if not inside:
            yield number, fence[2].strip()
            inside = fence[1]
        elif fence[1] == inside:
            inside = ""


def opt_outs(path: Path) -> list[str]:
    """The reasons of blocks that are not run."""
    return re.findall(r"<!-- not run: (.*?) -->", path.read_text(), re.DOTALL)


def replaced(source: str, substitutions: Mapping[str, str]) -> str:
    """The block with every text of the table replaced; longer ones first."""
    for old in sorted(substitutions, key=len, reverse=True):
        source = source.replace(old, substitutions[old])
    return source


@contextlib.contextmanager
def variables(environment: Mapping[str, str]) -> Iterator[None]:
    """This process with another environment."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def json_values(text: str) -> list[Any]:
    """Every JSON object or array that begins a line, or follows another."""
    decoder, found, at = json.JSONDecoder(), [], 0
    start, follows = re.compile(r"^[\[{]", re.MULTILINE), re.compile(r"[\[{]")
    while match := (found and follows.match(text, at)) or start.search(text, at):
        try:
            value, at = decoder.raw_decode(text, match.start())
            found.append(value)
        except json.JSONDecodeError:
            at = match.end()
    return found


def differences(shown: Any, found: Any, where: str = "") -> str:
    """Why an answer is not of the shape that a page shows; empty if it is.

    A page may leave out keys and further elements of lists, but show none that is not there.
    """
    if isinstance(shown, dict) and isinstance(found, dict):
        for key, value in shown.items():
            if key not in found:
                return f"{where}/{key} is not in the answer"
            if key in EXACT and "title" in shown and value != found[key]:
                return f"{where}/{key} is {found[key]!r}"
            if reason := differences(value, found[key], f"{where}/{key}"):
                return reason
        return ""
    if isinstance(shown, list) and isinstance(found, list):
        if shown and not found:
            return f"{where} is empty"
        pairs = zip(shown, found, strict=False)
        reasons = (differences(s, f, f"{where}/{i}") for i, (s, f) in enumerate(pairs))
        return next(filter(None, reasons), "")
    if kind(shown) != kind(found):
        return f"{where} is {found!r}"
    return ""


def kind(value: Any) -> str:
    """JSON's name of a value's type; integers are numbers."""
    if isinstance(value, bool):
        return "boolean"
    return "number" if isinstance(value, int | float) else type(value).__name__
