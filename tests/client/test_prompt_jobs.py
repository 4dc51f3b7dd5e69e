"""Jobs that apply a prompt, and their results, through both clients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from sharpzo_client import (
    APIConnectionError,
    APIResponseError,
    ConflictError,
    ImageRecord,
    InputError,
    NotFoundError,
)

RECORDS: list[dict[str, Any]] = [
    {
        "index": 0,
        "file": "a/é.png",
        "split": "test",
        "label": "cat",
        "predictions": [{"label": "cat", "index": 1, "score": 0.75}],
        "zero_shot": [{"label": "dog", "index": 0, "score": 0.5}],
    },
    {"index": 1, "file": "b.png", "error": {"code": "image_undecodable", "message": "damaged"}},
]
LINES = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS).encode()


def answering(content: bytes, pieces: int = 7, *, broken: bool = False) -> Any:
    """A service that sends a body in small pieces."""

    class Body(httpx.SyncByteStream, httpx.AsyncByteStream):
        def __iter__(self) -> Any:
            yield from (content[i : i + pieces] for i in range(0, len(content), pieces))
            if broken:
                raise httpx.ReadError("the connection is gone")

        async def __aiter__(self) -> Any:
            for piece in self:
                yield piece

    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, stream=Body())

    return handler, seen


def test_results_are_read_as_they_come(harness: Any) -> None:
    handler, seen = answering(LINES)
    client = harness.client(handler)
    first, second = harness.run(lambda: client.jobs.results("job_1"))
    assert isinstance(first, ImageRecord)
    assert (first.index, first.file, first.split, first.label) == (0, "a/é.png", "test", "cat")
    assert first.best is not None
    assert (first.best.label, first.best.score) == ("cat", 0.75)
    assert first.zero_shot[0].label == "dog"
    assert second.best is None
    assert second.error is not None
    assert (second.error.code, second.zero_shot) == ("image_undecodable", ())
    assert seen[0].url.path == "/v1/jobs/job_1/results"
    assert dict(seen[0].url.params) == {"format": "jsonl"}


@pytest.mark.parametrize("content", [LINES[:-5], b"{}\n", b"not json\n", b"\xff\n", b"[1]\n"])
def test_results_that_are_none_are_an_error(harness: Any, content: bytes) -> None:
    client = harness.client(answering(content)[0])
    with pytest.raises(APIResponseError):
        harness.run(lambda: client.jobs.results("job_1"))


def test_a_connection_that_breaks_is_an_error_and_no_end(harness: Any) -> None:
    client = harness.client(answering(LINES, broken=True)[0])
    with pytest.raises(APIConnectionError):
        harness.run(lambda: client.jobs.results("job_1"))


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_results_are_downloaded_whole(harness: Any, tmp_path: Path, form: str) -> None:
    handler, seen = answering(LINES)
    client = harness.client(handler)
    target = tmp_path / "results"
    assert harness.run(lambda: client.jobs.download_results("job_1", target, form)) == target
    assert target.read_bytes() == LINES
    assert dict(seen[0].url.params) == {"format": form}
    assert list(tmp_path.iterdir()) == [target]


def test_a_download_that_breaks_leaves_the_place_as_it_was(harness: Any, tmp_path: Path) -> None:
    client = harness.client(answering(LINES, broken=True)[0])
    target = tmp_path / "results"
    target.write_text("before")
    with pytest.raises(APIConnectionError):
        harness.run(lambda: client.jobs.download_results("job_1", target))
    assert target.read_text() == "before"
    assert list(tmp_path.iterdir()) == [target]


def test_a_place_that_is_none_is_told(harness: Any, tmp_path: Path) -> None:
    client = harness.client(answering(LINES)[0])
    with pytest.raises(InputError):
        harness.run(lambda: client.jobs.download_results("job_1", tmp_path / "no" / "folder"))


@pytest.mark.parametrize(("status", "error"), [(409, ConflictError), (404, NotFoundError)])
def test_results_that_are_not_there_yet(
    harness: Any, tmp_path: Path, status: int, error: type[Exception]
) -> None:
    problem = {"code": "state_conflict", "detail": "the job is running"}
    client = harness.client(lambda _: httpx.Response(status, json=problem))
    with pytest.raises(error, match="running"):
        harness.run(lambda: client.jobs.results("job_1"))
    with pytest.raises(error):
        harness.run(lambda: client.jobs.download_results("job_1", tmp_path / "x"))
    assert list(tmp_path.iterdir()) == []


class Accepting:
    """Accepts every job and remembers what was asked."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        job = {"id": "job_1", "kind": "evaluation", "status": "queued"}
        page = {"data": [job], "has_more": False, "next": None}
        return httpx.Response(202, json=job if request.method == "POST" else page)


def test_an_evaluation_is_submitted(harness: Any) -> None:
    service = Accepting()
    client = harness.client(service)
    job = harness.run(lambda: client.prompts.evaluate("pets:2", "ds_1", split="val"))
    assert (job.id, job.kind) == ("job_1", "evaluation")
    (request,) = service.requests
    assert request.url.path == "/v1/prompts/pets:2/evaluate"
    assert json.loads(request.read()) == {"dataset_id": "ds_1", "split": "val", "zero_shot": True}
    assert request.headers["idempotency-key"]


def test_a_batch_is_submitted(harness: Any) -> None:
    service = Accepting()
    client = harness.client(service)
    call = lambda: client.prompts.classify_dataset(  # noqa: E731 - called by the harness
        "pets", "ds_1", top_k=3, calibrated=True, metadata={"a": "b"}, idempotency_key="mine"
    )
    harness.run(call)
    (request,) = service.requests
    assert request.url.path == "/v1/prompts/pets/batch"
    assert json.loads(request.read()) == {
        "dataset_id": "ds_1",
        "top_k": 3,
        "calibrated": True,
        "zero_shot": False,
        "metadata": {"a": "b"},
    }
    assert request.headers["idempotency-key"] == "mine"


def test_jobs_are_listed_by_kind(harness: Any) -> None:
    service = Accepting()
    client = harness.client(service)
    harness.run(lambda: client.jobs.list(kind="evaluation"))
    harness.run(client.jobs.list)
    assert [request.url.params.get("kind") for request in service.requests] == ["evaluation", None]


def test_a_job_of_an_older_service_tunes(harness: Any) -> None:
    client = harness.client(lambda _: httpx.Response(200, json={"id": "job_1", "status": "queued"}))
    assert harness.run(lambda: client.jobs.get("job_1")).kind == "tuning"


@pytest.mark.parametrize("labelled", [True, False])
def test_an_upload_says_whether_it_is_labelled(
    harness: Any, tmp_path: Path, labelled: bool
) -> None:
    (tmp_path / "one.png").write_bytes(b"pixels")
    bodies: list[bytes] = []

    def handler(request: httpx.Request) -> httpx.Response:
        bodies.append(request.read())
        return httpx.Response(202, json={"id": "ds_1", "status": "ready", "labelled": labelled})

    client = harness.client(handler)
    call = lambda: client.datasets.upload(tmp_path, "mine", labelled=labelled, wait=False)  # noqa: E731
    assert harness.run(call).labelled is labelled
    assert (b'name="unlabelled"\r\n\r\ntrue' in bodies[0]) is not labelled
