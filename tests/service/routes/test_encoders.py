"""The encoder routes: what they answer, what they refuse, and who may ask."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image
from starlette.testclient import TestClient

from service.inference import encoder_host
from service.services import Services
from sharpzo_core.records.keys import Scope
from sharpzo_core.settings import Settings
from sharpzo_engine import Backbone
from sharpzo_engine.clip.remote.wire import IDENTITY_HEADER, MEDIA_TYPE, Description
from sharpzo_engine.data.images import decode_image
from tests.helpers import eventually
from tests.service.conftest import MakeClient, assert_problem, png
from tests.service.toys import COLORS, files, make_backbone, with_backbones

URL = "/v1/encoders/toy"
WORDS = {"context": "a photo of a", "classes": ["cat", "red dog", "x"]}
TENSORS = {"Content-Type": MEDIA_TYPE}
TOLERANCE = 1e-6


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return make_backbone(tmp_path_factory.mktemp("models") / "toy", seed=1)


@pytest.fixture
def settings(data_dir: Path, backbone: Backbone) -> Settings:
    return with_backbones(data_dir, backbone)


@pytest.fixture
def services(client: TestClient) -> Services:
    services: Services = client.app.state.services  # type: ignore[attr-defined]
    return services


def read(response: Any) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == MEDIA_TYPE
    return safetensors.numpy.load(response.content)


def words(client: TestClient) -> dict[str, Any]:
    return read(client.post(f"{URL}/contexts", json=WORDS))


def encode(client: TestClient, tensors: dict[str, Any], query: str = "") -> Any:
    body = safetensors.numpy.save(tensors)
    return client.post(f"{URL}/contexts{query}", content=body, headers=TENSORS)


def expected_classes(backbone: Backbone, contexts: Any) -> Any:
    tokens = backbone.tokenize(WORDS["context"], WORDS["classes"])  # type: ignore[arg-type]
    return backbone.text_encoder(tokens).encode(contexts)


def test_a_description_has_all_that_a_client_needs(client: TestClient, backbone: Backbone) -> None:
    answer = client.get(URL)
    about = Description.model_validate_json(answer.content)
    assert (about.kind, about.name, about.level) == ("sharpzo-encoder/1", "toy", "contexts")
    assert about.fingerprint == backbone.fingerprint
    assert (about.embed_dim, about.text_width, about.positions) == (16, 32, 77)
    assert about.preprocessing == backbone.preprocessing
    assert about.logit_scale == pytest.approx(backbone.logit_scale)
    assert (about.runtime, about.precision) == ("torch", "float32")


def test_images_are_embedded_as_for_classification(client: TestClient, backbone: Backbone) -> None:
    images = [png(color, 30) for color in COLORS.values()]
    expected = backbone.encode_images(
        np.stack([backbone.preprocess(decode_image(image)) for image in images])
    )
    sent = client.post(f"{URL}/images", files=files(*images))
    assert np.abs(read(sent)["embeddings"] - expected).max() < TOLERANCE
    assert sent.headers[IDENTITY_HEADER] == client.get(URL).json()["identity"]
    encoded = [base64.b64encode(image).decode() for image in images]
    half = read(client.post(f"{URL}/images?dtype=float16", json={"images": encoded}))
    assert half["embeddings"].dtype == np.float16
    assert np.abs(half["embeddings"] - expected).max() < 1e-3


def test_an_image_of_the_models_size_is_only_normalised(
    client: TestClient, backbone: Backbone
) -> None:
    """So a client may resize it, and its embedding is that of the original."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8))
    answers = [
        read(client.post(f"{URL}/images", files=files(as_png(one))))["embeddings"]
        for one in (image, backbone.preprocessing.crop(image))
    ]
    assert np.array_equal(*answers)


