"""The example of base and new classes, as its first line says, on a dataset by its name."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from sharpzo_engine.data.catalogue import find
from tests.miniatures import make_miniature

EXAMPLE = Path(__file__).parents[2] / "examples" / "base_to_new.py"


def test_the_example_prints_both_accuracies_and_their_mean(tmp_path: Path) -> None:
    known = find("eurosat")
    assert known is not None
    make_miniature(known, tmp_path)
    command = [sys.executable, EXAMPLE, "eurosat", str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=150)
    figures = re.fullmatch(r"base (.*)%, new (.*)%, harmonic mean (.*)%\n", done.stdout)
    assert figures is not None
    base, new, mean = (float(figure) for figure in figures.groups())
    assert min(base, new) <= mean <= max(base, new)
