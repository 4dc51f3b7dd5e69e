"""Classification: many prompts and requests in one queue, and what can go wrong with one."""

from __future__ import annotations

import base64
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import softmax
from starlette.testclient import TestClient

from service import metrics as metrics_module
from service.inference import host
from service.services import Services
from sharpzo_core.settings import Settings
from sharpzo_core.storage.artifact_store import ArtifactStore
from sharpzo_engine import Backbone, PromptClassifier, TunedPrompt
from sharpzo_engine.prompts.classifier import zero_shot_weights
from tests.helpers import eventually
from tests.service.conftest import MakeClient, assert_problem, png
from tests.service.servers import server_thread
from tests.service.toys import COLORS, artifact_of, files, import_, make_backbone, with_backbones

Floats = NDArray[np.float32]

TOLERANCE = 1e-5  # batches of other sizes round otherwise
URL = "/v1/prompts/colors/classify"


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


def metric(client: Any, name: str, **labels: str) -> float:
    """The value of one time series; 0 if there is none yet."""
    wanted = {f'{key}="{value}"' for key, value in labels.items()}
    total = 0.0
    for line in client.get("/metrics").text.splitlines():
        match = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line)
        if match and wanted <= set((match[1] or "").split(",")):
            total += float(match[2])
    return total


def scores(result: dict[str, Any], key: str = "predictions") -> dict[str, float]:
    return {prediction["label"]: prediction["score"] for prediction in result[key]}


