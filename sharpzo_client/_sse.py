"""Server-sent events: bytes in, messages out, no input or output of its own."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

from pydantic import ValidationError

from sharpzo_client._constants import INITIAL_BACKOFF, MAX_STREAM_FAILURES
from sharpzo_client._operation import Retry
from sharpzo_client._retry import backoff, may_retry
from sharpzo_client.errors import APIResponseError, APIStatusError, SharpzoError
from sharpzo_client.models import TERMINAL_STATUSES, Job, JobEvent

_LINE_END = re.compile(rb"\r\n|\n|\r")


@dataclass
class SseDecoder:
    """Splits a byte stream into the data of its messages (WHATWG, section 9.2.6)."""

    _buffer: bytes = b""
    _data: list[str] = field(default_factory=list)

    def feed(self, chunk: bytes) -> list[str]:
        """Return the data of the messages that `chunk` completes."""
        self._buffer += chunk
        return [data for line in self._lines() if (data := self._take(line)) is not None]

    def _lines(self) -> list[bytes]:
        # A CR at the very end may be half of a CRLF: keep it for the next chunk.
        trailing = b"\r" if self._buffer.endswith(b"\r") else b""
        complete = self._buffer[: len(self._buffer) - len(trailing)]
        *lines, rest = _LINE_END.split(complete)
        self._buffer = rest + trailing
        return lines

    def _take(self, line: bytes) -> str | None:
        if not line:
            data, self._data = self._data, []
            return "\n".join(data) if data else None
        name, _, value = line.decode("utf-8", errors="replace").partition(":")
        if name == "data":  # comments have no name; id and type are inside our data as well
            self._data.append(value.removeprefix(" "))
        return None


class EventLog:
    """Keeps a stream of job events in order across connections: no gaps, no repeats, one end."""

    def __init__(self, after: int) -> None:
        self.last = after
        self.ended = False
        self.pause = 0.0  # seconds before the next connection
        self._failures = 0
        self._last_ends_job = False
        self._job_over = False  # known before the current connection was opened
        self._decoder = SseDecoder()

    def connected(self) -> None:
        """Start on a new connection: drop the incomplete message of the previous one."""
        self._decoder = SseDecoder()

    def feed(self, chunk: bytes) -> list[JobEvent]:
        """Return the new events that `chunk` completes."""
        events = [_event(data) for data in self._decoder.feed(chunk)]
        return [event for event in events if self._is_new(event)]

    def stream_ended(self) -> None:
        """Note that the service ended the stream; it is complete if its last event ended the job.

        Such an event can also be in the middle, if the job was resumed later.
        """
        self.ended = self._last_ends_job

    def job_seen(self, job: Job) -> None:
        """Take the state of the job after a stream that ended early.

        If the job was already over before that stream was opened, no event is missing. Otherwise
        the last ones may be, and one more connection is needed.
        """
        self.ended = self.ended or self._job_over
        self._job_over = job.is_terminal
        self.pause = 0.0 if job.is_terminal else INITIAL_BACKOFF

    def connection_failed(self, error: SharpzoError) -> None:
        """Set the pause before the next connection.

        Raises:
            SharpzoError: `error` itself, if another connection would not help.
        """
        self._failures += 1
        if self._failures > MAX_STREAM_FAILURES or not may_retry(error, Retry.ALWAYS):
            raise error
        retry_after = error.retry_after if isinstance(error, APIStatusError) else None
        self.pause = backoff(self._failures) if retry_after is None else retry_after

    def _is_new(self, event: JobEvent) -> bool:
        if event.seq <= self.last:
            return False
        self.last = event.seq
        self._last_ends_job = ends_job(event)
        self._failures = 0
        return True


def ends_job(event: JobEvent) -> bool:
    """Whether this is the last event of its job."""
    return event.type.rpartition(".")[2] in TERMINAL_STATUSES


def _event(data: str) -> JobEvent:
    try:
        return JobEvent.read(json.loads(data))
    except (ValueError, ValidationError) as error:
        raise APIResponseError(
            "the event stream contains something that is not an event"
        ) from error
