"""The examples that talk to a service, as their first lines say, against a real one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sharpzo_cli.demo.server import running_service
from sharpzo_client import Client

EXAMPLES = Path(__file__).parents[2] / "examples"
COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for split, count in {"train": 6, "val": 3, "test": 3}.items():
        for name, colour in COLOURS.items():
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = np.array(colour) + rng.integers(-30, 30, (24, 24, 3))
                image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
                image.save(folder / split / name / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def images(photos: Path) -> list[Path]:
    return sorted(photos.glob("test/*/*.png"))


@pytest.fixture(scope="module")
def client(small_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("service")
    settings = {"SHARPZO_BACKBONES": f"tiny=local-dir:{small_backbone}"}
    with running_service(folder / "data", folder / "log", settings) as client:
        yield client
    assert "Traceback" not in (folder / "log").read_text()


def run(client: Client, folder: Path, name: str, *arguments: Path | str) -> str:
    """What an example prints, run in a folder of its own."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=120,
        env={**os.environ, "SHARPZO_URL": client.base_url},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tuned(
    client: Client, photos: Path, images: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The prompt file that the first example leaves behind."""
    folder = tmp_path_factory.mktemp("tuned")
    printed = run(client, folder, "tune_photos.py", photos, *images)
    assert "accuracy: " in printed
    assert all(f"{image} label=" in printed for image in images)
    return folder / "prompt.safetensors"


def test_serving_two_versions(
    client: Client, tuned: Path, images: list[Path], tmp_path: Path
) -> None:
    printed = run(client, tmp_path, "serve_prompts.py", tuned, tuned, *images)
    for version in (1, 2):
        assert printed.count(f"version {version}: ") == len(images)
    assert "answered by version 2" in printed
    assert "rollback 1 needs more testing" in printed
    assert "resident=True" in printed
    assert client.prompts.get("shop@live").version == 1


def test_many_images_at_once(
    client: Client, tuned: Path, images: list[Path], tmp_path: Path
) -> None:
    client.prompts.upload(tuned, name="many")
    printed = run(client, tmp_path, "serve_many_async.py", "many", *images * 4)
    lines = printed.splitlines()
    assert [line.split(" ", 1)[0] for line in lines] == [str(image) for image in images * 4]
    assert all(" label=" in line for line in lines)


def test_two_jobs_at_once(client: Client, photos: Path, tmp_path: Path) -> None:
    printed = run(client, tmp_path, "async_client.py", photos)
    for seed in (1, 2):
        assert f"seed {seed}: succeeded" in printed
