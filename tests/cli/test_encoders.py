"""`sharpzo encoders`, and what the other commands do with an exported encoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_local import QUICK


@pytest.fixture(scope="module")
def encoder(squares: Path, small_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in int8, written by the command itself."""
    from sharpzo_cli.main import main

    folder = tmp_path_factory.mktemp("encoders") / "small"
    command = ["encoders", "export", f"local-dir:{small_backbone}", "--out", str(folder)]
    options = ["--precision", "int8", "--calibrate", str(squares), "--min-agreement", "0.5"]
    assert main([*command, *options]) == 0
    return folder


def test_an_exported_encoder_is_tuned_on_and_asked(
    sharpzo: Any, encoder: Path, squares: Path, tmp_path: Path
) -> None:
    prompt, backbone = tmp_path / "p.safetensors", f"onnx-dir:{encoder}"
    ran = sharpzo("tune", squares, *QUICK, "--backbone", backbone, "--out", prompt, "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["steps"] == 6
    image = next(squares.rglob("*.png"))
    ran = sharpzo("classify", prompt, image, "--backbone", backbone, "--json")
    assert ran.code == 0, ran.err
    (found,) = json.loads(ran.out)["results"]
    assert found["predictions"]
    ran = sharpzo("evaluate", prompt, squares, "--backbone", backbone, "--json")
    assert ran.code == 0, ran.err


def test_a_prompt_moves_between_precisions_of_one_model(
    sharpzo: Any, encoder: Path, squares: Path, small_backbone: Path, tmp_path: Path
) -> None:
    prompt = tmp_path / "p.safetensors"
    ran = sharpzo(
        "tune", squares, *QUICK, "--backbone", f"local-dir:{small_backbone}", "--out", prompt
    )
    assert ran.code == 0, ran.err
    image = next(squares.rglob("*.png"))
    ran = sharpzo("classify", prompt, image, "--backbone", f"onnx-dir:{encoder}")
    assert ran.code == 0, ran.err
    assert "tuned with torch in float32, answered by onnxruntime in int8" in ran.err
    ran = sharpzo("classify", prompt, image, "--backbone", "tiny")
    assert ran.code != 0
    assert "the prompt was tuned on" in ran.err


def test_encoders_are_listed(sharpzo: Any, encoder: Path, tmp_path: Path) -> None:
    ran = sharpzo("encoders", "list", encoder.parent)
    assert ran.code == 0
    assert "int8" in ran.out
    assert str(encoder) in ran.out
    (found,) = json.loads(sharpzo("encoders", "list", encoder, "--json").out)["encoders"]
    assert (found["precision"], found["level"]) == ("int8", "contexts")
    assert found["agreement"]["top1"] >= 0.5
    assert sharpzo("encoders", "list", tmp_path / "nowhere").code == 2


def test_an_encoder_is_checked_against_the_original(
    sharpzo: Any, encoder: Path, squares: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sharpzo_cli import encoder_folders

    monkeypatch.setattr(encoder_folders, "SPEED_SECONDS", 0.05)
    ran = sharpzo("encoders", "check", encoder, "--photos", squares, "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert 0.5 <= found["agreement"]["top1"] <= 1
    assert found["images_per_second"] > 0
    assert found["class_prompts_per_second"] > 0


def test_an_export_that_disagrees_is_refused(
    sharpzo: Any,
    squares: Path,
    small_backbone: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sharpzo_engine.clip.agreement import Agreement, Answers

    agreed = Agreement(photos=3, top1=1 / 3, image_cosine=0.5, text_cosine=0.5)
    monkeypatch.setattr(Answers, "agreement", lambda *_: agreed)
    command = ["encoders", "export", f"local-dir:{small_backbone}", "--out", tmp_path / "x"]
    ran = sharpzo(*command, "--calibrate", squares)
    assert ran.code == 1
    assert "only 33.3% of 3 photos get the original's label, less than 98.0%" in ran.err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--calibrate", "nowhere"], "nowhere is not a folder"),
        (["--precision", "int4"], "int4"),
        (["--min-agreement", "2"], "min-agreement"),
    ],
)
def test_wrong_options_are_named(
    sharpzo: Any, tmp_path: Path, options: list[str], message: str
) -> None:
    ran = sharpzo("encoders", "export", "tiny", "--out", tmp_path / "x", *options)
    assert ran.code == 2
    assert message in ran.err


def test_other_folders_are_never_overwritten(sharpzo: Any, tmp_path: Path, encoder: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    ran = sharpzo("encoders", "export", "tiny", "--out", tmp_path)
    assert ran.code == 2
    assert "is no encoder" in ran.err
    assert (tmp_path / "notes.txt").read_text() == "mine"
    ran = sharpzo("encoders", "export", f"onnx-dir:{encoder}", "--out", tmp_path / "x")
    assert ran.code == 2
    assert "is exported already" in ran.err
