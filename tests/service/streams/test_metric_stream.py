"""A job's curves as a stream: what a page is told, and that it is never left with stale steps."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.services import Services
from service.streams.metric_stream import stream_steps
from sharpzo_core.records.jobs import JobProgress, JobStep, Lease, Phase
from sharpzo_core.stores.job_leases import JobLeases
from tests.service.conftest import assert_problem, ready_dataset
from tests.service.routes.test_jobs import claim, read_stream, submit

LIVE = {"accept": "text/event-stream"}


@pytest.fixture
def job_id(client: TestClient) -> str:
    return str(submit(client, str(ready_dataset(client)["id"]))["id"])


def save(leases: JobLeases, lease: Lease, numbers: Sequence[int]) -> None:
    """Record these steps, as a worker does."""
    steps = [JobStep(i, Phase.STAGE2, 1 / i, None, None, None, None, i, i) for i in numbers]
    leases.save_progress(lease, JobProgress(Phase.STAGE2, numbers[-1], 100, numbers[-1]), {}, steps)


def live(client: TestClient, job_id: str, resolution: int = 1000) -> Iterator[tuple[str, Any]]:
    url = f"/v1/jobs/{job_id}/metrics?resolution={resolution}"
    with client.stream("GET", url, headers=LIVE) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        for event in read_stream(response):
            yield event["event"], json.loads(event["data"])


def numbers_of(steps: Sequence[dict[str, Any]]) -> list[int]:
    return [step["step"] for step in steps]


def test_an_ended_job_is_told_at_once(client: TestClient, services: Services, job_id: str) -> None:
    leases, lease = claim(services, job_id)
    save(leases, lease, range(1, 11))
    leases.fail(lease, "x", "it broke")
    (job, told), (series, steps) = live(client, job_id, resolution=5)
    assert (job, series) == ("job", "series")
    assert told == client.get(f"/v1/jobs/{job_id}").json()
    assert steps == client.get(f"/v1/jobs/{job_id}/metrics?resolution=5").json()["data"]


def test_steps_follow_until_the_end(client: TestClient, services: Services, job_id: str) -> None:
    leases, lease = claim(services, job_id)
    save(leases, lease, range(1, 4))

    def work() -> None:
        time.sleep(0.5)
        save(leases, lease, range(4, 6))
        time.sleep(0.6)
        leases.fail(lease, "x", "it broke")

    worker = threading.Thread(target=work)
    worker.start()
    told = list(live(client, job_id))
    worker.join()
    assert [(event, numbers_of(data)) for event, data in told if event != "job"] == [
        ("series", [1, 2, 3]),
        ("steps", [4, 5]),
        ("series", [1, 2, 3, 4, 5]),
    ]
    assert [job["status"] for event, job in told if event == "job"][-1] == "failed"


def test_steps_that_were_done_again_replace_those_before(
    client: TestClient, services: Services, job_id: str
) -> None:
    leases, lease = claim(services, job_id)
    save(leases, lease, range(1, 9))

    def work() -> None:
        time.sleep(0.5)
        save(leases, lease, range(4, 6))  # from a checkpoint after step 3
        time.sleep(0.6)
        services.stopping.set()

    worker = threading.Thread(target=work)
    worker.start()
    told = [(event, numbers_of(data)) for event, data in live(client, job_id) if event != "job"]
    worker.join()
    assert told == [("series", list(range(1, 9))), ("series", [1, 2, 3, 4, 5])]


def test_a_client_never_holds_more_than_twice_what_it_asked_for(
    client: TestClient, services: Services, job_id: str
) -> None:
    leases, lease = claim(services, job_id)

    def work() -> None:
        for last in range(10, 101, 10):
            save(leases, lease, range(last - 9, last + 1))
            time.sleep(0.35)
        leases.fail(lease, "x", "it broke")

    worker = threading.Thread(target=work)
    worker.start()
    held: list[int] = []
    most = 0
    for event, data in live(client, job_id, resolution=20):
        if event != "job":
            held = numbers_of(data) if event == "series" else held + numbers_of(data)
            assert held == sorted(set(held))
            most = max(most, len(held))
    worker.join()
    assert 20 <= most <= 40
    assert held[-1] == 100


def test_a_stream_of_no_job_is_a_404(client: TestClient) -> None:
    assert_problem(client.get("/v1/jobs/job_x/metrics", headers=LIVE), 404, "not_found")


async def test_a_stream_ends_when_its_caller_may_not_see_it_any_more(
    client: TestClient, services: Services, job_id: str
) -> None:
    left = 3

    async def admitted() -> bool:
        nonlocal left
        left -= 1
        return left >= 0

    stream = stream_steps(services.jobs, job_id, 10, services.stopping, admitted)
    assert len([message async for message in stream]) == 2  # the job and its steps, once
