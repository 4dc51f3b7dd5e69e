"""Every line that our processes log has an `action`, and the documentation lists them all."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.pages import table
from tests.figures import ROOT

pytestmark = pytest.mark.fast

PACKAGES = ("service", "worker", "sharpzo_core")
LEVELS = {"debug", "info", "warning", "error", "exception"}
#: Made without a logger, where nothing may wait.
BY_HAND = {"log_records_dropped": {"warning"}}


def test_the_table_of_actions_is_what_the_code_logs() -> None:
    documented = {name.strip("`"): set(levels.split(", ")) for name, levels, *_ in table("action")}
    assert documented == logged_actions()


def test_every_call_names_its_action() -> None:
    nameless = [where for where, _, action in calls() if action is None]
    assert nameless == []


def logged_actions() -> dict[str, set[str]]:
    """Action -> the levels that it is logged at."""
    found: dict[str, set[str]] = defaultdict(set, {k: set(v) for k, v in BY_HAND.items()})
    for _, level, action in calls():
        if action is not None:
            found[action].add("error" if level == "exception" else level)
    return dict(found)


def calls() -> Iterator[tuple[str, str, str | None]]:
    """Place, level and action of every call of a module's logger."""
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(file.read_text())
            for function in ast.walk(tree):
                if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield from calls_of(function, file)


def calls_of(
    function: ast.FunctionDef | ast.AsyncFunctionDef, file: Path
) -> Iterator[tuple[str, str, str | None]]:
    latest: ast.expr | None = None  # what the name `extra` stands for
    for node in in_order(function):
        if isinstance(node, ast.Assign) and is_name(node.targets[0], "extra"):
            latest = node.value
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if is_name(node.func.value, "logger") and node.func.attr in LEVELS:
            given = next((word.value for word in node.keywords if word.arg == "extra"), None)
            extra = latest if is_name(given, "extra") else given
            yield f"{file.relative_to(ROOT)}:{node.lineno}", node.func.attr, action_of(extra)


def in_order(function: ast.AST) -> list[ast.AST]:
    nodes = [node for node in ast.walk(function) if hasattr(node, "lineno")]
    return sorted(nodes, key=lambda node: (node.lineno, node.col_offset))


def is_name(node: ast.AST | None, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def action_of(extra: ast.expr | None) -> str | None:
    if not isinstance(extra, ast.Dict):
        return None
    for key, value in zip(extra.keys, extra.values, strict=True):
        if isinstance(key, ast.Constant) and key.value == "action":
            assert isinstance(value, ast.Constant), "an action is a word, so that it can be found"
            return str(value.value)
    return None
