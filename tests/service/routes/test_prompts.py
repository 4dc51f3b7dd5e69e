from __future__ import annotations

import base64
import hashlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from service.services import Services
from sharpzo_core.records.prompts import prompt_key
from sharpzo_core.settings import Settings
from sharpzo_engine import Backbone, PromptClassifier, TunedPrompt
from sharpzo_engine.prompts.artifact import Stacked
from tests.service.conftest import MakeClient, assert_problem, files_below, open_client, png
from tests.service.toys import COLORS, artifact_of, files, import_, make_backbone, with_backbones


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return make_backbone(tmp_path_factory.mktemp("models") / "toy", seed=1)


@pytest.fixture(scope="session")
def other_backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return make_backbone(tmp_path_factory.mktemp("models") / "other", seed=2)


@pytest.fixture
def settings(data_dir: Path, backbone: Backbone) -> Settings:
    return with_backbones(data_dir, backbone)


@pytest.fixture
def prompt(client: TestClient, backbone: Backbone) -> dict[str, Any]:
    response = import_(client, artifact_of(backbone))
    assert response.status_code == 201, response.text
    prompt: dict[str, Any] = response.json()
    return prompt


def test_import_get_list_delete(
    client: TestClient, backbone: Backbone, prompt: dict[str, Any], data_dir: Path
) -> None:
    assert prompt["version"] == 1
    assert prompt["name"] == "colors"
    assert prompt["classes"] == list(COLORS)
    assert prompt["backbone"]["fingerprint"] == backbone.fingerprint
    assert prompt["metrics"] == {"test_accuracy": 0.9, "loss": None}
    second = import_(client, artifact_of(backbone)).json()
    assert second["version"] == 2
    here = {"residency": {"resident": False, "used_at": None}}  # of this process, not the prompt
    assert client.get("/v1/prompts/colors").json() == second | here
    assert client.get("/v1/prompts/colors:1").json() == prompt | here
    assert client.get(f"/v1/prompts/{prompt['id']}").json() == prompt | here
    assert client.get("/v1/prompts").json()["data"] == [second, prompt]

    assert client.delete("/v1/prompts/colors:1").status_code == 204
    assert_problem(client.get("/v1/prompts/colors:1"), 404, "not_found")
    assert not any(prompt["id"] in path for path in files_below(data_dir))
    unnamed = import_(client, artifact_of(backbone), None).json()
    assert unnamed["name"] == unnamed["id"]


def test_unknown_prompts(client: TestClient) -> None:
    for ref in ("nonesuch", "a:0", "prm_00000000000000000000000000", "%00", "a@b"):
        assert_problem(client.get(f"/v1/prompts/{ref}"), 404, "not_found")
        assert_problem(client.get(f"/v1/prompts/{ref}/download"), 404, "not_found")
        assert_problem(client.delete(f"/v1/prompts/{ref}"), 404, "not_found")
        response = client.post(f"/v1/prompts/{ref}/classify", files=files(png()))
        assert_problem(response, 404, "not_found")


