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


#: Everything between a dataset and a prompt, for encoders that do not run in torch.
TORCH_FREE = (
    "sharpzo_engine.clip.cross_entropy",
    "sharpzo_engine.clip.encoder",
    "sharpzo_engine.clip.features",
    "sharpzo_engine.clip.loading",
    "sharpzo_engine.clip.agreement",
    "sharpzo_engine.clip.onnx.encoder",
    "sharpzo_engine.clip.parallel",
    "sharpzo_engine.heads.fitting",
    "sharpzo_engine.heads.pooling",
    "sharpzo_engine.heads.stacking",
    "sharpzo_engine.prompts.classifier",
    "sharpzo_engine.prompts.embedding_shards",
    "sharpzo_engine.prompts.evaluation",
    "sharpzo_engine.reports.report",
    "sharpzo_engine.result",
    "sharpzo_engine.search.loop",
    "sharpzo_engine.search.methods",
    "sharpzo_engine.search.objective",
    "sharpzo_engine.search.prompt_space",
    "sharpzo_engine.tuner",
)


def test_only_the_encoder_in_torch_loads_torch() -> None:
    """One process imports them in turn; what comes before the first to load torch is in order."""
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    heavy = {'torch', 'open_clip', 'onnx'} & set(sys.modules)\n"
        "    assert not heavy, f'{name} loads {heavy}'\n"
    )
    subprocess.run([sys.executable, "-c", code, *TORCH_FREE], check=True)


def test_every_public_name_but_the_backbone_in_torch_loads_no_torch() -> None:
    code = (
        "import sys, sharpzo_engine\n"
        "for name in sharpzo_engine.__all__:\n"
        "    if name != 'Backbone':\n"
        "        getattr(sharpzo_engine, name)\n"
        "        assert 'torch' not in sys.modules, f'{name} loads torch'\n"
        "sharpzo_engine.Backbone\n"
        "assert 'torch' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        sharpzo_engine.nothing  # noqa: B018 - the access itself is the test
