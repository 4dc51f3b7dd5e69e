"""Encoders on another server, against a real service on loopback."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from sharpzo_core.settings import Settings
from sharpzo_engine import (
    Backbone,
    Encoder,
    Level,
    PromptClassifier,
    TuneResult,
    TuningConfig,
    load_backbone,
    load_dataset,
    tune,
)
from sharpzo_engine.clip.encoder import Changeable, check_unchanged, has_changed
from sharpzo_engine.clip.onnx.export import export_encoder
from sharpzo_engine.clip.remote import connection, probes
from sharpzo_engine.clip.remote.connection import Connection
from sharpzo_engine.clip.remote.embeddings import EmbeddingsEncoder
from sharpzo_engine.clip.remote.encoder import POINTS, RemoteEncoder
from sharpzo_engine.clip.remote.load import KEY
from sharpzo_engine.errors import (
    BackboneError,
    BackboneMismatch,
    ConfigError,
    DatasetError,
    EncoderAway,
)
from tests.service.servers import server_thread
from tests.service.toys import make_backbone
from tests.service.weather import BadWeather

NAMES = [f"thing {i} {'x ' * (i % 4)}" for i in range(30)]
SMALL = {
    "shots": 4,
    "total_steps": 24,
    "change_point": 10,
    "prompt": {"intrinsic_dim": 8},
    "cma": {"population_size": 42},
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder whose answers to one image do not depend on the others of its batch."""
    folder = tmp_path_factory.mktemp("exported") / "tiny"
    original = load_backbone("tiny", device="cpu")
    assert isinstance(original, Backbone)
    export_encoder(original, folder, "fp32", min_agreement=0)
    return folder


@pytest.fixture(scope="module")
def local(exported: Path) -> Encoder:
    return load_backbone(f"onnx-dir:{exported}", device="cpu")


@contextmanager
def owner(
    folder: Path, backbones: str, wrap: Callable[[Any], Any] = lambda app: app
) -> Iterator[str]:
    """The service of somebody who has weights; gives the address of its encoders."""
    name = backbones.partition("=")[0]
    settings = Settings(data_dir=folder, device="cpu", backbones=backbones, default_backbone=name)
    with server_thread(settings, wrap) as url:
        yield f"{url}/v1/encoders"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, exported: Path) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("owner")
    with owner(folder, f"far=onnx-dir:{exported},tiny") as url:
        yield url


@pytest.fixture(scope="module")
def remote(url: str) -> RemoteEncoder:
    found = load_backbone(f"remote:{url}/far")
    assert isinstance(found, RemoteEncoder)
    return found


def moved(*shape: int) -> Any:
    return 0.1 * np.random.default_rng(1).standard_normal(shape, np.float32)


def photos(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (50, 70, 3), np.uint8)) for _ in range(count)]


def test_a_remote_encoder_is_the_models_own(remote: RemoteEncoder, local: Encoder) -> None:
    assert remote.fingerprint == local.fingerprint
    assert (remote.level, remote.runtime, remote.precision) == (Level.CONTEXTS, "remote", "fp32")
    assert remote.variant.startswith("remote onnxruntime fp32 ")
    assert remote.describe()["name"] == "far"
    for name in ("logit_scale", "embed_dim", "text_width", "positions", "image_size"):
        assert getattr(remote, name) == getattr(local, name), name
    exact = load_backbone("tiny", device="cpu")
    assert exact.fingerprint == remote.fingerprint


def test_answers_are_the_owners_to_the_bit(remote: RemoteEncoder, local: Encoder) -> None:
    images = photos(70)  # more than one request may hold
    found, expected = (
        one.encode_images(np.stack([one.preprocess(image) for image in images]))
        for one in (remote, local)
    )
    assert np.array_equal(found, expected)
    assert np.array_equal(remote.encode_texts(NAMES), local.encode_texts(NAMES))
    tokens = remote.tokenize("a photo of a", NAMES)
    assert tokens == local.tokenize("a photo of a", NAMES)
    context = remote.token_embeddings(tokens.context)
    assert np.array_equal(context, local.token_embeddings(tokens.context))
    points = context + moved(2 * POINTS + 3, *context.shape)
    found, expected = (one.text_encoder(tokens).encode(points) for one in (remote, local))
    assert np.array_equal(found, expected)


