"""The examples of the engine alone, as their first lines say, on real scans of digits."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sharpzo_cli.demo.digits import write_digits
from sharpzo_engine import TunedPrompt

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four digits that the hand-written prompt mixes up."""
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder)
    kept = {"1", "6", "7", "9"}
    for split in (folder / "dataset").glob("*/*"):
        if split.is_dir() and split.name not in kept:
            shutil.rmtree(split)
    return folder / "dataset"


def run(folder: Path, name: str, *arguments: Path | str) -> str:
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=150,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.fast
def test_tuning_in_python(digits: Path, tmp_path: Path) -> None:
    images = sorted(digits.glob("test/*/*.png"))[:3]
    printed = run(tmp_path, "tune_in_python.py", digits, *images)
    assert "zero_shot_accuracy" in printed
    assert all(f"{image} Prediction(" in printed for image in images)
    assert TunedPrompt.load(tmp_path / "prompt.safetensors").class_names == (
        "one", "six", "seven", "nine",
    )  # fmt: skip


def test_an_objective_of_ones_own(digits: Path, tmp_path: Path) -> None:
    printed = run(tmp_path, "black_box_objective.py", digits)
    start, after_1 = map(float, re.findall(r"stage 1: loss (\S+) -> (\S+)", printed)[0])
    after_2 = float(re.findall(r"stage 2: loss (\S+) after", printed)[0])
    assert after_2 < after_1 < start
    before, after = map(float, re.findall(r"accuracy (\S+)% -> (\S+)%", printed)[0])
    assert after > before + 10


def test_the_walkthrough_leaves_plots_a_prompt_and_a_report(tmp_path: Path) -> None:
    printed = run(tmp_path, "walkthrough.py", "out")
    before, after = map(float, re.findall(r"accuracy (\S+)% -> (\S+)%", printed)[0])
    assert after > before + 10
    for name in ("curves", "classes", "reliability"):
        with Image.open(tmp_path / "out" / f"{name}.png") as plot:
            assert min(plot.size) >= 400
            colours = np.unique(np.asarray(plot.convert("RGB")).reshape(-1, 3), axis=0)
        for wanted in ((59, 130, 246), (139, 143, 152)):  # what is drawn, in blue and grey
            assert (colours == wanted).all(axis=1).any(), name
    assert TunedPrompt.load(tmp_path / "out" / "prompt.safetensors").temperature
    assert "</html>" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.fast
def test_the_walkthrough_is_cells() -> None:
    """Editors and jupytext read it as a notebook."""
    text = (EXAMPLES / "walkthrough.py").read_text()
    assert text.startswith("# %% [markdown]\n")
    assert text.count("\n# %%\n") == text.count("# %% [markdown]\n")


@pytest.mark.fast
def test_every_example_is_tested_and_on_its_page() -> None:
    names = {path.name for path in EXAMPLES.iterdir() if path.suffix == ".py"}
    page = (ROOT / "docs" / "examples.md").read_text()
    assert set(re.findall(r"`(\w+\.py)\b", page)) == names
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    generic = {f"use_elsewhere_{form}.py" for form in ("numpy", "onnx")}  # by their parameter
    assert {name for name in names if f'"{name}"' not in tests} <= generic
