from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from sharpzo_client import (
    APIResponseError,
    InputError,
    Job,
    JobCancelled,
    JobEvent,
    JobFailed,
    NotFoundError,
    WaitTimeoutError,
)


def _job(status: str = "running", **more: Any) -> dict[str, Any]:
    return {"id": "job_1", "status": status, **more}


def _body(request: httpx.Request) -> Any:
    return json.loads(request.read())


class Service:
    """A job that goes through the given states, one per look, and gains an event with each."""

    def __init__(self, *jobs: dict[str, Any], page: int = 100) -> None:
        self.jobs = list(jobs)
        self.events: list[dict[str, Any]] = []
        self.page = page

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/events"):
            return self._events(int(request.url.params["after"]))
        job = self.jobs.pop(0) if len(self.jobs) > 1 else self.jobs[0]
        for _ in range(3):
            self.events.append({"seq": len(self.events) + 1, "type": job["status"]})
        return httpx.Response(200, json=job)

    def _events(self, after: int) -> httpx.Response:
        rest = self.events[after:]
        page, more = rest[: self.page], len(rest) > self.page
        following = page[-1]["seq"] if page else None
        return httpx.Response(200, json={"data": page, "has_more": more, "next": following})


def test_create_sends_what_was_given_and_no_more(harness: Any) -> None:
    bodies: list[Any] = []

    def handler(request: httpx.Request) -> httpx.Response:
        bodies.append(_body(request))
        assert request.headers["authorization"] == "Bearer secret"
        return httpx.Response(201, json=_job("queued"), headers={"x-request-id": "req_9"})

    client = harness.client(handler, api_key="secret")
    job = harness.run(lambda: client.jobs.create("ds_1", config={"shots": 4}, preset="fast"))
    assert bodies == [{"dataset_id": "ds_1", "config": {"shots": 4}, "preset": "fast"}]
    assert isinstance(job, Job)
    assert job._request_id == "req_9"


def test_answers_are_equal_whichever_request_brought_them() -> None:
    one, same, other = (
        Job.read(_job(**more), request_id)
        for more, request_id in (({}, "req_1"), ({}, "req_2"), ({"name": "x"}, "req_3"))
    )
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert one != _job()


def test_without_a_key_nothing_is_claimed(harness: Any) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert "authorization" not in request.headers
        return httpx.Response(200, json=_job())

    harness.run(lambda: harness.client(handler).jobs.get("job_1"))


def test_answers_of_a_newer_service_are_understood(harness: Any) -> None:
    answer = _job("hibernating", colour="blue", progress={"step": 3, "mood": 1}, prompt_id=None)
    client = harness.client(lambda _: httpx.Response(200, json=answer))
    job = harness.run(lambda: client.jobs.get("job_1"))
    assert (job.status, job.colour, job.progress.step) == ("hibernating", "blue", 3)
    assert not job.is_terminal


def test_a_list_goes_over_all_pages(harness: Any) -> None:
    asked: list[str | None] = []

    def handler(request: httpx.Request) -> httpx.Response:
        after = request.url.params.get("after")
        asked.append(after)
        assert request.url.params["limit"] == "2"
        start = int(after or 0)
        data = [_job() | {"id": f"job_{index}"} for index in range(start, min(start + 2, 5))]
        return httpx.Response(
            200, json={"data": data, "has_more": start + 2 < 5, "next": str(start + 2)}
        )

    client = harness.client(handler)
    jobs = harness.run(lambda: client.jobs.list(page_size=2))
    assert [job.id for job in jobs] == [f"job_{index}" for index in range(5)]
    assert asked == [None, "2", "4"]


def test_ids_cannot_change_the_address(harness: Any) -> None:
    paths: list[bytes] = []

    def handler(request: httpx.Request) -> httpx.Response:
        paths.append(request.url.raw_path)
        return httpx.Response(200, json=_job())

    harness.run(lambda: harness.client(handler).jobs.get("a/../b?c"))
    assert paths == [b"/v1/jobs/a%2F..%2Fb%3Fc"]


def test_wait_ends_with_success_and_hands_on_each_event_once(harness: Any) -> None:
    service = Service(_job("queued"), _job(), _job(), _job("succeeded", prompt_id="prm_1"), page=2)
    client = harness.client(service)
    seen: list[JobEvent] = []
    job = harness.run(lambda: client.jobs.wait("job_1", on_event=seen.append, poll=0.2))
    assert job.prompt_id == "prm_1"
    assert [event.seq for event in seen] == list(range(1, 13))
    assert harness.slept == [0.2] * 3