def test_download(client: TestClient, backbone: Backbone, prompt: dict[str, Any]) -> None:
    response = client.get("/v1/prompts/colors/download")
    assert TunedPrompt.load(response.content).fingerprint == backbone.fingerprint
    digest = hashlib.sha256(response.content).hexdigest()
    assert digest == prompt["sha256"] == response.headers["x-checksum-sha256"]
    assert response.headers["etag"] == f'"{digest}"'
    assert response.headers["x-content-type-options"] == "nosniff"
    disposition = response.headers["content-disposition"]
    assert disposition == 'attachment; filename="colors-v1.safetensors"'
    again = client.get(
        "/v1/prompts/colors/download", headers={"if-none-match": response.headers["etag"]}
    )
    assert (again.status_code, again.content) == (304, b"")


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def test_bad_artifacts_are_refused_and_leave_nothing(
    client: TestClient, backbone: Backbone, data_dir: Path
) -> None:
    good = artifact_of(backbone)
    bad = [
        b"",
        b"no artifact",
        good[:-10],
        good + b"x",
        flipped(good, len(good) // 2),
        artifact_of(backbone, metrics={"test_accuracy": "high"}),
        artifact_of(backbone, backbone={"fingerprint": 5}),
        artifact_of(backbone, ("red", "green", "b\nlue")),
    ]
    for artifact in bad:
        assert_problem(import_(client, artifact), 422, "artifact_corrupt")
    assert_problem(import_(client, good, "no spaces"), 422, "validation_error")
    assert_problem(client.post("/v1/prompts", json={}), 415, "unsupported_media_type")
    assert files_below(data_dir / "artifacts") == []


def test_classify_files_and_base64(client: TestClient, prompt: dict[str, Any]) -> None:
    images = [png(color) for color in COLORS.values()]
    response = client.post("/v1/prompts/colors/classify?top_k=2", files=files(*images))
    assert response.status_code == 200, response.text
    answer = response.json()
    assert (answer["prompt_id"], answer["version"]) == (prompt["id"], 1)
    best = [result["predictions"][0] for result in answer["results"]]
    assert [p["label"] for p in best] == list(COLORS)
    assert [p["index"] for p in best] == [0, 1, 2]
    assert all(len(result["predictions"]) == 2 for result in answer["results"])
    assert all("error" not in result for result in answer["results"])

    body = {"images": [base64.b64encode(image).decode() for image in images]}
    again = client.post("/v1/prompts/colors/classify?top_k=2", json=body)
    for one, other in zip(answer["results"], again.json()["results"], strict=True):
        for a, b in zip(one["predictions"], other["predictions"], strict=True):
            assert (a["label"], a["score"]) == (b["label"], pytest.approx(b["score"], abs=1e-5))
    assert client.get("/v1/backbones").json()["data"][0]["loaded"] is True
    metrics = client.get("/metrics").text
    assert 'sharpzo_classified_images_total{outcome="ok",prompt="colors:1"} 6.0' in metrics
    assert "sharpzo_batch_images_sum 6.0" in metrics


def test_a_prompt_with_a_head_answers_as_the_engine_does(
    client: TestClient, backbone: Backbone
) -> None:
    plain = TunedPrompt.load(artifact_of(backbone))
    # The next colour's row for each, and a bias: nothing that the prompt alone would answer.
    head = Stacked(np.roll(plain.weights, -1, axis=0), np.array([0.5, 0, -0.5], np.float32))
    prompt = replace(plain, stacked=head)
    assert import_(client, prompt.to_bytes(), "headed").status_code == 201
    assert import_(client, plain.to_bytes(), "plain").status_code == 201
    images = [png(color) for color in COLORS.values()]
    for name, engine in {"headed": prompt, "plain": plain}.items():
        response = client.post(f"/v1/prompts/{name}/classify", files=files(*images))
        expected = PromptClassifier(engine, backbone).predict(images, top_k=3)
        for result, own in zip(response.json()["results"], expected, strict=True):
            assert [p["index"] for p in result["predictions"]] == [p.index for p in own]
            scores = [p["score"] for p in result["predictions"]]
            assert scores == pytest.approx([p.score for p in own], abs=1e-5)
    assert PromptClassifier(prompt, backbone).predict(images, 1)[0][0].label == "blue"


@pytest.mark.usefixtures("prompt")
def test_every_probability_is_given_and_they_sum_to_one(client: TestClient) -> None:
    response = client.post("/v1/prompts/colors/classify", files=files(png()))
    predictions = response.json()["results"][0]["predictions"]
    assert len(predictions) == len(COLORS)
    assert sum(p["score"] for p in predictions) == pytest.approx(1, abs=1e-5)
    assert [p["score"] for p in predictions] == sorted(p["score"] for p in predictions)[::-1]


@pytest.mark.usefixtures("prompt")
@pytest.mark.bad_input("I8")
def test_an_image_that_cannot_be_read_has_its_own_error(client: TestClient) -> None:
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n"
    response = client.post(
        "/v1/prompts/colors/classify", files=files(b"junk", png(COLORS["green"]), eps, b"")
    )
    assert response.status_code == 200
    bad, good, *rest = response.json()["results"]
    assert bad["error"]["code"] == "image_format_not_allowed"
    assert "predictions" not in bad
    assert good["predictions"][0]["label"] == "green"
    assert [result["error"]["code"] for result in rest] == [
        "image_format_not_allowed",
        "image_undecodable",
    ]
    answer = client.post("/v1/prompts/colors/classify", json={"images": ["no base64!"]}).json()
    assert answer["results"][0]["error"]["code"] == "image_undecodable"


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory, backbone: Backbone) -> Iterator[TestClient]:
    """One application for requests that change nothing."""
    data_dir = tmp_path_factory.mktemp("serving")
    with open_client(with_backbones(data_dir, backbone)) as client:
        assert import_(client, artifact_of(backbone)).status_code == 201
        yield client


