"""Exported prompts answer as the service itself does."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from starlette.testclient import TestClient

from service.services import Services
from sharpzo_core.records.prompts import prompt_key
from sharpzo_core.settings import Settings
from sharpzo_engine import Backbone, PromptClassifier, TunedPrompt, load_backbone
from sharpzo_engine.prompts.artifact import Stacked
from tests.service.conftest import assert_problem, png

NAMES = ("red", "green", "blue")
COLORS = [(220, 20, 20), (20, 220, 20), (20, 20, 220), (90, 90, 10)]
Floats = NDArray[np.float32]


@pytest.fixture(scope="session")
def tiny() -> Backbone:
    return load_backbone("tiny", device="cpu")


def make_prompt(
    on: Backbone, *, head: bool = False, temperature: float | None = 2.0
) -> TunedPrompt:
    draw = np.random.default_rng(3).standard_normal((len(NAMES), on.embed_dim)).astype(np.float32)
    embeddings = draw / np.linalg.norm(draw, axis=1, keepdims=True)
    context = np.zeros((4, on.text_width), np.float32)
    metadata = {"backbone": on.describe(), "head": {"temperature": temperature}}
    prompt = TunedPrompt(NAMES, embeddings, context, 10.0, metadata)
    head_of_ours = Stacked(5 * draw[::-1], np.array([0.5, 0, -0.5], np.float32))
    return replace(prompt, stacked=head_of_ours) if head else prompt


@pytest.fixture
def settings(data_dir: Any) -> Settings:
    return Settings(data_dir=data_dir, device="cpu", backbones="tiny")


def publish(client: TestClient, prompt: TunedPrompt, name: str = "colors") -> dict[str, Any]:
    response = client.post(
        "/v1/prompts", data={"name": name}, files={"file": ("p", prompt.to_bytes())}
    )
    assert response.status_code == 201, response.text
    answer: dict[str, Any] = response.json()
    return answer


def served(client: TestClient, images: list[bytes]) -> list[dict[str, float]]:
    files = [("images", ("x.png", image)) for image in images]
    results = client.post("/v1/prompts/colors/classify", files=files).json()["results"]
    return [{p["label"]: p["score"] for p in result["predictions"]} for result in results]


def answer_of(content: bytes, form: str, embeddings: Floats) -> Floats:
    if form == "onnx":
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        found: Floats = session.run(None, {"image_embedding": embeddings})[0]
        return found
    matrix = np.load(io.BytesIO(content), allow_pickle=False)
    logits = embeddings @ matrix[:, :-1].T + matrix[:, -1]
    exponents = np.exp(logits - logits.max(1, keepdims=True))
    shares: Floats = exponents / exponents.sum(1, keepdims=True)
    return shares


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("form", ["npy", "onnx"])
def test_an_export_answers_as_the_service(
    client: TestClient, tiny: Backbone, form: str, head: bool
) -> None:
    prompt = make_prompt(tiny, head=head)
    published = publish(client, prompt)
    images = [png(color, 40) for color in COLORS]
    embeddings = PromptClassifier(prompt, tiny).embed(images)
    response = client.get("/v1/prompts/colors/export", params={"format": form})
    assert response.status_code == 200, response.text
    names = client.get(response.links["describedby"]["url"]).json()["classes"]
    assert (names, published["classes"]) == (list(NAMES), list(NAMES))
    for row, own in zip(
        answer_of(response.content, form, embeddings), served(client, images), strict=True
    ):
        assert dict(zip(names, row.tolist(), strict=True)) == pytest.approx(own, abs=1e-5)
    calibrated = client.get(
        "/v1/prompts/colors/export", params={"format": form, "calibrated": "true"}
    )
    expected = PromptClassifier(prompt, tiny).probabilities(embeddings, 2.0)
    found = answer_of(calibrated.content, form, embeddings)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_headers(client: TestClient, tiny: Backbone) -> None:
    publish(client, make_prompt(tiny))
    response = client.get("/v1/prompts/colors:1/export")
    digest = hashlib.sha256(response.content).hexdigest()
    assert response.headers["etag"] == f'"{digest}"'
    assert response.headers["x-checksum-sha256"] == digest
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["content-disposition"] == 'attachment; filename="colors-v1.npy"'
    known = {"if-none-match": response.headers["etag"]}
    again = client.get("/v1/prompts/colors:1/export", headers=known)
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == response.headers["etag"]
    other = client.get("/v1/prompts/colors/export?format=onnx&calibrated=true", headers=known)
    assert other.status_code == 200
    name = 'attachment; filename="colors-v1-calibrated.onnx"'
    assert other.headers["content-disposition"] == name


def test_the_model_tells_which_prompt_it_is(client: TestClient, tiny: Backbone) -> None:
    publish(client, make_prompt(tiny))
    prompt = publish(client, make_prompt(tiny, head=True))
    content = client.get("/v1/prompts/colors/export?format=onnx").content
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["class_names"]) == prompt["classes"]
    assert (told["prompt_name"], told["prompt_version"]) == ("colors", "2")
    assert told["prompt_sha256"] == prompt["sha256"]
    assert (told["backbone_name"], told["backbone_fingerprint"]) == ("tiny", tiny.fingerprint)


def test_a_prompt_of_a_backbone_that_is_not_served_is_exported_all_the_same(
    client: TestClient, tiny: Backbone
) -> None:
    prompt = make_prompt(tiny)
    metadata = {**prompt.metadata, "backbone": {**tiny.describe(), "fingerprint": "0" * 64}}
    publish(client, replace(prompt, metadata=metadata))
    assert client.get("/v1/prompts/colors/export").status_code == 200


@pytest.mark.parametrize(
    "query", ["format=pickle", "format=", "calibrated=perhaps", "format=npy&format=onnx"]
)
def test_bad_queries(shared_client: TestClient, query: str) -> None:
    response = shared_client.get(f"/v1/prompts/colors/export?{query}")
    assert_problem(response, 422, "validation_error")


def test_unknown_prompts(shared_client: TestClient) -> None:
    for ref in ("nonesuch", "a:0", "prm_00000000000000000000000000", "%00"):
        assert_problem(shared_client.get(f"/v1/prompts/{ref}/export"), 404, "not_found")


def test_no_temperature_no_calibration(client: TestClient, tiny: Backbone) -> None:
    publish(client, make_prompt(tiny, temperature=None))
    url = "/v1/prompts/colors/export?calibrated=true"
    body = assert_problem(client.get(url), 409, "not_calibrated")
    assert "leave out `calibrated`" in body["detail"]


def test_a_damaged_or_missing_artifact_is_503(
    client: TestClient, tiny: Backbone, services: Services
) -> None:
    prompt = publish(client, make_prompt(tiny))
    key = prompt_key(prompt["id"])
    data = services.artifacts.get_bytes(key)
    services.artifacts.put_bytes(key, data[:-1] + bytes([data[-1] ^ 1]))
    for request in ("export", "download"):
        body = assert_problem(client.get(f"/v1/prompts/colors/{request}"), 503, "artifact_corrupt")
        assert prompt["id"] in body["detail"]
    services.artifacts.delete(key)
    for request in ("export", "download"):
        body = assert_problem(client.get(f"/v1/prompts/colors/{request}"), 503, "artifact_corrupt")
        assert "is missing" in body["detail"]


def test_the_route_loads_no_torch() -> None:
    code = (
        "import sys, service.routes.exports, service.routes.prompts; "
        "sys.exit('torch' in sys.modules or 'onnx' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_the_package_the_service_says_what_is_missing(
    client: TestClient, tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(client, make_prompt(tiny))
    monkeypatch.setitem(sys.modules, "onnx", None)
    response = client.get("/v1/prompts/colors/export?format=onnx")
    body = assert_problem(response, 503, "package_missing")
    assert "sharpzo[export]" in body["detail"]
