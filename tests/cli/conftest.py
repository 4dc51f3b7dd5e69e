"""The command, run in this process, folders to run it on, and a service for it to talk to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from sharpzo_cli.demo.server import Running, running_process
from sharpzo_cli.main import main

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COLOURS = {"red": (220, 20, 30), "green": (20, 200, 40), "blue": (30, 40, 230)}


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line on standard error."""
        (line,) = self.err.splitlines()
        return line


Sharpzo = Callable[..., Ran]


@pytest.fixture
def sharpzo(capfd: pytest.CaptureFixture[str]) -> Sharpzo:
    def run(*arguments: object) -> Ran:
        code = main([str(argument) for argument in arguments])
        return Ran(code, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes with 4 training, 2 validation and 2 test images each."""
    folder = tmp_path_factory.mktemp("squares")
    for split, count in {"train": 4, "val": 2, "test": 2}.items():
        for name, colour in COLOURS.items():
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                shade = tuple(max(0, part - 9 * index) for part in colour)
                path = folder / split / name / f"{index}.png"
                Image.new("RGB", (16, 16), shade).save(path)
    return folder


@pytest.fixture(scope="session")
def service_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("service")


@pytest.fixture(scope="session")
def running(small_backbone: Path, service_folder: Path) -> Iterator[Running]:
    """A real service with its worker."""
    settings = {"SHARPZO_BACKBONES": f"tiny=local-dir:{small_backbone}"}
    with running_process(service_folder / "data", service_folder / "log", settings) as running:
        yield running


@pytest.fixture(scope="session")
def dataset_id(running: Running, squares: Path) -> str:
    return running.client.datasets.upload(squares, name="squares", poll=0.1).id


@pytest.fixture
def url(running: Running, monkeypatch: pytest.MonkeyPatch) -> str:
    """The service's address, in the environment of commands too."""
    monkeypatch.setenv("SHARPZO_URL", running.url)
    monkeypatch.delenv("SHARPZO_API_KEY", raising=False)
    return running.url
