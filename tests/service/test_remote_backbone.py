"""A service that classifies with a model of another service."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from service.inference import backbones
from sharpzo_core.settings import Settings
from sharpzo_engine import Backbone
from tests.service.conftest import MakeClient, assert_problem, open_client, png
from tests.service.servers import server_thread
from tests.service.toys import COLORS, artifact_of, files, import_, make_backbone, with_backbones

CLASSIFY = "/v1/prompts/colors/classify"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Backbone]:
    folder = tmp_path_factory.mktemp("models")
    return [make_backbone(folder / str(seed), seed) for seed in (1, 2)]


@pytest.fixture
def owner(tmp_path: Path, models: list[Backbone]) -> Iterator[tuple[ExitStack, str]]:
    """A service with weights, which a test may end."""
    with ExitStack() as stack:
        settings = with_backbones(tmp_path / "owner", models[0])
        yield stack, stack.enter_context(server_thread(settings))


def borrower(folder: Path, url: str) -> Settings:
    listed = f"far=remote:{url}/v1/encoders/toy"
    return Settings(data_dir=folder, device="cpu", backbones=listed, default_backbone="far")


def best(answer: Any) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [result["predictions"][0]["label"] for result in answer.json()["results"]]


def test_a_prompt_is_served_without_weights_as_long_as_the_model_is_the_same(
    tmp_path: Path,
    models: list[Backbone],
    owner: tuple[ExitStack, str],
    make_client: MakeClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backbones, "PATIENCE", 0.5)
    stack, url = owner
    client = make_client(borrower(tmp_path / "borrower", url))
    import_(client, artifact_of(models[0]))
    images = files(*[png(color, 40) for color in COLORS.values()])
    assert best(client.post(CLASSIFY, files=images)) == list(COLORS)
    assert client.post(f"{CLASSIFY}?zero_shot=true", files=images).status_code == 200
    (listed,) = client.get("/v1/backbones").json()["data"]
    assert (listed["loaded"], listed["runtime"], listed["precision"]) == (True, "remote", "float32")
    # It also passes the encoder on.
    about = client.get("/v1/encoders/far").json()
    assert (about["fingerprint"], about["runtime"]) == (models[0].fingerprint, "remote")

    stack.close()
    away = assert_problem(client.post(CLASSIFY, files=images), 503, "encoder_away")
    assert "does not answer" in away["detail"]

    port = int(url.rpartition(":")[2])
    with served_again(tmp_path / "again", models[1], port):
        changed = client.post(CLASSIFY, files=images)
        assert_problem(changed, 409, "backbone_mismatch")
        import_(client, artifact_of(models[1]), "others")
        answer = client.post("/v1/prompts/others/classify", files=images)
        assert best(answer) == list(COLORS)


def served_again(folder: Path, model: Backbone, port: int) -> Any:
    return server_thread(with_backbones(folder, model), port=port)


def test_a_service_starts_without_its_remote_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbones, "PATIENCE", 0.2)
    with open_client(borrower(tmp_path, "http://127.0.0.1:1")) as client:
        assert_problem(client.get("/v1/encoders/far"), 503, "encoder_away")
