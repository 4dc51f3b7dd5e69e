"""No import is circular, not even those for annotations, and no folder is crowded."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

from tests.figures import ROOT

PRODUCT = ("service", "sharpzo_cli", "sharpzo_client", "sharpzo_core", "sharpzo_engine", "worker")
#: Kept flat on purpose: one module for each command, and for each duty of a worker.
WIDE = {ROOT / "sharpzo_cli", ROOT / "worker"}
MOST_MODULES = 16


def circle(imports: dict[str, set[str]]) -> list[str]:
    """Modules of which each is imported by the next, the last being the first; empty if none."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_import_is_circular() -> None:
    """Imports under TYPE_CHECKING and in functions count as well."""
    graph = grimp.build_graph(*PRODUCT, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert len(imports) > 100
    assert circle(imports) == []


def test_a_circle_would_be_found() -> None:
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}
    assert circle({"a": {"b", "c"}, "b": {"c"}}) == []


FOLDERS = sorted(
    {
        path.parent
        for name in (*PRODUCT, "benchmarks", "tests")
        for path in (ROOT / name).rglob("*.py")
    }
    - WIDE
)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_a_folder_has_few_modules(folder: Path) -> None:
    assert len(list(folder.glob("*.py"))) <= MOST_MODULES
