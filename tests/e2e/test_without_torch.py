"""The extra `edge` in a new environment: no torch, and the whole way from photos to labels."""

import json
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

from sharpzo_cli.demo.digits import write_digits
from sharpzo_cli.demo.server import clean_environment
from sharpzo_cli.main import main

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.needs("package-index")
LARGEST = 350 * 10**6  # bytes of an installation

Run = Callable[..., str]


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with `sharpzo[edge]` from a wheel, as on a device."""
    folder = tmp_path_factory.mktemp("edge")
    wheels = folder / "wheels"
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
    subprocess.run([*build, wheels, str(ROOT)], check=True, timeout=300)
    (wheel,) = wheels.glob("sharpzo-*.whl")
    venv.create(folder / "venv", with_pip=True)
    install = [folder / "venv/bin/python", "-m", "pip", "install", "--quiet"]
    subprocess.run([*install, f"{wheel}[edge]"], check=True, timeout=600)
    return folder / "venv"


@pytest.fixture(scope="module")
def run(edge: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run a program of that environment, far from this project's code."""
    away = tmp_path_factory.mktemp("away")

    def run(program: str, *arguments: object) -> str:
        command = [edge / "bin" / program, *map(str, arguments)]
        ran = subprocess.run(
            command,
            check=False,
            cwd=away,
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    return run


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder)
    return folder / "dataset"


def test_digits_are_tuned_classified_and_evaluated(run: Run, digits: Path, tmp_path: Path) -> None:
    encoder, prompt = tmp_path / "tiny-int8", tmp_path / "digits.safetensors"
    export = ["encoders", "export", "tiny", "--precision", "int8", "--calibrate", str(digits)]
    assert main([*export, "--out", str(encoder)]) == 0
    backbone = ("--backbone", f"onnx-dir:{encoder}")

    options = ("--shots", 4, "--passes", 2000, "--out", prompt, "--json")
    tuned = json.loads(run("sharpzo", "tune", digits, *options, *backbone))
    assert tuned["forward_passes"] <= 2000
    measured = json.loads(run("sharpzo", "evaluate", prompt, digits, *backbone, "--json"))
    assert measured["accuracy"] > tuned["zero_shot_accuracy"] + 0.2
    assert measured["accuracy"] == pytest.approx(tuned["test_accuracy"], abs=0.01)
    image = next(digits.glob("test/*/*.png"))
    (answer,) = json.loads(run("sharpzo", "classify", prompt, image, *backbone, "--json"))[
        "results"
    ]
    assert answer["predictions"][0]["label"]

    program = (
        "import sys\n"
        "from sharpzo_engine import PromptClassifier, TunedPrompt, load_backbone\n"
        f"encoder = load_backbone('onnx-dir:{encoder}')\n"
        f"prompt = TunedPrompt.load({str(prompt)!r})\n"
        f"print(PromptClassifier(prompt, encoder).predict([{str(image)!r}])[0][0].label)\n"
        "assert 'torch' not in sys.modules"
    )
    assert run("python", "-c", program).strip() == answer["predictions"][0]["label"]


def test_the_installation_is_small_and_has_no_torch(run: Run, edge: Path) -> None:
    listed = json.loads(run("python", "-m", "pip", "list", "--format", "json"))
    names = {package["name"].lower().replace("-", "_") for package in listed}
    assert "onnxruntime" in names
    assert not names & {"torch", "torchvision", "open_clip_torch", "timm", "scipy"}
    assert sum(file.stat().st_size for file in edge.rglob("*") if file.is_file()) < LARGEST


def test_what_needs_torch_says_so(edge: Path, digits: Path, tmp_path: Path) -> None:
    command = [edge / "bin/sharpzo", "tune", digits, "--out", tmp_path / "p.safetensors"]
    ran = subprocess.run(
        command,
        check=False,
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
    )
    assert ran.returncode != 0
    assert "pip install 'sharpzo[engine]', or use onnx-dir:PATH" in ran.stderr
    assert "Traceback" not in ran.stderr
