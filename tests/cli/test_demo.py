"""The demo itself, with a smaller budget; and that it cleans up behind itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from sharpzo_cli.demo import run, server
from sharpzo_cli.demo.digits import NAMES, PER_DIGIT, write_digits
from sharpzo_cli.errors import RunFailed
from sharpzo_engine.data.dataset import load_dataset

CONFIG = {"shots": 16, "max_forward_passes": 3000}
KEYS = ["job_id", "prompt_id", "zero_shot_accuracy", "tuned_accuracy", "forward_passes", "seconds"]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders go; the place shows in the command lines of what is started."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def assert_nothing_is_left(folder: Path) -> None:
    assert running_below(folder) == []
    assert list(folder.iterdir()) == []


def running_below(folder: Path) -> list[str]:
    """Command lines and environments of processes that name the folder."""
    if not Path("/proc/self").exists():
        pytest.skip("needs /proc")
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        if process.name == str(os.getpid()):
            continue
        try:
            text = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue
        if f"{folder}/".encode() in text:
            found.append((process / "cmdline").read_text().replace("\0", " "))
    return found


def test_the_digits_are_all_there_once(tmp_path: Path) -> None:
    held_out = write_digits(tmp_path / "digits")
    dataset = load_dataset(tmp_path / "digits" / "dataset")
    assert dataset.class_names == NAMES
    assert len(dataset.train) == 10 * PER_DIGIT["train"]
    assert len(dataset.val) == 10 * PER_DIGIT["val"]
    assert len(held_out) == 10 * PER_DIGIT["unseen"]
    names = [example.path.name for example in dataset.train + dataset.val + dataset.test]
    assert sorted(names + [image.path.name for image in held_out]) == [
        f"{index:04}.png" for index in range(1797)
    ]


def test_the_demo_ends_with_one_object_and_leaves_nothing_running(
    sharpzo: Any,
    tmp_path: Path,
    temporary: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run, "CONFIG", CONFIG)
    monkeypatch.setenv("SHARPZO_DATABASE_URL", "sqlite:////nowhere/precious.db")
    ran = sharpzo("demo", "--out", tmp_path / "out")
    assert ran.code == 0, ran.err
    answer = json.loads(ran.out.splitlines()[-1])
    assert list(answer) == KEYS
    assert answer["job_id"].startswith("job_")
    assert answer["forward_passes"] > 0
    assert 0.3 <= answer["zero_shot_accuracy"] <= answer["tuned_accuracy"] - 0.15
    assert "zero-shot prompt" in ran.out
    assert "what is served" in ran.out
    assert (tmp_path / "out" / "prompt.safetensors").stat().st_size > 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["labels"]["job"] == answer["job_id"]
    metrics = report["metrics"]
    assert answer["tuned_accuracy"] == metrics["prompt_test_accuracy"] < metrics["test_accuracy"]
    # The last validation and the training loss of the result follow the last step.
    assert 0 <= report["headline"]["forward_passes"] - answer["forward_passes"] <= 3
    page = (tmp_path / "out" / "report.html").read_text()
    assert answer["job_id"] in page
    assert str(tmp_path / "out" / "report.html") in ran.out.replace("\n", "")
    assert_nothing_is_left(temporary)


def test_a_service_that_does_not_start_is_told(tmp_path: Path) -> None:
    settings = {"SHARPZO_LEASE_SECONDS": "soon"}
    with (
        pytest.raises(RunFailed, match="SHARPZO_LEASE_SECONDS"),
        server.running_service(tmp_path / "data", tmp_path / "log", settings),
    ):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing(tmp_path: Path, temporary: Path, how: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "sharpzo_cli", "demo", "--out", str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    while "starting" not in process.stderr.readline():
        pass
    while not _service_of(temporary):
        pass
    process.send_signal(how)
    out, err = process.communicate(timeout=150)
    assert process.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err
    assert_nothing_is_left(temporary)


def _service_of(folder: Path) -> list[str]:
    return [line for line in running_below(folder) if " serve " in line]