@pytest.mark.parametrize(("status", "kind"), [("failed", JobFailed), ("cancelled", JobCancelled)])
def test_wait_raises_for_another_end(harness: Any, status: str, kind: type[Exception]) -> None:
    error = {"code": "too_few_images", "message": "class cat has 1 image"}
    client = harness.client(Service(_job(), _job(status, error=error)))
    with pytest.raises(kind, match="class cat has 1 image") as caught:
        harness.run(lambda: client.jobs.wait("job_1"))
    assert caught.value.job.error.code == "too_few_images"  # type: ignore[attr-defined]


def test_wait_can_be_bounded(harness: Any) -> None:
    client = harness.client(Service(_job()))
    with pytest.raises(WaitTimeoutError, match="still running") as caught:
        harness.run(lambda: client.jobs.wait("job_1", timeout=0))
    assert isinstance(caught.value, TimeoutError)


def test_wait_shows_progress_on_standard_error(
    harness: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    running = _job(
        phase="stage1",
        progress={"step": 3, "total_steps": 10, "forward_passes": 1200, "eta_seconds": 4.2},
        metrics={"loss": 0.5, "val_accuracy": 0.75},
    )
    client = harness.client(Service(_job("queued"), running, running | {"status": "succeeded"}))
    harness.run(lambda: client.jobs.wait("job_1", progress=True))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "succeeded" in shown.err
    assert "val 75.0%" in shown.err
    assert "1,200 passes" in shown.err


def test_an_error_inside_a_callback_ends_the_wait(harness: Any) -> None:
    def complain(_: JobEvent) -> None:
        raise KeyError("mine")

    client = harness.client(Service(_job("queued"), _job("succeeded")))
    with pytest.raises(KeyError, match="mine"):
        harness.run(lambda: client.jobs.wait("job_1", on_event=complain, progress=True))


def test_metrics_are_step_records(harness: Any) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert dict(request.url.params) == {"from_step": "0", "resolution": "10"}
        return httpx.Response(200, json={"data": [{"step": 1, "loss": 0.5, "new": True}]})

    client = harness.client(handler)
    (record,) = harness.run(lambda: client.jobs.metrics("job_1", from_step=0, resolution=10))
    assert (record.step, record.loss) == (1, 0.5)


def test_delete_reads_no_body(harness: Any) -> None:
    client = harness.client(lambda _: httpx.Response(204))
    assert harness.run(lambda: client.jobs.delete("job_1")) is None


def _report(request: httpx.Request) -> httpx.Response:
    assert request.url.path == "/v1/jobs/job_1/report"
    if request.headers["accept"] == "application/json":
        return httpx.Response(200, json={"headline": {"tuned_accuracy": 0.9}})
    assert request.headers["accept"] == "text/html"
    return httpx.Response(200, text="<!doctype html>")


def test_a_report_comes_as_numbers_or_as_a_page(harness: Any, tmp_path: Path) -> None:
    client = harness.client(_report)
    report = harness.run(lambda: client.jobs.report("job_1"))
    assert report["headline"]["tuned_accuracy"] == 0.9
    path = harness.run(lambda: client.jobs.download_report("job_1", tmp_path / "r.html"))
    assert path == tmp_path / "r.html"
    assert path.read_text() == "<!doctype html>"
    with pytest.raises(InputError, match="nowhere"):
        harness.run(lambda: client.jobs.download_report("job_1", tmp_path / "nowhere" / "r"))


def test_a_report_that_is_not_there_leaves_the_old_file(harness: Any, tmp_path: Path) -> None:
    (tmp_path / "r.html").write_text("old")
    problem = {"code": "report_not_available", "detail": "the job is running", "status": 404}
    client = harness.client(lambda _: httpx.Response(404, json=problem))
    with pytest.raises(NotFoundError, match="running") as caught:
        harness.run(lambda: client.jobs.download_report("job_1", tmp_path / "r.html"))
    assert caught.value.code == "report_not_available"
    assert (tmp_path / "r.html").read_text() == "old"


def test_a_report_that_is_no_object_is_refused(harness: Any) -> None:
    client = harness.client(lambda _: httpx.Response(200, json=[1]))
    with pytest.raises(APIResponseError, match="object"):
        harness.run(lambda: client.jobs.report("job_1"))