def as_png(image: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_texts_are_embedded_whole(client: TestClient, backbone: Backbone) -> None:
    texts = ["a photo of a cat.", "dog", "a photo of a red dog.", "ein Hund, der läuft & springt"]
    found = read(client.post(f"{URL}/texts", json={"texts": texts}))["embeddings"]
    assert np.abs(found - backbone.encode_texts(texts)).max() < TOLERANCE
    tokens = backbone.tokenize("a photo of a", ["cat", "red dog"])
    prompts = backbone.text_encoder(tokens).encode(backbone.token_embeddings(tokens.context)[None])
    assert np.abs(found[[0, 2]] - prompts[0]).max() < TOLERANCE


@pytest.mark.parametrize("at_once", [1, encoder_host.ROWS_AT_ONCE])
def test_contexts_become_class_embeddings(
    client: TestClient, backbone: Backbone, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(encoder_host, "ROWS_AT_ONCE", at_once)
    start = words(client)
    moved = np.random.default_rng(0).standard_normal((5, *start["context"].shape))
    contexts = (start["context"] + 0.1 * moved).astype(np.float32)
    found = read(encode(client, {"contexts": contexts, "classes": start["classes"]}))
    expected = expected_classes(backbone, contexts)
    assert np.abs(found["embeddings"] - expected).max() < TOLERANCE
    half = {"contexts": contexts.astype(np.float16), "classes": start["classes"]}
    rough = read(encode(client, half, "?dtype=float16"))["embeddings"]
    assert rough.dtype == np.float16
    assert np.abs(rough - expected).max() < 5e-3


def test_words_are_answered_with_what_contexts_need(client: TestClient, backbone: Backbone) -> None:
    tokens = backbone.tokenize(WORDS["context"], WORDS["classes"])  # type: ignore[arg-type]
    start = words(client)
    assert start["start"].tolist() == [tokens.sos]
    assert tuple(start["context_ids"].tolist()) == tokens.context
    rows = [tuple(row[row >= 0].tolist()) for row in start["classes"]]
    assert tuple(rows) == tokens.suffixes
    assert np.array_equal(start["context"], backbone.token_embeddings(tokens.context))


CLASSES = np.array([[320, 49407]], np.int32)
CONTEXTS = np.zeros((1, 4, 32), np.float32)


@pytest.mark.parametrize(
    ("tensors", "pointer"),
    [
        ({"contexts": CONTEXTS}, ""),
        ({"contexts": CONTEXTS, "classes": CLASSES, "more": CLASSES}, ""),
        ({"contexts": CONTEXTS[0], "classes": CLASSES}, "/contexts"),
        ({"contexts": CONTEXTS[..., :31], "classes": CLASSES}, "/contexts"),
        ({"contexts": CONTEXTS.astype(np.int32), "classes": CLASSES}, "/contexts"),
        ({"contexts": CONTEXTS.astype(np.float64), "classes": CLASSES}, "/contexts"),
        ({"contexts": CONTEXTS[:0], "classes": CLASSES}, "/contexts"),
        ({"contexts": CONTEXTS[:, :0], "classes": CLASSES}, "/contexts"),
        ({"contexts": CONTEXTS, "classes": CLASSES[0]}, "/classes"),
        ({"contexts": CONTEXTS, "classes": CLASSES[:0]}, "/classes"),
        ({"contexts": CONTEXTS, "classes": CLASSES.astype(np.float32)}, "/classes"),
        ({"contexts": CONTEXTS, "classes": np.zeros((1, 73), np.int32)}, "/classes"),
        ({"contexts": CONTEXTS, "classes": CLASSES + 1}, "/classes"),
        ({"contexts": CONTEXTS, "classes": CLASSES - 400}, "/classes"),
        ({"contexts": CONTEXTS, "classes": CLASSES * 0 - 1}, "/classes"),
        ({"contexts": CONTEXTS, "classes": np.array([[-1, 49407]], np.int32)}, "/classes"),
        ({"contexts": CONTEXTS, "classes": np.zeros((2**15 + 1, 1), np.int32)}, "/contexts"),
    ],
)
def test_a_wrong_tensor_is_named(client: TestClient, tensors: dict[str, Any], pointer: str) -> None:
    body = assert_problem(encode(client, tensors), 422, "validation_error")
    assert [fault["pointer"] for fault in body["errors"]] == [pointer]


def raw(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def declared(shape: object, dtype: object = "F32", offsets: object = None) -> dict[str, Any]:
    return {"contexts": {"dtype": dtype, "shape": shape, "data_offsets": offsets or [0, 512]}}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"\0" * 7, 422),
        (b"\xff" * 8, 422),
        (raw({}, length=100), 422),
        (raw(b"[]"), 422),
        (raw(b"{"), 400),
        (raw(b'{"a": NaN}'), 422),
        (raw(b'{"a": 1, "a": 2}'), 400),
        (raw(declared([1, 4, 32])), 422),
        (raw(declared([1, 4, 32], offsets=[0, 511])), 422),
        (raw(declared([1, 4, 32], offsets=[1, 513])), 422),
        (raw(declared([1, 4, -32])), 422),
        (raw(declared([1, 4, 32.0])), 422),
        (raw(declared([2**40, 2**40, 32])), 422),
        (raw(declared("x", "F64")), 422),
        (raw(declared([1, 4, 32], [])), 422),
        (raw({"contexts": {"dtype": "F32", "shape": [1]}}), 422),
        (raw({"contexts": [], "classes": 7}), 422),
    ],
)
def test_a_body_that_is_no_safetensors(client: TestClient, body: bytes, status: int) -> None:
    response = client.post(f"{URL}/contexts", content=body, headers=TENSORS)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"


