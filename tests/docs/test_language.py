"""Texts that users read say things the way a colleague would.

The list holds words that readers stumbled over. String literals of the packages include what the
OpenAPI document, the command's help, log lines and events are made of.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT

pytestmark = pytest.mark.fast

BANNED = (
    r"mend(?:s|ed|ing)?",
    "anew",
    "whoever",
    "whatever",
    "lest",
    "told",
    "tells",
    "(?:put|puts|putting) down",
    "(?:to|can|cannot) be had",
    "(?:fell|falls|fallen) silent",
    "(?:go|goes|going|gone|went) on(?: from)?",
    "goes before",
    "no more(?! than)",
    "for ever",
    "nobody needs",
    "of (?:old|late)",
    "by way of",
    "at an end",
    "keeps its word",
    "(?:let|lets) go",
    "doorbell",
    "strangers?",
    "the usual way",
)
PATTERN = re.compile(
    rf"\b(?:{'|'.join(BANNED)})\b".replace(" ", r"[\s#*/|]+"), re.IGNORECASE
)  # a phrase may continue on the next line of a comment or a table

PACKAGES = ("service", "worker", "sharpzo_cli", "sharpzo_client", "sharpzo_core", "sharpzo_engine")
#: Files that are read as a whole, comments included.
TEXTS = (
    "*.md",
    "mkdocs.yml",
    "Makefile",
    "docker-compose.yml",
    ".env.example",
    "docs/**/*.md",
    "docs/pictures/*.svg",
    "examples/*.py",
    "docker/observability/**/*.yml",
    "docker/observability/**/*.json",
    "dashboard/src/**/*.ts",
    "dashboard/src/**/*.tsx",
    "sharpzo_engine/reports/templates/*.j2",
    "sharpzo_engine/tiny/*.md",
)


def matches(text: str, first_line: int = 1) -> Iterator[tuple[int, str]]:
    """Line and words of everything that is on the list."""
    for match in PATTERN.finditer(text):
        yield first_line + text.count("\n", 0, match.start()), " ".join(match[0].split())


def literals(source: str) -> Iterator[tuple[int, str]]:
    """Every string of a module with its line, docstrings and pieces of f-strings included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def faults_of(path: Path) -> list[str]:
    text, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT)
    whole = path.suffix != ".py" or name.parts[0] not in PACKAGES
    pieces = [(1, text)] if whole else literals(text)
    return [f"{name}:{line}: {words}" for at, piece in pieces for line, words in matches(piece, at)]


def test_texts_that_users_read_are_plain() -> None:
    files = [path for pattern in TEXTS for path in sorted(ROOT.glob(pattern))]
    files += [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    assert len(files) > 250
    assert [fault for path in files for fault in faults_of(path)] == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Mend it,\nor put\n    down.", [(1, "Mend"), (2, "put down")]),
        ("a recommended amendment, no more than three", []),
        ("# it waits no\n# more", [(1, "no # more")]),
        ("they go only on; outgoing once", []),
    ],
)
def test_words_are_found_across_lines(text: str, found: list[tuple[int, str]]) -> None:
    assert list(matches(text)) == found


def test_strings_of_a_module_are_read_and_its_names_are_not() -> None:
    source = 'lest = 1\n"""Told."""\nx = f"{lest} a" "new"\n'
    assert [(line, text) for line, text in literals(source)] == [(2, "Told."), (3, " anew")]
