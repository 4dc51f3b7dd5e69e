"""Examples without the engine give the engine's answers, for prompts with every kind of head."""

from __future__ import annotations

import ast
import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sharpzo_engine import PromptClassifier, TunedPrompt, TuningConfig, load_backbone, tune
from sharpzo_engine.clip.torch.backbone import Backbone
from sharpzo_engine.data.dataset import load_dataset
from sharpzo_engine.prompts.export import ExportFormat, Origin, export
from sharpzo_engine.tiny import PATH

ROOT = Path(__file__).parents[2]
EXAMPLES = {form: ROOT / "examples" / f"use_elsewhere_{form}.py" for form in ("numpy", "onnx")}
FORMATS = {"numpy": ExportFormat.NPY, "onnx": ExportFormat.ONNX}
COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}
SHORT = {
    "shots": 4,
    "total_steps": 6,
    "change_point": 3,
    "prompt": {"intrinsic_dim": 8},
    "cma": {"population_size": 4},
}


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return load_backbone("tiny", device="cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noisy colours; beside them a folder of other forms, one of them lying on its side."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for split, count in {"train": 6, "val": 3, "test": 2}.items():
        for name, colour in COLOURS.items():
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                picture(rng, colour).save(folder / split / name / f"{index}.png")
    more = folder.parent / f"{folder.name} more"
    more.mkdir()
    sideways = Image.Exif()
    sideways[0x0112] = 6
    wide = Image.fromarray(np.linspace(0, 255, 60 * 40).reshape(40, 60).astype(np.uint8))
    wide.save(more / "sideways.jpg", exif=sideways)
    picture(rng, (150, 150, 10)).convert("P").save(more / "palette.png")
    return folder


def picture(rng: np.random.Generator, colour: tuple[int, int, int]) -> Image.Image:
    noise = rng.integers(-60, 60, (40, 48, 3))
    return Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def images(photos: Path) -> list[Path]:
    return sorted(photos.glob("test/*/*")) + sorted(Path(f"{photos} more").iterdir())


@pytest.fixture(scope="module", params=["none", "gda", "linear"])
def prompt(request: pytest.FixtureRequest, tiny: Backbone, photos: Path) -> TunedPrompt:
    config = TuningConfig.parse({**SHORT, "head": request.param})
    tuned = tune(load_dataset(photos), tiny, config).prompt
    assert tuned.metadata["head"]["kind"] == request.param
    assert (tuned.stacked is None) == (request.param == "none")
    return tuned


def run(example: str, monkeypatch: Any, capsys: Any, *arguments: object) -> list[str]:
    monkeypatch.setattr(sys, "argv", [example, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES[example]), run_name="__main__")
    lines: list[str] = capsys.readouterr().out.splitlines()
    return lines


def probabilities(example: str, lines: list[str], names: tuple[str, ...]) -> NDArray[np.float64]:
    if example == "numpy":
        return np.array([line.rsplit(" ", len(names))[1:] for line in lines], dtype=float)
    answers = [json.loads(line) for line in lines]
    return np.array([[answer[name] for name in names] for answer in answers])


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_reproduce_the_engines_answers(
    example: str,
    calibrated: bool,
    prompt: TunedPrompt,
    tiny: Backbone,
    images: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    head = {**prompt.metadata["head"], "temperature": 1.7}
    prompt = replace(prompt, metadata={**prompt.metadata, "head": head})
    origin = Origin("colours", 1, "")
    file = tmp_path / "exported"
    file.write_bytes(export(prompt, FORMATS[example], origin, calibrated=calibrated))
    lines = run(example, monkeypatch, capsys, file, f"local-dir:{PATH}", "", *images)
    answers = PromptClassifier(prompt, tiny).predict(images, 3, calibrated=calibrated)
    expected = [[s for _, s in sorted((p.index, p.score) for p in row)] for row in answers]
    found = probabilities(example, lines, prompt.class_names)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert np.ptp(found, axis=0).max() > 0.01  # the images differ


@pytest.mark.fast
@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_import_nothing_of_ours(example: str) -> None:
    tree = ast.parse(EXAMPLES[example].read_text())
    imported = {
        name
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [str(node.module)]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert "open_clip" in imported
    assert not {name for name in imported if name.startswith(("sharpzo", "service", "worker"))}


@pytest.mark.fast
def test_the_documentation_shows_the_example_that_is_tested() -> None:
    """But for where its arguments come from."""
    _, _, code = EXAMPLES["numpy"].read_text().split('"""', 2)
    imports, arguments, rest = code.partition("file, name, tag, *paths = sys.argv[1:]\n")
    assert arguments
    page = (ROOT / "docs" / "elsewhere.md").read_text()
    assert imports.strip().removeprefix("import sys\n\n") in page
    assert rest.strip() in page