def test_a_body_is_as_long_as_it_says(client: TestClient) -> None:
    whole = safetensors.numpy.save({"contexts": CONTEXTS, "classes": CLASSES})
    for body, fault in ((whole + b"x", "is longer than"), (whole[:-1], "ends after")):
        answer = client.post(f"{URL}/contexts", content=body, headers=TENSORS)
        assert fault in assert_problem(answer, 422, "validation_error")["detail"]


def test_a_shape_is_refused_before_its_bytes_are_read(client: TestClient) -> None:
    """A gigabyte is declared, and the first kilobyte decides."""
    sent = 0

    def body() -> Any:
        nonlocal sent
        size = 2**17 * 32 * 4 * 64
        yield raw(declared([2**17, 64, 32], offsets=[0, size]))
        while sent < 50:
            sent += 1
            yield bytes(1 << 20)

    answer = client.post(f"{URL}/contexts", content=body(), headers=TENSORS)
    assert_problem(answer, 422, "validation_error")


@pytest.mark.parametrize(
    ("path", "options", "status", "pointer"),
    [
        ("texts", {"json": {"texts": []}}, 422, "/texts"),
        ("texts", {"json": {"texts": ["a", " "]}}, 422, "/texts/1"),
        ("texts", {"json": {"texts": ["a"] * 40 + ["a " * 80]}}, 422, "/texts/40"),
        ("texts", {"json": {"texts": ["a"] * 257}}, 422, "/texts"),
        ("texts", {"json": {"texts": ["a" * 4001]}}, 422, "/texts/0"),
        ("texts?dtype=int8", {"json": {"texts": ["a"]}}, 422, "/dtype"),
        ("contexts", {"json": {**WORDS, "classes": []}}, 422, "/classes"),
        ("contexts", {"json": {**WORDS, "classes": ["a " * 80]}}, 422, "/classes"),
        ("contexts", {"json": {**WORDS, "context": "a " * 80}}, 422, "/context"),
        ("contexts", {"content": b"x"}, 415, None),
        ("images", {"files": files(b"no image")}, 422, "/images/0"),
        ("images", {"files": files(*[b"x"] * 65)}, 413, None),
        ("images", {"content": b"x"}, 415, None),
    ],
)
def test_what_is_not_possible_is_named(
    client: TestClient, path: str, options: Any, status: int, pointer: str | None
) -> None:
    answer = client.post(f"{URL}/{path}", **options)
    assert answer.status_code == status, answer.text
    if pointer is not None:
        assert [fault["pointer"] for fault in answer.json()["errors"]] == [pointer]


@pytest.mark.parametrize("name", ["nothing", "ViT-B-32:openai", "*", "local-dir:x"])
def test_only_what_the_operator_lists_is_there(client: TestClient, name: str) -> None:
    assert_problem(client.get(f"/v1/encoders/{name}"), 404, "not_found")


def test_a_backbone_that_cannot_be_loaded_is_503(
    data_dir: Path, backbone: Backbone, make_client: MakeClient
) -> None:
    client = make_client(with_backbones(data_dir, backbone, "gone=local-dir:/nonexistent"))
    assert_problem(client.get("/v1/encoders/gone"), 503, "backbone_unavailable")


def test_too_much_at_once_is_429(client: TestClient, services: Services) -> None:
    host = services.inference.encoders
    with host._floats.hold(encoder_host.ANSWERS_AT_ONCE * encoder_host.LIMITS.floats):
        busy = client.post(f"{URL}/texts", json={"texts": ["a"]})
        assert_problem(busy, 429, "busy")
        assert busy.headers["retry-after"] == "1"
    with host._waiting.hold(services.settings.inference_queue):
        assert_problem(client.post(f"{URL}/images", files=files(png())), 429, "busy")
    assert client.post(f"{URL}/texts", json={"texts": ["a"]}).status_code == 200
    assert (host._floats.held, host._waiting.held) == (0, 0)


