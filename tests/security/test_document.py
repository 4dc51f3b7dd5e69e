"""The document names every row of bad input that has a test, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from tests.figures import ROOT
from tests.fuzz.figures import BOOK

DOCUMENT = (ROOT / "docs" / "security.md").read_text()


def marked() -> Iterator[str]:
    """Rows that tests are marked with."""
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.bad_input":
                yield from (ast.literal_eval(argument) for argument in node.args)


def test_every_row_has_a_test_and_every_test_a_row() -> None:
    rows = re.findall(r"^\| ([A-Z][0-9]+) \|", DOCUMENT, re.MULTILINE)
    assert len(rows) == len(set(rows))
    assert set(rows) == set(marked())


def test_every_test_that_the_threats_name_is_there() -> None:
    pages = DOCUMENT + (ROOT / "docs" / "reliability.md").read_text()
    names = re.findall(r"`(\w+/[\w/]*test_\w+)`", pages)
    assert len(names) > 40
    assert [name for name in names if not (ROOT / "tests" / f"{name}.py").exists()] == []


def test_the_figures_are_those_that_are_measured() -> None:
    table = DOCUMENT.partition(BOOK.begin)[2]
    for figure in BOOK.figures:
        assert f"| {figure.promise} | {figure.wanted} |" in table, "run `make fuzz`"
