from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from sharpzo_client import APIStatusError, ConflictError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

JOB = {"id": "job_1", "status": "queued"}
OK = httpx.Response(200, json=JOB)


class Script:
    """Answers, or errors to raise, in turn; the last one for ever."""

    def __init__(self, steps: Iterable[httpx.Response | Exception]) -> None:
        self.steps = list(steps)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        if isinstance(step, Exception):
            raise step
        return httpx.Response(step.status_code, headers=step.headers, content=step.content)


def _status(code: int, **headers: str) -> httpx.Response:
    return httpx.Response(code, headers={name.replace("_", "-"): headers[name] for name in headers})


def _get(client: Any) -> Callable[[], Any]:
    return lambda: client.jobs.get("job_1")


def _create(client: Any) -> Callable[[], Any]:
    return lambda: client.jobs.create("ds_1")


PASSING = [
    httpx.ConnectError("refused"),
    httpx.ReadError("reset"),
    httpx.ReadTimeout("slow"),
    httpx.RemoteProtocolError("closed"),
    *(_status(code) for code in (408, 429, 500, 502, 503, 504)),
]


@pytest.mark.parametrize("failure", PASSING, ids=str)
def test_reads_are_repeated(harness: Any, failure: Any) -> None:
    script = Script([failure, OK])
    assert harness.run(_get(harness.client(script))).id == "job_1"
    assert len(script.requests) == 2


@pytest.mark.parametrize("code", [400, 401, 403, 404, 405, 409, 413, 415, 422, 507])
def test_refusals_are_final(harness: Any, code: int) -> None:
    script = Script([_status(code)])
    with pytest.raises(APIStatusError):
        harness.run(_get(harness.client(script)))
    assert len(script.requests) == 1


@pytest.mark.parametrize("failure", [*PASSING, httpx.ConnectTimeout("slow")], ids=str)
def test_a_create_is_repeated_with_its_key(harness: Any, failure: Any) -> None:
    script = Script([failure, failure, OK])
    assert harness.run(_create(harness.client(script))).id == "job_1"
    keys = {request.headers["idempotency-key"] for request in script.requests}
    assert len(script.requests) == 3
    assert len(keys) == 1


def test_each_create_has_a_key_of_its_own(harness: Any) -> None:
    script = Script([OK])
    client = harness.client(script)
    harness.run(_create(client))
    client = harness.client(script)
    harness.run(_create(client))
    harness.run(lambda: harness.client(script).jobs.create("ds_1", idempotency_key="mine"))
    keys = [request.headers["idempotency-key"] for request in script.requests]
    assert len(set(keys)) == 3
    assert keys[-1] == "mine"


def test_a_cancel_may_be_repeated(harness: Any) -> None:
    script = Script([httpx.ReadError("reset"), OK])
    harness.run(lambda: harness.client(script).jobs.cancel("job_1"))
    assert len(script.requests) == 2


def test_a_conflict_with_a_running_twin_is_waited_out(harness: Any) -> None:
    script = Script([_status(409, retry_after="1"), OK])
    harness.run(_create(harness.client(script)))
    assert harness.slept == [1.0]
    with pytest.raises(ConflictError):
        harness.run(_create(harness.client(Script([_status(409)]))))


def test_retries_end(harness: Any) -> None:
    script = Script([_status(503)])
    with pytest.raises(APIStatusError):
        harness.run(_get(harness.client(script, max_retries=5)))
    assert len(script.requests) == 6


def test_the_backoff_doubles_with_jitter_up_to_a_bound(harness: Any) -> None:
    with pytest.raises(APIStatusError):
        harness.run(_get(harness.client(Script([_status(500)]), max_retries=6)))
    floors = [0.5, 1.0, 2.0, 4.0, 8.0, 8.0]
    assert len(harness.slept) == len(floors)
    for pause, floor in zip(harness.slept, floors, strict=True):
        assert floor <= pause <= min(8.0, floor + 0.5)


def test_retry_after_is_honoured(harness: Any) -> None:
    script = Script([_status(429, retry_after="3"), _status(503, retry_after="0.25"), OK])
    harness.run(_get(harness.client(script)))
    assert harness.slept == [3.0, 0.25]


def test_retry_after_may_be_a_date(harness: Any) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    harness.run(_get(harness.client(Script([_status(429, retry_after=date), OK]))))
    assert 25 <= harness.slept[0] <= 30


def test_a_wrong_retry_after_is_ignored(harness: Any) -> None:
    harness.run(_get(harness.client(Script([_status(429, retry_after="soon"), OK]))))
    assert 0.5 <= harness.slept[0] <= 1.0


def test_a_service_that_asks_for_too_long_is_not_waited_for(harness: Any) -> None:
    script = Script([_status(429, retry_after="3600"), OK])
    with pytest.raises(APIStatusError) as caught:
        harness.run(_get(harness.client(script)))
    assert caught.value.retry_after == 3600
    assert harness.slept == []


def test_health_is_asked_once(harness: Any) -> None:
    script = Script([_status(503)])
    with pytest.raises(APIStatusError):
        harness.run(harness.client(script).health.readyz)
    assert len(script.requests) == 1
