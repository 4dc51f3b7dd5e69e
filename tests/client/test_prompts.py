from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from sharpzo_client import DeadlineExceededError, DownloadError, InputError

if TYPE_CHECKING:
    from io import BytesIO
    from pathlib import Path

CONTENT = b"safetensors" * 50
PROMPT = {
    "id": "prm_1",
    "name": "clothes",
    "version": 3,
    "backbone": {"name": "tiny", "pretrained": None, "fingerprint": "f" * 64},
    "classes": ["hat", "shoe"],
    "metrics": {"zero_shot_accuracy": 0.25, "test_accuracy": 0.9},
    "sha256": hashlib.sha256(CONTENT).hexdigest(),
}


class Registry:
    def __init__(self, content: bytes = CONTENT) -> None:
        self.content = content
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        if request.url.path.endswith("/download"):
            return httpx.Response(200, content=self.content)
        if request.url.path.endswith("/export"):
            checksum = {"x-checksum-sha256": hashlib.sha256(CONTENT).hexdigest()}
            return httpx.Response(200, content=self.content, headers=checksum)
        if request.url.path.endswith("/classify"):
            good = {"predictions": [{"label": "hat", "index": 0, "score": 0.75}]}
            bad = {"error": {"code": "image_undecodable", "message": "not an image"}}
            return httpx.Response(
                200, json={"prompt_id": "prm_1", "version": 3, "results": [good, bad]}
            )
        return httpx.Response(200, json=PROMPT)


def test_download_is_whole_and_leaves_nothing_else(harness: Any, tmp_path: Path) -> None:
    registry = Registry()
    client = harness.client(registry)
    path = harness.run(lambda: client.prompts.download("clothes", tmp_path / "p.safetensors"))
    assert path.read_bytes() == CONTENT
    assert [file.name for file in tmp_path.iterdir()] == ["p.safetensors"]
    assert registry.requests[-1].url.path == "/v1/prompts/prm_1/download"


def test_an_export_is_whole_and_leaves_nothing_else(harness: Any, tmp_path: Path) -> None:
    registry = Registry()
    client = harness.client(registry)
    path = harness.run(lambda: client.prompts.export("clothes", tmp_path / "p.npy"))
    assert path.read_bytes() == CONTENT
    assert [file.name for file in tmp_path.iterdir()] == ["p.npy"]
    assert registry.requests[-1].url.path == "/v1/prompts/clothes/export"
    assert dict(registry.requests[-1].url.params) == {"format": "npy", "calibrated": "false"}
    harness.run(lambda: client.prompts.export("c", tmp_path / "p", "onnx", calibrated=True))
    assert dict(registry.requests[-1].url.params) == {"format": "onnx", "calibrated": "true"}


def test_a_damaged_export_leaves_the_old_file(harness: Any, tmp_path: Path) -> None:
    target = tmp_path / "p.onnx"
    target.write_text("old")
    client = harness.client(Registry(CONTENT[:-1]))
    with pytest.raises(DownloadError):
        harness.run(lambda: client.prompts.export("prm_1", target, "onnx"))
    assert target.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["p.onnx"]


def test_a_damaged_download_leaves_the_old_file(harness: Any, tmp_path: Path) -> None:
    target = tmp_path / "p.safetensors"
    target.write_text("old")
    client = harness.client(Registry(CONTENT[:-1]))
    with pytest.raises(DownloadError):
        harness.run(lambda: client.prompts.download("prm_1", target))
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]


def test_a_place_that_cannot_be_written_is_named(harness: Any, tmp_path: Path) -> None:
    client = harness.client(Registry())
    with pytest.raises(InputError, match="nowhere"):
        harness.run(lambda: client.prompts.download("prm_1", tmp_path / "nowhere" / "p"))


class Picture:
    """As Pillow's images, as far as the SDK cares."""

    def save(self, fp: BytesIO, format: str) -> None:  # noqa: A002
        fp.write(b"picture as " + format.encode())


def test_images_may_be_paths_bytes_or_pictures(harness: Any, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"path's bytes")
    registry = Registry()
    client = harness.client(registry)
    images = [tmp_path / "a.jpg", str(tmp_path / "a.jpg"), b"plain bytes", Picture()]
    answer = harness.run(lambda: client.prompts.classify("clothes:3", images, top_k=1))
    request = registry.requests[-1]
    assert request.url.path == "/v1/prompts/clothes:3/classify"
    assert request.url.params["top_k"] == "1"
    body = request.content
    assert body.count(b'name="images"') == 4
    assert body.count(b'filename="a.jpg"') == 2
    assert b"plain bytes" in body
    assert b"picture as PNG" in body
    assert answer.results[0].best.label == "hat"
    assert (answer.results[1].best, answer.results[1].error.code) == (None, "image_undecodable")


def test_an_image_that_is_not_there_is_named(harness: Any, tmp_path: Path) -> None:
    client = harness.client(Registry())
    with pytest.raises(InputError, match=r"gone\.jpg"):
        harness.run(lambda: client.prompts.classify("prm_1", [tmp_path / "gone.jpg"]))
    with pytest.raises(TypeError, match="int"):
        harness.run(lambda: client.prompts.classify("prm_1", [3]))