def shuffled(backbone: Backbone, seed: int, name: str) -> bytes:
    """A prompt of its own: other classes, other embeddings."""
    rng = np.random.default_rng(seed)
    count = 2 + seed % 7
    rows = rng.standard_normal((count, backbone.embed_dim)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    context = np.zeros((4, backbone.text_width), np.float32)
    classes = tuple(f"{name}-{i}" for i in range(count))
    metadata = {"backbone": backbone.describe(), "metrics": {}}
    return TunedPrompt(classes, rows, context, 20.0, metadata).to_bytes()


@contextmanager
def occupied(services: Services) -> Iterator[Callable[[], None]]:
    """Keep the model thread from everything until the block ends or the function is called."""
    begun, release = threading.Event(), threading.Event()

    def occupy() -> None:
        begun.set()
        release.wait(30)

    services.inference._encoder.submit(occupy)
    assert begun.wait(10)
    try:
        yield release.set
    finally:
        release.set()


def test_calibrated_probabilities_are_those_at_the_temperature(
    client: TestClient, backbone: Backbone
) -> None:
    artifact = artifact_of(backbone, head={"kind": "none", "temperature": 3.0})
    import_(client, artifact)
    image = png((120, 130, 20))
    plain = client.post(f"{URL}?top_k=3", files=files(image)).json()
    calibrated = client.post(f"{URL}?top_k=3&calibrated=true", files=files(image)).json()
    raw, cooled = (scores(answer["results"][0]) for answer in (plain, calibrated))
    assert sum(raw.values()) == pytest.approx(1, abs=TOLERANCE)
    assert sum(cooled.values()) == pytest.approx(1, abs=TOLERANCE)
    logits = {label: np.log(score) / 3 for label, score in raw.items()}
    total = sum(np.exp(logit) for logit in logits.values())
    for label, logit in logits.items():
        assert cooled[label] == pytest.approx(np.exp(logit) / total, abs=1e-4)
    assert max(cooled.values()) < max(raw.values())


@pytest.mark.parametrize("head", [{}, {"temperature": None}, {"temperature": -1.0}, "none"])
def test_a_prompt_without_a_temperature_says_so(
    client: TestClient, backbone: Backbone, head: object
) -> None:
    import_(client, artifact_of(backbone, head=head))
    response = client.post(f"{URL}?calibrated=true", files=files(png()))
    body = assert_problem(response, 409, "not_calibrated")
    assert "colors:1" in body["detail"]
    assert client.post(URL, files=files(png())).status_code == 200


@pytest.mark.parametrize("at_once", [2, host.CLASSES_AT_ONCE])
def test_the_hand_written_prompt_answers_beside(
    client: TestClient, backbone: Backbone, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(host, "CLASSES_AT_ONCE", at_once)
    import_(client, artifact_of(backbone, config={"prompt": {"context": "a drawing of"}}))
    answer = client.post(f"{URL}?zero_shot=true&top_k=3", files=files(png())).json()
    weights = zero_shot_weights(backbone, "a drawing of", tuple(COLORS))
    image = PromptClassifier(TunedPrompt.load(artifact_of(backbone)), backbone).embed([png()])
    expected = softmax(image @ weights.T, axis=-1)[0]
    found = scores(answer["results"][0], "zero_shot")
    for name, score in zip(COLORS, expected, strict=True):
        assert found[name] == pytest.approx(float(score), abs=TOLERANCE)
    again = client.post(URL, files=files(png())).json()
    assert "zero_shot" not in again["results"][0]


def test_words_that_cannot_be_encoded_have_no_zero_shot_answer(
    client: TestClient, backbone: Backbone
) -> None:
    import_(client, artifact_of(backbone, config={"prompt": {"context": "word " * 90}}))
    response = client.post(f"{URL}?zero_shot=true", files=files(png()))
    assert_problem(response, 409, "zero_shot_unavailable")
    import_(client, artifact_of(backbone), "sound")
    both = client.post(
        "/v1/classify?zero_shot=true", data={"prompts": "colors,sound"}, files=files(png())
    ).json()["answers"]
    assert both[0]["error"]["code"] == "zero_shot_unavailable"
    assert both[1]["results"][0]["zero_shot"]
    assert client.post(URL, files=files(png())).status_code == 200


def test_several_prompts_share_one_encoding(client: TestClient, backbone: Backbone) -> None:
    for name in ("a", "b", "c"):
        import_(client, shuffled(backbone, len(name) + ord(name), name), name)
    images = [png(color) for color in COLORS.values()]
    alone = {
        name: client.post(f"/v1/prompts/{name}/classify", files=files(*images)).json()
        for name in "abc"
    }
    before = metric(client, "sharpzo_batch_images_sum")
    body = {"prompts": ["c", "a:1", "b"], "images": [base64.b64encode(i).decode() for i in images]}
    together = client.post("/v1/classify", json=body).json()["answers"]
    assert metric(client, "sharpzo_batch_images_sum") - before == len(images)
    assert [answer["ref"] for answer in together] == ["c", "a:1", "b"]
    for answer in together:
        single = alone[answer["name"]]
        assert (answer["prompt_id"], answer["version"]) == (single["prompt_id"], 1)
        assert_same(answer["results"], single["results"])
    form = client.post("/v1/classify", data={"prompts": "c, a:1,b"}, files=files(*images)).json()
    for one, other in zip(form["answers"], together, strict=True):
        assert_same(one["results"], other["results"])


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        if "predictions" in one:
            assert scores(one) == pytest.approx(scores(other), abs=TOLERANCE)
            best, runner_up = sorted(scores(other).values())[-1:-3:-1]
            if best - runner_up > TOLERANCE:
                assert one["predictions"][0]["label"] == other["predictions"][0]["label"]


def test_a_prompt_that_cannot_be_used_spoils_no_other(
    client: TestClient, backbone: Backbone, services: Services, tmp_path: Path
) -> None:
    import_(client, artifact_of(backbone), "good")
    damaged = import_(client, artifact_of(backbone), "damaged").json()
    services.artifacts.put_bytes(f"prompts/{damaged['id']}.safetensors", b"nonsense")
    stranger = make_backbone(tmp_path / "stranger", seed=9)
    import_(client, artifact_of(stranger), "foreign")
    refs = ["good", "damaged", "missing", "foreign", "good:1"]
    response = client.post("/v1/classify", data={"prompts": ",".join(refs)}, files=files(png()))
    assert response.status_code == 200, response.text
    answers = response.json()["answers"]
    assert [answer["ref"] for answer in answers] == refs
    codes = [answer.get("error", {}).get("code") for answer in answers]
    assert codes == [None, "artifact_corrupt", "not_found", "backbone_mismatch", None]
    assert answers[0]["results"] == answers[4]["results"]
    assert "results" not in answers[1]


@pytest.mark.parametrize(
    ("data", "pointer"),
    [
        ({}, "/prompts"),
        ({"prompts": " , "}, "/prompts"),
        ({"prompts": ",".join("p" * 33)}, "/prompts"),
        ({"prompts": "a", "other": "x"}, ""),
    ],
)
def test_bad_forms_of_several_prompts(
    client: TestClient, data: dict[str, str], pointer: str
) -> None:
    body = assert_problem(
        client.post("/v1/classify", data=data, files=files(png())), 422, "validation_error"
    )
    assert body["errors"][0]["pointer"] == pointer


def test_an_answer_is_bounded(client: TestClient, backbone: Backbone) -> None:
    names = tuple(f"class {i}" for i in range(1000))
    rows = np.eye(1000, backbone.embed_dim, dtype=np.float32)
    context = np.zeros((4, backbone.text_width), np.float32)
    metadata = {"backbone": backbone.describe()}
    import_(client, TunedPrompt(names, rows, context, 20.0, metadata).to_bytes(), "many")
    images = files(*[png()] * 64)
    whole = client.post("/v1/prompts/many/classify?top_k=1000", files=images)
    assert {len(result["predictions"]) for result in whole.json()["results"]} == {1000}
    four = {"prompts": "many,many:1,many,many"}
    refused = client.post("/v1/classify?top_k=1000", data=four, files=images)
    fault = assert_problem(refused, 422, "validation_error")["errors"][0]
    assert fault["pointer"] == "/top_k"
    answered = client.post("/v1/classify?top_k=700", data=four, files=images).json()["answers"]
    for answer in answered:
        assert (
            answer["results"][5]["predictions"] == whole.json()["results"][5]["predictions"][:700]
        )


def test_mixed_prompts_at_once_answer_as_one_by_one(
    client: TestClient, backbone: Backbone, services: Services
) -> None:
    names = [f"p{i}" for i in range(20)]
    for i, name in enumerate(names):
        assert import_(client, shuffled(backbone, i, name), name).status_code == 201
    rng = random.Random(1)
    images = [png(tuple(rng.randrange(256) for _ in range(3))) for _ in range(30)]  # type: ignore[arg-type]
    images.append(b"no image")
    asked = [
        (rng.choice(names), [rng.choice(images) for _ in range(rng.randrange(1, 4))])
        for _ in range(150)
    ]

    def ask(question: tuple[str, list[bytes]]) -> dict[str, Any]:
        name, sent = question
        response = client.post(f"/v1/prompts/{name}/classify?top_k=9", files=files(*sent))
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    one_by_one = [ask(question) for question in asked]
    before = metric(client, "sharpzo_batch_images_count")
    with ThreadPoolExecutor(16) as pool:
        with occupied(services):  # so that the first of them surely meet in one batch
            answers = [pool.submit(ask, question) for question in asked]
            eventually(lambda: metric(client, "sharpzo_images_waiting") >= 10)
        together = [answer.result() for answer in answers]
    batches = metric(client, "sharpzo_batch_images_count") - before
    assert batches < sum(len(sent) for _, sent in asked)
    for (name, _), found, expected in zip(asked, together, one_by_one, strict=True):
        assert (found["name"], found["version"]) == (name, 1)
        assert found["prompt_id"] == expected["prompt_id"]
        assert_same(found["results"], expected["results"])
        for result in found["results"]:
            assert all(p["label"].startswith(f"{name}-") for p in result.get("predictions", []))


def test_every_answer_names_the_version_it_used_while_an_alias_moves(
    client: TestClient, backbone: Backbone
) -> None:
    ids = [
        import_(client, shuffled(backbone, 3 + version, f"v{version}"), "p").json()["id"]
        for version in (1, 2)
    ]
    assert client.put("/v1/aliases/live", json={"prompt_id": ids[0]}).status_code == 200
    done = threading.Event()

    def move() -> int:
        moves = 0
        while not done.is_set():
            moves += 1
            body = {"prompt_id": ids[moves % 2]}
            assert client.put("/v1/aliases/live", json=body).status_code == 200
        return moves

    def ask(_: int) -> dict[str, Any]:
        response = client.post("/v1/prompts/p@live/classify", files=files(png(), png()))
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    with ThreadPoolExecutor(9) as pool:
        moving = pool.submit(move)
        answers = list(pool.map(ask, range(300)))
        done.set()
        assert moving.result() > 5
    assert {answer["version"] for answer in answers} == {1, 2}
    for answer in answers:
        assert answer["prompt_id"] == ids[answer["version"] - 1]
        for result in answer["results"]:
            labels = [prediction["label"] for prediction in result["predictions"]]
            assert all(label.startswith(f"v{answer['version']}-") for label in labels)


def test_a_pinned_prompt_is_in_memory_from_the_start(
    make_client: MakeClient, settings: Settings, backbone: Backbone
) -> None:
    client = make_client(settings)
    for name in ("kept", "other"):
        import_(client, artifact_of(backbone), name)
    before = client.get("/v1/prompts/kept").json()
    assert (before["pinned"], before["residency"]) == (
        False,
        {"resident": False, "used_at": None},
    )
    pinned = client.put("/v1/prompts/kept/pin").json()
    assert pinned["pinned"]
    assert pinned["residency"]["resident"]
    assert metric(client, "sharpzo_prompts_pinned") == 1
    again = client.put("/v1/prompts/kept/pin").json()
    assert again["residency"] == pinned["residency"]  # keeping is no use
    assert metric(client, "sharpzo_prompt_lookups_total", found="yes") == 0

    restarted = make_client(settings)
    eventually(lambda: metric(restarted, "sharpzo_prompts_resident") == 1)
    assert restarted.get("/v1/prompts/kept").json()["residency"]["resident"]
    assert not restarted.get("/v1/prompts/other").json()["residency"]["resident"]
    assert not restarted.delete("/v1/prompts/kept/pin").json()["pinned"]
    assert metric(restarted, "sharpzo_prompts_pinned") == 0


def test_a_pinned_prompt_that_cannot_be_loaded_keeps_nothing_else_away(
    make_client: MakeClient, settings: Settings, backbone: Backbone
) -> None:
    client = make_client(settings)
    services: Services = client.app.state.services  # type: ignore[attr-defined]
    damaged = import_(client, artifact_of(backbone), "damaged").json()
    import_(client, artifact_of(backbone), "sound")
    services.artifacts.put_bytes(f"prompts/{damaged['id']}.safetensors", b"nonsense")
    for name, resident in (("damaged", False), ("sound", True)):
        pinned = client.put(f"/v1/prompts/{name}/pin").json()
        assert (pinned["pinned"], pinned["residency"]["resident"]) == (True, resident)


def test_a_request_past_its_deadline_is_504_and_its_images_are_skipped(
    client: TestClient, backbone: Backbone, services: Services
) -> None:
    import_(client, artifact_of(backbone))
    client.post(URL, files=files(png()))  # loads what the first one must
    encoded = metric(client, "sharpzo_batch_images_sum")
    with occupied(services):
        late = client.post(URL, files=files(png(), png()), headers={"X-Timeout-Ms": "200"})
    assert_problem(late, 504, "deadline_exceeded")
    assert client.post(URL, files=files(png())).status_code == 200
    assert metric(client, "sharpzo_dropped_images_total", reason="expired") == 2
    assert metric(client, "sharpzo_batch_images_sum") - encoded == 1
    assert metric(client, "sharpzo_images_waiting") == 0


@pytest.mark.parametrize("value", ["0", "-1", "nan", "soon", "1e9"])
def test_a_deadline_must_be_one(client: TestClient, value: str) -> None:
    response = client.post(URL, files=files(png()), headers={"X-Timeout-Ms": value})
    body = assert_problem(response, 422, "validation_error")
    assert "x-timeout-ms" in body["errors"][0]["pointer"].lower()


def test_a_full_queue_refuses_with_a_time_to_come_back(
    make_client: MakeClient, settings: Settings, backbone: Backbone
) -> None:
    client = make_client(settings.model_copy(update={"inference_queue": 64}))
    services: Services = client.app.state.services  # type: ignore[attr-defined]
    import_(client, artifact_of(backbone))
    client.post(URL, files=files(png()))
    with ThreadPoolExecutor(1) as pool, occupied(services) as release:
        first = pool.submit(client.post, URL, files=files(*[png()] * 64))
        eventually(lambda: metric(client, "sharpzo_images_waiting") == 64)
        refused = client.post(URL, files=files(png()))
        body = assert_problem(refused, 429, "busy")
        assert int(refused.headers["retry-after"]) >= 1
        assert "try again" in body["detail"]
        release()
        assert first.result().status_code == 200
    assert metric(client, "sharpzo_refused_images_total") == 1
    assert client.post(URL, files=files(png())).status_code == 200


def test_images_of_a_client_that_left_are_not_encoded(
    settings: Settings, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    free, begun = threading.Event(), threading.Event()
    free.set()
    encode = Backbone.encode_images

    def when_free(self: Backbone, batch: Floats) -> Floats:
        begun.set()
        free.wait(20)
        return encode(self, batch)

    monkeypatch.setattr(Backbone, "encode_images", when_free)
    with server_thread(settings) as url, httpx.Client(base_url=url, timeout=20) as client:
        import_(client, artifact_of(backbone))  # type: ignore[arg-type]
        client.post(URL, files=files(png()))
        encoded = metric(client, "sharpzo_batch_images_sum")
        free.clear()
        begun.clear()
        with ThreadPoolExecutor(1) as pool:
            holding = pool.submit(client.post, URL, files=files(png()))
            assert begun.wait(10)
            leave_early(url, client.build_request("POST", URL, files=files(png(), png())))
            left = {"route": "/v1/prompts/{ref}/classify", "status": "499"}
            eventually(lambda: metric(client, "sharpzo_http_requests_total", **left) == 1)
            assert metric(client, "sharpzo_images_waiting") == 1
            free.set()
            assert holding.result().status_code == 200
        assert client.post(URL, files=files(png())).status_code == 200
        assert metric(client, "sharpzo_dropped_images_total", reason="gone") == 2
        assert metric(client, "sharpzo_batch_images_sum") - encoded == 2


def leave_early(url: str, request: Any) -> None:
    """Send a whole request and close the connection once it has been read."""
    host, port = url.removeprefix("http://").split(":")
    fields = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"POST {URL} HTTP/1.1\r\n{fields}\r\n".encode() + request.read())
        time.sleep(0.3)


def test_an_image_that_breaks_its_batch_breaks_no_other(
    client: TestClient, backbone: Backbone, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_(client, artifact_of(backbone))
    client.post(URL, files=files(png()))
    encode = Backbone.encode_images
    poison = backbone.preprocess(to_image(png(COLORS["green"])))

    def fragile(self: Backbone, batch: Floats) -> Floats:
        if any(np.array_equal(pixels, poison) for pixels in batch):
            raise RuntimeError("out of memory")
        return encode(self, batch)

    monkeypatch.setattr(Backbone, "encode_images", fragile)
    with ThreadPoolExecutor(8) as pool:
        with occupied(services):
            colors = ["red", "blue", "green", "red", "blue", "red", "blue", "blue"]
            answers = [pool.submit(client.post, URL, files=files(png(COLORS[c]))) for c in colors]
            eventually(lambda: len(services.inference._encoder._queue) == len(colors))
        for color, answer in zip(colors, answers, strict=True):
            response = answer.result()
            if color == "green":
                assert_problem(response, 500, "internal_error")
            else:
                assert response.json()["results"][0]["predictions"][0]["label"] == color


def to_image(data: bytes) -> Any:
    from sharpzo_engine.data.images import decode_image

    return decode_image(data)


def test_a_cold_prompt_is_read_once_however_many_ask(
    client: TestClient, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_(client, artifact_of(backbone))
    read = ArtifactStore.get_bytes
    reads: list[str] = []

    def slow(self: ArtifactStore, key: str) -> bytes:
        reads.append(key)
        time.sleep(0.3)
        return read(self, key)

    monkeypatch.setattr(ArtifactStore, "get_bytes", slow)
    with ThreadPoolExecutor(8) as pool:
        statuses = list(
            pool.map(lambda _: client.post(URL, files=files(png())).status_code, range(8))
        )
    assert statuses == [200] * 8
    assert len(reads) == 1


def test_counters_of_prompts_are_bounded(
    client: TestClient, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_module, "MAX_PROMPT_LABELS", 2)
    for name in "abcd":
        import_(client, artifact_of(backbone), name)
        client.post(f"/v1/prompts/{name}/classify", files=files(png(), b"broken"))
    name = "sharpzo_classified_images_total"
    found = set(
        re.findall(rf'{name}{{outcome="ok",prompt="([^"]+)"}}', client.get("/metrics").text)
    )
    assert found == {"a:1", "b:1", metrics_module.OTHER_PROMPTS}
    assert metric(client, name, outcome="ok", prompt="other") == 2
    assert metric(client, name, outcome="error") == 4


def test_without_options_a_request_gets_what_their_defaults_give(
    client: TestClient, backbone: Backbone
) -> None:
    import_(client, artifact_of(backbone))
    forms = {URL: {}, "/v1/classify": {"prompts": "colors"}}
    for url, data in forms.items():
        plain = client.post(url, files=files(png()), data=data)
        given = client.post(
            f"{url}?top_k=5&calibrated=false&zero_shot=false", files=files(png()), data=data
        )
        timed = client.post(url, files=files(png()), data=data, headers={"X-Timeout-Ms": "60000"})
        assert plain.json() == given.json() == timed.json()
        assert plain.headers["content-type"] == given.headers["content-type"]


def test_a_prompt_that_another_process_deletes_is_gone_at_once(
    make_client: MakeClient, settings: Settings, backbone: Backbone
) -> None:
    client, other = make_client(settings), make_client(settings)
    import_(client, artifact_of(backbone))
    for _ in range(3):
        assert client.post(URL, files=files(png())).status_code == 200
    assert other.delete("/v1/prompts/colors").status_code == 204
    assert_problem(client.post(URL, files=files(png())), 404, "not_found")
    import_(other, artifact_of(backbone))
    assert client.post(URL, files=files(png())).json()["version"] == 2


def test_stages_and_residency_are_measured(client: TestClient, backbone: Backbone) -> None:
    import_(client, artifact_of(backbone))
    for _ in range(3):
        client.post(URL, files=files(png(), png()))
    for stage, count in {"decode": 6, "queue": 6, "total": 3}.items():
        assert metric(client, f"sharpzo_inference_{stage}_seconds_count") == count
    batches = metric(client, "sharpzo_batch_images_count")
    assert metric(client, "sharpzo_inference_encode_seconds_count") == batches
    assert metric(client, "sharpzo_prompts_resident") == 1
    assert metric(client, "sharpzo_prompt_bytes_resident") > 0
    assert metric(client, "sharpzo_prompt_lookups_total", found="no") == 1
    assert metric(client, "sharpzo_prompt_lookups_total", found="yes") == 2


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_smaller_precision_answers_nearly_the_same(
    make_client: MakeClient, settings: Settings, backbone: Backbone, precision: str
) -> None:
    client = make_client(settings.model_copy(update={"inference_precision": precision}))
    import_(client, artifact_of(backbone))
    images = [png(color) for color in COLORS.values()]
    answer = client.post(URL, files=files(*images)).json()
    exact = PromptClassifier(TunedPrompt.load(artifact_of(backbone)), backbone).predict(images)
    for result, predictions in zip(answer["results"], exact, strict=True):
        assert result["predictions"][0]["label"] == predictions[0].label
        assert scores(result) == pytest.approx({p.label: p.score for p in predictions}, abs=0.3)
    (shown,) = [item for item in client.get("/v1/backbones").json()["data"] if item["loaded"]]
    assert shown["precision"] == precision
    assert 0.8 < shown["agreement"] <= 1


def test_large_pictures_are_decoded_one_at_a_time_and_others_meanwhile(
    make_client: MakeClient, settings: Settings, backbone: Backbone
) -> None:
    small, large = png(COLORS["red"], 16), png(COLORS["blue"], 200)
    limits = {"max_image_pixels": 4 * 100 * 100, "decode_threads": 3}
    client = make_client(settings.model_copy(update=limits))
    assert import_(client, artifact_of(backbone)).status_code == 201
    held: threading.Lock = client.app.state.services.inference._encoder._large  # type: ignore[attr-defined]
    with held, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.post, URL, files=files(large))
        for _ in range(3):
            assert client.post(URL, files=files(small)).status_code == 200
        assert not waiting.done()
        held.release()
        best = [
            result["predictions"][0]["label"] for result in waiting.result(20).json()["results"]
        ]
        held.acquire()
    assert best == ["blue"]
    assert not held.locked()