def with_key(client: TestClient, *scopes: Scope, **options: Any) -> dict[str, str]:
    services: Services = client.app.state.services  # type: ignore[attr-defined]
    return {"Authorization": f"Bearer {services.keys.create('n', scopes, **options).text}"}


def test_a_key_needs_the_scope_and_has_a_rate(client: TestClient) -> None:
    others = with_key(client, Scope.INFER, Scope.JOBS, Scope.PROMPTS, Scope.METRICS)
    own = with_key(client, Scope.ENCODE, rate_limit="6/hour")
    eventually(lambda: client.get(URL).status_code == 401)
    ask: dict[str, Callable[[dict[str, str]], Any]] = {
        "describe": lambda key: client.get(URL, headers=key),
        "images": lambda key: client.post(f"{URL}/images", files=files(png()), headers=key),
        "texts": lambda key: client.post(f"{URL}/texts", json={"texts": ["a"]}, headers=key),
        "contexts": lambda key: client.post(f"{URL}/contexts", json=WORDS, headers=key),
        "openai": lambda key: client.post(
            "/v1/embeddings", json={"input": "a", "model": "toy"}, headers=key
        ),
    }
    for one in ask.values():
        assert_problem(one({}), 401, "auth_required")
        assert_problem(one(others), 403, "scope_forbidden")
        assert one(own).status_code == 200
    assert client.get("/v1/jobs", headers=own).status_code == 403
    assert_problem(ask["texts"](own), 429, "rate_limited")


# OpenAI's form


def uri(image: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


def test_embeddings_in_openais_form(client: TestClient, backbone: Backbone) -> None:
    asked = {"input": ["a cat", uri(png()), "a dog"], "model": "toy"}
    answer = client.post("/v1/embeddings", json=asked).json()
    assert (answer["object"], answer["model"]) == ("list", "toy")
    assert [item["index"] for item in answer["data"]] == [0, 1, 2]
    assert {item["object"] for item in answer["data"]} == {"embedding"}
    assert answer["usage"] == {"prompt_tokens": 8, "total_tokens": 8}
    rows = np.array([item["embedding"] for item in answer["data"]], np.float32)
    assert np.abs(rows[[0, 2]] - backbone.encode_texts(["a cat", "a dog"])).max() < TOLERANCE
    image = read(client.post(f"{URL}/images", files=files(png())))["embeddings"]
    assert np.abs(rows[1] - image[0]).max() < TOLERANCE
    one = client.post("/v1/embeddings", json=asked | {"encoding_format": "base64"}).json()
    packed = [np.frombuffer(base64.b64decode(i["embedding"]), "<f4") for i in one["data"]]
    assert np.abs(np.stack(packed) - rows).max() < TOLERANCE
    single = client.post("/v1/embeddings", json={"input": "a cat", "model": "toy"}).json()
    assert np.allclose(single["data"][0]["embedding"], rows[0], atol=TOLERANCE)


@pytest.mark.parametrize(
    ("changes", "status", "pointer"),
    [
        ({"model": "nothing"}, 404, None),
        ({"input": []}, 422, None),
        ({"input": [[1, 2]]}, 422, None),
        ({"input": ["a", "  "]}, 422, "/input/1"),
        ({"input": ["a", uri(png()), "a " * 80]}, 422, "/input/2"),
        ({"input": ["a", uri(b"no image")]}, 422, "/input/1"),
        ({"input": "data:image/png;base64,%%"}, 422, "/input/0"),
        ({"encoding_format": "hex"}, 422, "/encoding_format"),
        ({"dimensions": 3}, 422, "/dimensions"),
    ],
)
def test_wrong_requests_in_openais_form(
    client: TestClient, changes: dict[str, Any], status: int, pointer: str | None
) -> None:
    answer = client.post("/v1/embeddings", json={"input": "a", "model": "toy", **changes})
    assert answer.status_code == status, answer.text
    if pointer is not None:
        assert [fault["pointer"] for fault in answer.json()["errors"]] == [pointer]
