"""The place where blocks of the documentation run: real images, a real service, real commands."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from sharpzo_cli.demo.digits import NAMES, write_digits
from sharpzo_cli.demo.server import clean_environment, running_process
from sharpzo_engine.data.catalogue import find
from sharpzo_engine.tiny import PATH as TINY
from tests.docs import commands
from tests.docs.blocks import ROOT, Page
from tests.miniatures import make_miniature

#: Shots that pages ask for, so many images are in each class.
PER_CLASS = {"train": 20, "val": 6, "test": 8}
CLASSES = ("zero", "one", "seven")


def substitutions(url: str, data: Path, databases: Mapping[str, str]) -> dict[str, str]:
    """What a block says, and what it says instead when it is run. Nothing else is changed.

    Real checkpoints cannot be had in a test, nor can an hour of tuning.
    """
    return {
        "http://localhost:8000": url,
        "http://127.0.0.1:8000": url,
        "localhost:8000": url.removeprefix("http://"),
        "https://sharpzo.example.org": url,
        'load_backbone("ViT-B-16", pretrained="openai")': 'load_backbone("tiny")',
        "--backbone ViT-B-16 --pretrained openai": "--backbone tiny",
        "export ViT-B-16 --pretrained openai": "export tiny --min-agreement 0.5",
        '"ViT-B-16", "openai"': f'"local-dir:{TINY}", ""',
        "/models/mine": str(TINY),
        '"shots": 16': '"shots": 16, "max_forward_passes": 300',
        "max_forward_passes=20_000": "max_forward_passes=300",
        '"min": 0.9': '"min": 0.1',
        '"min_improvement": 0.01': '"min_improvement": -0.9',
        'root="/data", shots=16': f'root="{data}", shots=4',
        "--root /data": f"--root {data}",
        "SHARPZO_DATASETS_ROOT=/data": f"SHARPZO_DATASETS_ROOT={data}",
        **databases,
    }


@pytest.fixture(scope="session")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what pages speak of: photos/, more/, photos.zip, a.jpg and so on.

    The photos are scikit-learn's scans of handwritten digits.
    """
    root = tmp_path_factory.mktemp("materials")
    write_digits(root / "digits")
    folder = root / "folder"
    for name in CLASSES:
        digit = str(NAMES.index(name))
        images = iter(sorted((root / "digits" / "dataset").glob(f"*/{digit}/*.png")))
        for split, count in PER_CLASS.items():
            target = folder / "photos" / split / name
            target.mkdir(parents=True)
            for index in range(count):
                shutil.copy(next(images), target / f"{index}.png")
    (folder / "loose").mkdir()
    unseen = sorted((root / "digits" / "unseen").glob("[017]/*.png"))
    for index, image in enumerate(unseen[:6]):
        shutil.copy(image, folder / "loose" / f"{index}.png")
    for name, image in zip(("a", "b", "some", "other", "shoe"), unseen[::4], strict=False):
        shutil.copy(image, folder / f"{name}.jpg")  # what an image is, its bytes tell
    for name in ("eurosat", "dtd"):
        known = find(name)
        assert known is not None
        make_miniature(known, folder / "data")
    (folder / "data" / known.folder / known.split_file).unlink()  # to be made by a page
    shutil.make_archive(str(folder / "photos"), "zip", folder / "photos")
    return folder


@pytest.fixture(scope="session")
def bin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands") / "bin"
    commands.install(folder)
    return folder


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a process that runs slow commands."""
    address = str(tmp_path_factory.mktemp("warm") / "socket")
    with subprocess.Popen(
        [sys.executable, "-m", "tests.docs.warm", address],
        cwd=ROOT,
        env={**clean_environment(), "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"ready\n"
        yield address
        process.stdin.close()


@pytest.fixture(scope="session")
def shared_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One service with a worker for all pages that make no keys."""
    folder = tmp_path_factory.mktemp("service")
    with running_process(folder / "data", folder / "log") as running:
        yield running.url
    assert "Traceback" not in (folder / "log").read_text()


MakePage = Callable[[Path], Page]


@pytest.fixture
def make_page(
    materials: Path, bin_folder: Path, warm: str, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[MakePage]:
    """Prepares a page: its own copy of the materials, and a service.

    A key changes a service for good, so that a page that makes some has a service of its own.
    """
    folder = tmp_path / "folder"
    shutil.copytree(materials, folder)
    services = ExitStack()

    def make(path: Path) -> Page:
        text = path.read_text()
        data = folder / ".sharpzo"  # the default, there
        if "keys create" in text:
            url = services.enter_context(running_process(data, tmp_path / "log")).url
        else:
            url = request.getfixturevalue("shared_url")
        databases = {}
        if "redis://localhost:6379/0" in text:
            databases["redis://localhost:6379/0"] = request.getfixturevalue("redis_url")
        if "postgresql+psycopg://user:password@localhost:5432/sharpzo" in text:
            given = request.getfixturevalue("postgres_url")
            databases["postgresql+psycopg://user:password@localhost:5432/sharpzo"] = given
        return Page(
            path,
            folder,
            environment(bin_folder, data) | {"DOCS_WARM": warm, "SHARPZO_URL": url},
            substitutions(url, folder / "data", databases),
        )

    with services:
        yield make


def environment(bin_folder: Path, data: Path) -> dict[str, str]:
    return {
        **clean_environment(),
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "DOCS_COMMANDS": str(bin_folder),
        "SHARPZO_DATA_DIR": str(data),
        "HOME": str(data.parent),  # whatever a page installs for its reader
        "MPLBACKEND": "agg",
    }