def test_a_prompt_file_can_be_imported(harness: Any, tmp_path: Path) -> None:
    (tmp_path / "p.safetensors").write_bytes(CONTENT)
    registry = Registry()
    client = harness.client(registry)
    prompt = harness.run(lambda: client.prompts.upload(tmp_path / "p.safetensors", "clothes"))
    assert prompt.backbone.name == "tiny"
    assert CONTENT in registry.requests[-1].content
    assert "idempotency-key" in registry.requests[-1].headers


def test_backbones_and_health(harness: Any) -> None:
    answers = {
        "/v1/backbones": {"data": [{"name": "tiny", "loaded": True}]},
        "/livez": {"status": "ok"},
        "/readyz": {"status": "ok", "checks": {"database": "ok"}},
    }
    client = harness.client(lambda request: httpx.Response(200, json=answers[request.url.path]))
    assert harness.run(client.backbones.list)[0].name == "tiny"
    assert harness.run(client.health.livez).status == "ok"
    assert harness.run(client.health.readyz).checks == {"database": "ok"}


def test_clients_are_context_managers(harness: Any) -> None:
    client = harness.client(Registry())

    async def use() -> str:
        async with client as opened:
            return str((await opened.prompts.get("clothes")).id)

    if harness.asynchronous:
        assert harness.run(use) == "prm_1"
    else:
        with client as opened:
            assert opened.prompts.get("clothes").id == "prm_1"


def test_many_images_go_in_several_requests_to_one_version(
    harness: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        sent = [bytes(word) for word in request.read().split() if word.startswith(b"picture-")]
        paths.append((request.url.path, len(sent)))
        results = [
            {"predictions": [{"label": word.decode(), "index": 0, "score": 1}]} for word in sent
        ]
        return httpx.Response(200, json={"prompt_id": "prm_1", "version": 3, "results": results})

    paths: list[tuple[str, int]] = []
    client = harness.client(answer)
    images = [b" picture-%d " % index for index in range(130)]
    found = harness.run(lambda: client.prompts.classify("clothes", images))
    assert [result.best.label for result in found.results] == [
        f"picture-{index}" for index in range(130)
    ]
    one, other = "/v1/prompts/clothes/classify", "/v1/prompts/prm_1/classify"
    assert paths == [(one, 64), (other, 64), (other, 2)]
    monkeypatch.setattr("sharpzo_client._operations.classify.MAX_BATCH_BYTES", 20)
    paths.clear()
    harness.run(lambda: client.prompts.classify("clothes", images[:5]))
    assert [count for _, count in paths] == [2, 2, 1]


def test_no_images_are_not_sent(harness: Any) -> None:
    registry = Registry()
    client = harness.client(registry)
    with pytest.raises(InputError, match="no images"):
        harness.run(lambda: client.prompts.classify("clothes", []))
    assert registry.requests == []


def test_what_is_asked_of_a_prompt_is_sent(harness: Any) -> None:
    registry = Registry()
    client = harness.client(registry)
    harness.run(lambda: client.prompts.classify("clothes", [b"x"]))
    plain = registry.requests[-1]
    assert dict(plain.url.params) == {"top_k": "5"}
    assert "x-timeout-ms" not in plain.headers
    harness.run(
        lambda: client.prompts.classify(
            "clothes", [b"x"], top_k=2, calibrated=True, zero_shot=True, deadline=1.5
        )
    )
    asked = registry.requests[-1]
    assert dict(asked.url.params) == {"top_k": "2", "calibrated": "true", "zero_shot": "true"}
    assert asked.headers["x-timeout-ms"] == "1500"


@pytest.mark.parametrize(("code", "calls"), [("deadline_exceeded", 1), (None, 4)])
def test_a_passed_deadline_is_not_tried_again_and_a_gateways_504_is(
    harness: Any, code: str | None, calls: int
) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        request.read()
        seen.append(request.url.path)
        return httpx.Response(504, json={"status": 504, "code": code} if code else {})

    seen: list[str] = []
    client = harness.client(answer)
    with pytest.raises(DeadlineExceededError):
        harness.run(lambda: client.prompts.classify("clothes", [b"x"], deadline=0.1))
    assert len(seen) == calls


def test_several_prompts_keep_their_versions_over_many_requests(harness: Any) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        body = request.read()
        (refs,) = re.findall(rb'name="prompts"\r\n\r\n(.*?)\r\n', body)
        count = body.count(b'name="images"')
        sent.append((refs.decode(), count))
        answers = []
        for ref in refs.decode().split(","):
            if ref == "gone":
                answers.append({"ref": ref, "error": {"code": "not_found", "message": "no"}})
                continue
            name = "b" if ref in ("b:2", "prm_b") else "a"
            results = [{"predictions": [{"label": name, "index": 0, "score": 1}]}] * count
            answers.append(
                {"ref": ref, "prompt_id": f"prm_{name}", "version": 2, "results": results}
            )
        return httpx.Response(200, json={"answers": answers})

    sent: list[tuple[str, int]] = []
    client = harness.client(answer)
    images = [b"%d" % index for index in range(70)]
    found = harness.run(lambda: client.classify(images, ["a", "gone", "b:2"]))
    assert sent == [("a,gone,b:2", 64), ("prm_a,gone,prm_b", 6)]
    assert [(one.ref, len(one.results)) for one in found] == [("a", 70), ("gone", 0), ("b:2", 70)]
    assert [one.error.code if one.error else None for one in found] == [None, "not_found", None]
    for nothing in (lambda: client.classify([], ["a"]), lambda: client.classify(images, [])):
        with pytest.raises(InputError, match="there are no"):
            harness.run(nothing)
