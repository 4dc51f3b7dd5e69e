"""SIGTERM while many images are being classified."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from sharpzo_core.settings import Settings
from sharpzo_engine import Backbone
from tests.helpers import eventually
from tests.service.conftest import assert_problem, png
from tests.service.routes.test_classify import metric
from tests.service.servers import ServerProcess, server_process
from tests.service.toys import COLORS, artifact_of, files, import_, make_backbone, with_backbones

pytestmark = pytest.mark.slow

CLIENTS = 50
IMAGES = 4
URL = "/v1/prompts/colors/classify"

#: Lets a server wait with every batch while a file is there, and so long for answers at its end.
WAITS = """
import os, time
from service import server
from sharpzo_engine import Backbone
server.GRACEFUL_SECONDS = {grace}
encode = Backbone.encode_images
def wait_and_encode(self, batch):
    while os.path.exists({gate!r}):
        time.sleep(0.01)
    return encode(self, batch)
Backbone.encode_images = wait_and_encode
"""


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return make_backbone(tmp_path_factory.mktemp("models") / "toy", seed=1)


@pytest.fixture
def settings(data_dir: Path, backbone: Backbone) -> Settings:
    return with_backbones(data_dir, backbone)


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    return tmp_path / "gate"


class Visitor:
    """A client that asks until the server is gone."""

    def __init__(self, client: httpx.Client, number: int) -> None:
        self.color = list(COLORS)[number % len(COLORS)]
        self.answers: list[httpx.Response] = []
        self._client = client

    def ask(self) -> httpx.TransportError:
        """What the end looks like."""
        images = files(*[png(COLORS[self.color])] * IMAGES)
        while True:
            try:
                self.answers.append(self._client.post(URL, files=images))
            except httpx.TransportError as error:
                return error


@contextmanager
def crowd(
    server: ServerProcess, artifact: bytes, gate: Path
) -> Iterator[list[tuple[Visitor, Future[httpx.TransportError]]]]:
    """Visitors whose requests the server has read and not answered yet."""
    limits = httpx.Limits(max_connections=CLIENTS + 1)  # one to look at the metrics
    with httpx.Client(base_url=server.url(), timeout=60, limits=limits) as client:
        assert import_(client, artifact).status_code == 201  # type: ignore[arg-type]
        assert client.post(URL, files=files(png())).status_code == 200
        gate.touch()
        with ThreadPoolExecutor(CLIENTS) as pool:
            visitors = [Visitor(client, number) for number in range(CLIENTS)]
            ends = [pool.submit(visitor.ask) for visitor in visitors]
            eventually(lambda: metric(client, "sharpzo_images_waiting") == CLIENTS * IMAGES)
            yield list(zip(visitors, ends, strict=True))


def listens(server: ServerProcess) -> bool:
    """Whether it accepts connections."""
    address = urlsplit(server.url())
    with socket.socket() as probe:
        return probe.connect_ex((address.hostname, address.port)) == 0


def assert_clean(end: httpx.TransportError) -> None:
    """No request was broken off while its answer was on the way."""
    assert "incomplete" not in str(end)


def test_every_request_that_was_read_is_answered(
    settings: Settings, backbone: Backbone, gate: Path
) -> None:
    before = WAITS.format(gate=str(gate), grace=20)
    with server_process(settings, before=before) as server:
        with crowd(server, artifact_of(backbone), gate) as visitors:
            server.process.send_signal(signal.SIGTERM)
            eventually(lambda: not listens(server))  # and it has told its connections
            gate.unlink()
            assert server.process.wait(30) == 0
        for visitor, end in visitors:
            assert_clean(end.result())
            (answer,) = visitor.answers
            assert answer.status_code == 200, answer.text
            assert [best(result) for result in answer.json()["results"]] == [visitor.color] * IMAGES
    assert "Traceback" not in "".join(server.log)


def best(result: dict[str, Any]) -> str:
    return str(result["predictions"][0]["label"])


def test_what_takes_too_long_is_told_to_come_back(
    settings: Settings, backbone: Backbone, gate: Path
) -> None:
    before = WAITS.format(gate=str(gate), grace=1)
    with (
        server_process(settings, before=before) as server,
        crowd(server, artifact_of(backbone), gate) as visitors,
    ):
        server.process.send_signal(signal.SIGTERM)
        for visitor, end in visitors:
            assert_clean(end.result())
            (answer,) = visitor.answers
            assert_problem(answer, 503, "shutting_down")
            assert answer.headers["retry-after"] == "1"
            assert answer.headers["connection"] == "close"
        gate.unlink()
        assert server.process.wait(30) == 0
    assert "Traceback" not in "".join(server.log)