def test_requests_stay_within_the_servers_limits(
    remote: RemoteEncoder, local: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Points and classes are split, and come back in their places."""
    tokens = local.tokenize("a photo of a", NAMES)
    remote.tokenize("a photo of a", NAMES)
    points = local.token_embeddings(tokens.context) + moved(3, 4, local.text_width)
    longest = max(map(len, tokens.suffixes))
    expected = local.text_encoder(tokens).encode(points)
    sent: list[tuple[int, ...]] = []
    encode = remote.encode_contexts

    def counted(contexts: Any, classes: Any) -> Any:
        sent.append((len(contexts), *classes.shape))
        return encode(contexts, classes)

    monkeypatch.setattr(remote, "encode_contexts", counted)
    for rows, requests in ((len(NAMES) * longest, 3), (7 * longest, 15)):
        limits = remote.limits.model_copy(update={"rows": rows})
        monkeypatch.setattr(remote, "limits", limits)
        found = remote.text_encoder(tokens).encode(points)
        assert np.abs(found - expected).max() < 1e-6
        assert len(sent) == requests
        assert max(n * c * s for n, c, s in sent) <= rows
        sent.clear()


def test_long_lists_of_classes_are_tokenised_in_parts(
    remote: RemoteEncoder, local: Encoder
) -> None:
    names = [f"class number {i}" for i in range(600)]
    assert remote.tokenize("a drawing of", names) == local.tokenize("a drawing of", names)


def test_unusable_words_raise_what_a_local_encoder_raises(remote: RemoteEncoder) -> None:
    with pytest.raises(ConfigError, match="context"):
        remote.tokenize("a " * 90, ["cat"])
    with pytest.raises(DatasetError, match="too long"):
        remote.tokenize("a photo of a", ["cat", "a " * 90])
    with pytest.raises(BackboneError, match="only contexts that it has tokenised"):
        remote.token_embeddings([1, 2, 3])


# A run


def run(pictures: Path, encoder: Encoder, folder: Path | None = None) -> TuneResult:
    dataset = load_dataset(pictures, shots=4, seed=1)
    return tune(dataset, encoder, TuningConfig.model_validate(SMALL), cache_dir=folder)


def assert_equal(one: TuneResult, other: TuneResult) -> None:
    assert np.array_equal(one.prompt.context, other.prompt.context)
    assert np.array_equal(one.prompt.class_embeddings, other.prompt.class_embeddings)
    assert [r.loss for r in one.history] == [r.loss for r in other.history]
    assert one.metrics["forward_passes"] == other.metrics["forward_passes"]


@pytest.fixture(scope="module")
def expected(pictures: Path, local: Encoder) -> TuneResult:
    return run(pictures, local)


def test_a_run_is_the_local_one_to_the_bit(
    pictures: Path, remote: RemoteEncoder, expected: TuneResult
) -> None:
    found = run(pictures, remote)
    assert_equal(found, expected)
    assert found.prompt.metadata["backbone"]["runtime"] == "remote"
    assert found.prompt.fingerprint == expected.prompt.fingerprint


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_run_in_bad_weather_equals_a_calm_one(
    tmp_path: Path,
    pictures: Path,
    exported: Path,
    expected: TuneResult,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """429, 503, cut connections and slow answers: nothing is lost, and nothing is asked twice."""
    weather: list[BadWeather] = []

    def wrap(app: Any) -> BadWeather:
        weather.append(BadWeather(app, share=0.15))
        return weather[0]

    caplog.set_level(logging.CRITICAL)  # uvicorn logs every cut with its stack
    with owner(tmp_path / "owner", f"far=onnx-dir:{exported}", wrap) as url:
        found = run(pictures, load_backbone(f"remote:{url}/far"), tmp_path / "cache")
        (bad,) = weather
        assert_equal(found, expected)
        assert all(bad.seen[kind] for kind in ("429", "503", "cut early", "cut late", "slow"))
        again = load_backbone(f"remote:{url}/far")
        bad.share, images = 0, bad.paths["/v1/encoders/far/images"]
        bad.paths.clear()
        run(pictures, again, tmp_path / "cache")
        assert images > 0
        assert bad.paths["/v1/encoders/far/images"] == 0  # they are in the cache
        # Each answer that arrived was asked for once: a calm run takes as many requests.
        answered = bad.paths["/v1/encoders/far/contexts"]
    calm = bad.seen["calm"] + bad.seen["slow"]
    assert answered <= calm


def test_a_prompt_classifies_on_either_side(
    pictures: Path, remote: RemoteEncoder, local: Encoder, expected: TuneResult
) -> None:
    image = next(iter((pictures / "test").rglob("*.png")))
    here, there = (
        PromptClassifier(expected.prompt, one).predict([image])[0] for one in (local, remote)
    )
    assert here == there


# A server that changes, or is away


def test_a_replaced_model_is_a_mismatch(tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    first, second = (make_backbone(models / str(i), seed=i) for i in (1, 2))
    with owner(tmp_path / "a", f"toy={first.name}") as url:
        encoder = load_backbone(f"remote:{url}/toy")
        encoder.check()  # type: ignore[attr-defined]
        tokens = encoder.tokenize("a photo of a", ["cat"])
        context = encoder.token_embeddings(tokens.context)[None]
    with owner(tmp_path / "b", f"toy={second.name}") as other:
        encoder._connection.url = f"{other}/toy"  # type: ignore[attr-defined]
        for ask in (
            lambda: check_unchanged(encoder),
            lambda: encoder.text_encoder(tokens).encode(context),
            lambda: encoder.encode_texts(["a"]),
        ):
            with pytest.raises(BackboneMismatch, match="another model"):
                ask()
        assert has_changed(encoder)


def test_a_model_that_lies_is_found_by_its_answers_to_probes(
    remote: RemoteEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its description stays as it was; an hour later its answers are compared."""
    watch = probes.Watch("there", remote._answer_probes)
    remote.encode_texts(["a"])
    first, clock = watch.first, [0.0]
    monkeypatch.setattr(probes.time, "monotonic", lambda: clock[0])
    answers = [first + 1e-4, first[:, ::-1].copy(), first]
    watch = probes.Watch("there", lambda: answers[0] if clock[0] < 5000 else answers[1])
    watch.check_if_due()
    clock[0] = 3601
    watch.check_if_due()
    assert not watch.changed
    clock[0] = 7300
    with pytest.raises(BackboneMismatch):
        watch.check_if_due()
    answers[1] = first  # restored, but not asked for at once
    with pytest.raises(BackboneMismatch):
        watch.check_if_due()
    clock[0] = 7361
    watch.check_if_due()
    assert not watch.changed


class Stub(BaseHTTPRequestHandler):
    """Answers as `reply` says, and notes what it was asked."""

    reply: Callable[[Stub, int], None]
    asked: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.asked.append({"headers": dict(self.headers), "path": self.path, "body": body})
        type(self).reply(self, len(self.asked))

    do_GET = do_POST  # noqa: N815 - how the base class finds it

    def answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def stub(reply: Callable[[Any, int], None]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    handler = type("Handler", (Stub,), {"reply": staticmethod(reply), "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", handler.asked  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_retries_wait_as_asked_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(connection, "Retrying", lambda **of: _Retrying(sleep=pauses.append, **of))

    def reply(handler: Stub, count: int) -> None:
        if count < 4:
            handler.answer((429, 503, 500)[count - 1], Retry_After="7" if count == 1 else "")
        else:
            handler.answer(200, b"fine")

    with stub(reply) as (url, asked):
        answer = Connection(url, "secret", patience=60).request("POST", "/x", content=b"q")
        assert answer.body == b"fine"
        assert len(asked) == 4
        assert {one["headers"]["Authorization"] for one in asked} == {"Bearer secret"}
    assert pauses[0] == 7
    assert all(0 < pause <= 1.5 * connection.LONGEST_PAUSE for pause in pauses[1:])


_Retrying = connection.Retrying


def test_a_server_that_stays_away_is_away() -> None:
    with stub(lambda handler, _: handler.answer(503)) as (url, asked):
        with pytest.raises(EncoderAway, match="does not answer: status 503"):
            Connection(url, None, patience=0.5).request("GET")
        assert len(asked) >= 2
    with pytest.raises(EncoderAway, match="ConnectError"):
        Connection(url, None, patience=0.2).request("GET")
    with stub(lambda handler, _: handler.answer(429, Retry_After="600")) as (url, asked):
        with pytest.raises(EncoderAway, match="status 429"):
            Connection(url, None, patience=5).request("GET")
        assert len(asked) == 1  # it asks for more patience than there is


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (lambda handler, _: handler.answer(401), "SHARPZO_ENCODER_KEY"),
        (lambda handler, _: handler.answer(403), "SHARPZO_ENCODER_KEY"),
        (lambda handler, _: handler.answer(404, b"<html>"), "answers 404: no reason given"),
        (lambda handler, _: handler.answer(200, b"<html>"), "is no encoder"),
        (lambda handler, _: handler.answer(200, b"{}"), "is no encoder"),
        (lambda handler, _: handler.answer(200, bytes(1 << 20)), "more than 65536 bytes"),
        (lambda handler, _: handler.answer(302, Location="http://127.0.0.1:1/"), "answers 302"),
    ],
)
def test_an_address_of_something_else(reply: Callable[[Any, int], None], message: str) -> None:
    with stub(reply) as (url, asked), pytest.raises(BackboneError, match=message) as caught:
        load_backbone(f"remote:{url}")
    assert len(asked) == 1
    assert not isinstance(caught.value, EncoderAway)


@pytest.mark.parametrize(
    "spec", ["remote:", "remote:x", "remote:ftp://x/y", "remote:http://a:b@host/x", "remote:http:"]
)
def test_addresses_are_checked(spec: str) -> None:
    with pytest.raises(BackboneError, match="needs an address"):
        load_backbone(spec)
    with pytest.raises(BackboneError, match="omit pretrained"):
        load_backbone("remote:http://x/y", "openai")


def test_the_key_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "szo_secret")
    with stub(lambda handler, _: handler.answer(404)) as (url, asked):
        with pytest.raises(BackboneError):
            load_backbone(f"remote:{url}")
        assert asked[0]["headers"]["Authorization"] == "Bearer szo_secret"


# OpenAI's form


@pytest.fixture(scope="module")
def embeddings(url: str) -> EmbeddingsEncoder:
    base = url.removesuffix("/encoders")
    found = load_backbone(f"openai-embeddings:{base}#tiny", alias="clip")
    assert isinstance(found, EmbeddingsEncoder)
    return found


def test_a_model_behind_embeddings_gives_texts_and_images(
    embeddings: EmbeddingsEncoder, url: str
) -> None:
    original = load_backbone("tiny", device="cpu")
    assert (embeddings.level, embeddings.embed_dim) == (Level.TEXTS, original.embed_dim)
    assert np.abs(embeddings.encode_texts(NAMES) - original.encode_texts(NAMES)).max() < 1e-6
    images = photos(40)
    found = embeddings.encode_images(np.stack([embeddings.preprocess(i) for i in images]))
    expected = original.encode_images(np.stack([original.preprocess(i) for i in images]))
    assert float((found * expected).sum(-1).min()) > 0.9  # they are resized twice
    assert np.allclose(np.linalg.norm(found, axis=-1), 1)
    embeddings.check()
    assert isinstance(embeddings, Changeable)
    base = url.removesuffix("/encoders")
    assert load_backbone(f"openai-embeddings:{base}#tiny").fingerprint == embeddings.fingerprint
    assert embeddings.describe()["name"] == "clip"


def test_residuals_of_its_embeddings_are_tuned(
    pictures: Path, embeddings: EmbeddingsEncoder
) -> None:
    result = run(pictures, embeddings)
    assert result.metrics["loss"] < 1.0986  # of chance among three classes
    assert result.prompt.fingerprint == embeddings.fingerprint


def floats(rows: int, inputs: int = 0) -> bytes:
    rng = np.random.default_rng(inputs)
    data = [{"index": i, "embedding": rng.random(8).tolist()} for i in range(rows)]
    return json.dumps({"data": data[::-1]}).encode()


def test_a_server_without_texts_gives_images() -> None:
    def reply(handler: Stub, _: int) -> None:
        inputs = json.loads(handler.asked[-1]["body"])["input"]
        if all(text.startswith("data:image/png;base64,") for text in inputs):
            handler.answer(200, floats(len(inputs)))
        else:
            handler.answer(400)

    with stub(reply) as (url, asked):
        encoder = load_backbone(f"openai-embeddings:{url}#m")
        assert (encoder.level, encoder.embed_dim) == (Level.IMAGES, 8)
        assert {one["path"] for one in asked} == {"/v1/embeddings"}
        assert json.loads(asked[0]["body"])["model"] == "m"


@pytest.mark.parametrize(
    "content",
    [
        b"{}",
        b"[]",
        b'{"data": []}',
        floats(2),
        b'{"data": [{"index": 0, "embedding": [0, 0]}]}',
        b'{"data": [{"index": 0, "embedding": "%%"}]}',
        b'{"data": [{"index": 0, "embedding": [NaN]}]}',
        b'{"data": [{"index": 0, "embedding": "AAAA"}]}',
    ],
)
def test_other_answers_are_no_embeddings(content: bytes) -> None:
    with (
        stub(lambda handler, _: handler.answer(200, content)) as (url, _),
        pytest.raises(BackboneError, match="embeddings"),
    ):
        load_backbone(f"openai-embeddings:{url}#m")


def test_a_model_has_to_be_named() -> None:
    with pytest.raises(BackboneError, match="needs a model after #"):
        load_backbone("openai-embeddings:http://127.0.0.1:1/v1")


def test_fingerprints_survive_rounding_and_tell_models_apart() -> None:
    rng = np.random.default_rng(0)
    one, other = (rng.standard_normal((6, 64)).astype(np.float32) for _ in range(2))
    one, other = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (one, other))
    first = probes.fingerprint(one, "m")
    assert probes.fingerprint(one * np.float32(1 + 1e-6), "m") == first
    assert probes.fingerprint(other, "m") != first
    assert probes.fingerprint(one, "other") != first


def test_vectors_are_read_in_both_forms(embeddings: EmbeddingsEncoder) -> None:
    from sharpzo_engine.clip.remote.embeddings import vector

    packed = base64.b64encode(np.array([1, 2], "<f4").tobytes()).decode()
    assert vector(packed).tolist() == vector([1, 2]).tolist() == [1, 2]
    assert httpx.codes.OK == 200
