from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharpzo_client import APIConnectionError, APIResponseError, NotFoundError
from sharpzo_client._sse import SseDecoder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


def _message(seq: int, kind: str = "progress") -> bytes:
    data = json.dumps({"seq": seq, "type": kind, "message": "één\u2028"}, ensure_ascii=False)
    return f"id: {seq}\nevent: {kind}\ndata: {data}\n\n".encode()


class Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """Bytes that end, or break, after the given chunks."""

    def __init__(self, chunks: list[bytes], error: Exception | None = None) -> None:
        self.chunks = chunks
        self.error = error

    def __iter__(self) -> Iterator[bytes]:
        yield from self.chunks
        if self.error:
            raise self.error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self:
            yield chunk


class Service:
    """One body per connection; looks at the job give its status."""

    def __init__(self, *bodies: Body | int | Exception, status: str = "running") -> None:
        self.bodies = list(bodies)
        self.status = status
        self.resumed: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if not request.url.path.endswith("/events"):
            return httpx.Response(200, json={"id": "job_1", "status": self.status})
        assert request.headers["accept"] == "text/event-stream"
        assert request.url.params["after"] == request.headers["last-event-id"]
        self.resumed.append(request.headers["last-event-id"])
        body = self.bodies.pop(0) if len(self.bodies) > 1 else self.bodies[0]
        if isinstance(body, Exception):
            raise body
        return httpx.Response(body) if isinstance(body, int) else httpx.Response(200, stream=body)


def _seqs(harness: Any, service: Service, after: int = 0) -> list[int]:
    client = harness.client(service)
    return [event.seq for event in harness.run(lambda: client.jobs.stream_events("job_1", after))]


def test_a_stream_ends_after_the_last_event(harness: Any) -> None:
    service = Service(Body([b": hello\n\n", _message(1), _message(2, "succeeded")]))
    assert _seqs(harness, service) == [1, 2]
    assert service.resumed == ["0"]


def test_an_end_that_was_not_the_last_does_not_end_the_stream(harness: Any) -> None:
    """A failed job may be resumed; then its first end stands in the middle of its events."""
    service = Service(
        Body([_message(1, "failed")], httpx.ReadError("reset")),
        Body([_message(2, "resumed"), _message(3, "cancelled"), _message(4, "resumed")]),
        Body([_message(5, "succeeded")]),
    )
    assert _seqs(harness, service) == [1, 2, 3, 4, 5]
    assert service.resumed == ["0", "1", "4"]


def test_a_broken_stream_goes_on_without_gap_or_repeat(harness: Any) -> None:
    half = _message(3)[:20]
    service = Service(
        Body([_message(1), _message(2), half], httpx.ReadError("reset")),
        httpx.ConnectError("restarting"),
        503,
        Body([_message(2), _message(3)]),  # repeats one, then ends early
        Body([_message(4), _message(5, "job.failed")]),
    )
    assert _seqs(harness, service) == [1, 2, 3, 4, 5]
    assert service.resumed == ["0", "2", "2", "2", "3"]


def test_a_stream_starts_where_it_is_told(harness: Any) -> None:
    service = Service(Body([_message(8, "cancelled")]))
    assert _seqs(harness, service, after=7) == [8]
    assert service.resumed == ["7"]


def test_the_stream_of_a_job_that_is_over_ends(harness: Any) -> None:
    """Nothing comes after the last event, and the words of the events are not relied upon."""
    service = Service(Body([]), status="succeeded")
    assert _seqs(harness, service, after=9) == []
    assert len(service.resumed) == 2


def test_events_of_the_very_end_are_not_missed(harness: Any) -> None:
    service = Service(
        Body([_message(1)]), Body([_message(2, "the_end")]), Body([]), status="failed"
    )
    assert _seqs(harness, service) == [1, 2]


def test_a_service_that_stays_away_ends_the_stream(harness: Any) -> None:
    service = Service(httpx.ConnectError("refused"))
    with pytest.raises(APIConnectionError):
        _seqs(harness, service)
    assert len(service.resumed) == 9
    assert harness.slept == [0.5, 1, 2, 4, 8, 8, 8, 8]


def test_an_unknown_job_is_not_asked_for_again(harness: Any) -> None:
    service = Service(404)
    with pytest.raises(NotFoundError):
        _seqs(harness, service)
    assert len(service.resumed) == 1


def test_a_stream_of_something_else_is_named(harness: Any) -> None:
    with pytest.raises(APIResponseError):
        _seqs(harness, Service(Body([b"data: hello\n\n"])))


TEXT = "".join(_message(seq).decode() for seq in range(1, 4)) + ": end\n\ndata: a\ndata:b\n\n"


@given(
    ending=st.sampled_from(["\n", "\r\n", "\r"]),
    cuts=st.lists(st.integers(0, len(TEXT)), max_size=8),
)
def test_messages_do_not_depend_on_how_the_bytes_arrive(ending: str, cuts: list[int]) -> None:
    raw = TEXT.replace("\n", ending).encode() + b": next\n"
    bounds = [0, *sorted(min(cut, len(raw)) for cut in cuts), len(raw)]
    decoder = SseDecoder()
    found = [data for start, end in pairwise(bounds) for data in decoder.feed(raw[start:end])]
    assert [json.loads(data)["seq"] for data in found[:3]] == [1, 2, 3]
    assert found[3:] == ["a\nb"]