@pytest.mark.bad_input("I8")
@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        ({"json": {"images": []}}, 422, "validation_error"),
        ({"json": {"images": [5]}}, 422, "validation_error"),
        ({"json": {"image_url": "http://169.254.169.254/"}}, 422, "validation_error"),
        ({"json": {"images": [""] * 65}}, 413, "too_many_files"),
        ({"json": {"images": [5] * 65}}, 413, "too_many_files"),
        ({"files": files(*[b"x"] * 65)}, 413, "too_many_files"),
        ({"files": [("other", ("a", b"x"))]}, 422, "validation_error"),
        ({"content": b"x", "headers": {"content-type": "image/png"}}, 415, None),
        ({"files": files(b"x"), "params": {"top_k": 0}}, 422, "validation_error"),
        ({"files": files(b"x"), "params": {"top_k": "all"}}, 422, "validation_error"),
    ],
)
def test_bad_classify_requests(
    serving: TestClient, request_: dict[str, Any], status: int, code: str | None
) -> None:
    response = serving.post("/v1/prompts/colors/classify", **request_)
    assert_problem(response, status, code or "unsupported_media_type")


def test_a_damaged_artifact_is_503_and_others_still_serve(
    client: TestClient, backbone: Backbone, services: Services, prompt: dict[str, Any]
) -> None:
    import_(client, artifact_of(backbone), "fine")
    key = prompt_key(prompt["id"])
    services.artifacts.put_bytes(key, flipped(services.artifacts.get_bytes(key), 500))
    for request in ("classify", "download"):
        url = f"/v1/prompts/colors/{request}"
        response = (
            client.get(url) if request == "download" else client.post(url, files=files(png()))
        )
        body = assert_problem(response, 503, "artifact_corrupt")
        assert prompt["id"] in body["detail"]
    services.artifacts.delete(key)
    response = client.post("/v1/prompts/colors/classify", files=files(png()))
    assert_problem(response, 503, "artifact_corrupt")
    fine = client.post("/v1/prompts/fine/classify", files=files(png()))
    assert fine.status_code == 200


def test_a_prompt_of_another_backbone_is_409(
    client: TestClient, backbone: Backbone, other_backbone: Backbone
) -> None:
    import_(client, artifact_of(other_backbone), "other")
    response = client.post("/v1/prompts/other/classify", files=files(png()))
    assert_problem(response, 409, "backbone_mismatch")
    # The right name with other weights is no better.
    described = {**backbone.describe(), "fingerprint": other_backbone.fingerprint}
    import_(client, artifact_of(other_backbone, backbone=described), "liar")
    response = client.post("/v1/prompts/liar/classify", files=files(png()))
    assert_problem(response, 409, "backbone_mismatch")


def test_prompts_of_several_backbones_are_served_together(
    make_client: MakeClient, data_dir: Path, backbone: Backbone, other_backbone: Backbone
) -> None:
    client = make_client(with_backbones(data_dir, backbone, f"other={other_backbone.name}"))
    import_(client, artifact_of(backbone), "a")
    # Another machine knew the same weights under another path.
    elsewhere = {**other_backbone.describe(), "name": "local-dir:/elsewhere"}
    import_(client, artifact_of(other_backbone, backbone=elsewhere), "b")
    for name in ("a", "b", "a"):
        answer = client.post(
            f"/v1/prompts/{name}/classify", files=files(png(COLORS["blue"]))
        ).json()
        assert answer["results"][0]["predictions"][0]["label"] == "blue"


@pytest.mark.usefixtures("prompt")
def test_livez_answers_while_a_model_is_busy(client: TestClient, services: Services) -> None:
    busy = threading.Event()
    release = threading.Event()

    def occupy() -> None:
        busy.set()
        release.wait(10)

    services.inference._encoder.submit(occupy)
    assert busy.wait(10)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.post, "/v1/prompts/colors/classify", files=files(png()))
        started = time.monotonic()
        assert client.get("/livez").status_code == 200
        assert time.monotonic() - started < 1
        release.set()
        assert waiting.result().status_code == 200


def test_an_unknown_pretrained_tag_is_refused_before_the_job_exists(
    make_client: MakeClient, data_dir: Path, backbone: Backbone
) -> None:
    client = make_client(with_backbones(data_dir, backbone, "*"))
    for name in ("ViT-B-16:nonesuch", "Nonesuch-1:openai"):
        response = client.post("/v1/jobs", json={"dataset_id": "x", "backbone": name})
        body = assert_problem(response, 422, "validation_error")
        assert body["errors"][0]["pointer"] == "/backbone"
    known = {"dataset_id": "x", "backbone": "ViT-B/16:openai"}
    assert_problem(client.post("/v1/jobs", json=known), 404, "not_found")
