"""Finding fault tests that are excused from passing."""

from __future__ import annotations

import ast
from pathlib import Path

EXCUSES = frozenset({"skip", "skipif", "xfail", "importorskip", "flaky", "rerun", "reruns"})
FOLDER = Path(__file__).parent


def excuses() -> list[str]:
    """Where a test of this folder is skipped, expected to fail or run again.

    `needs` is none of them: it skips where a server is missing, and fails where it is required.
    """
    return [
        f"{path.name}:{node.lineno} {node.attr}"
        for path in sorted(FOLDER.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in EXCUSES
    ]
