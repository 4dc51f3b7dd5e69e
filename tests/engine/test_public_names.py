"""The names that `sharpzo_engine` offers: complete, importable, and loaded only when used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sharpzo_engine
from sharpzo_engine import _HOME


@pytest.mark.parametrize("name", sharpzo_engine.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(sharpzo_engine, name) is not None


def test_the_lists_of_public_names_agree() -> None:
    tree = ast.parse(Path(sharpzo_engine.__file__).read_text())
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in checked.body if isinstance(node, ast.ImportFrom)]
    for_types = {alias.name: node.module for node in imports for alias in node.names}
    assert for_types == {name: f"sharpzo_engine.{home}" for name, home in _HOME.items()}
    assert sorted([*_HOME, "__version__"]) == sharpzo_engine.__all__ == dir(sharpzo_engine)


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, sharpzo_engine; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        sharpzo_engine.nothing  # noqa: B018 - the access itself is the test
