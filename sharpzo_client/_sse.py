"""Server-sent events, without input or output: bytes in, messages out."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

from pydantic import ValidationError

from sharpzo_client._constants import INITIAL_BACKOFF, MAX_STREAM_BREAKS
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
        """Data of the messages that `chunk` completes."""
        self._buffer += chunk
        return [data for line in self._lines() if (data := self._take(line)) is not None]

    def _lines(self) -> list[bytes]:
        # A CR at the very end may be half of a CRLF: it waits for the next chunk.
        held = b"\r" if self._buffer.endswith(b"\r") else b""
        whole = self._buffer[: len(self._buffer) - len(held)]
        *lines, rest = _LINE_END.split(whole)
        self._buffer = rest + held
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
    """Keeps a stream of job events in order across connections: no gap, no repeat, one end."""

    def __init__(self, after: int) -> None:
        self.last = after
        self.ended = False
        self.pause = 0.0  # seconds before the next connection
        self._breaks = 0
        self._last_ends_job = False
        self._job_over = False  # known before the present connection was made
        self._decoder = SseDecoder()

    def opened(self) -> None:
        """A new connection: the half message of the one before is void."""
        self._decoder = SseDecoder()

    def feed(self, chunk: bytes) -> list[JobEvent]:
        """New events that `chunk` completes."""
        events = [_event(data) for data in self._decoder.feed(chunk)]
        return [event for event in events if self._is_new(event)]

    def closed(self) -> None:
        """The service ended the stream: nothing follows if the last event was a job's last.

        An event that ended the job may stand in the middle too, if the job was resumed later.
        """
        self.ended = self._last_ends_job

    def looked(self, job: Job) -> None:
        """The service ended the stream without an end, and `job` is how the job is now.

        What happened before the job was over can only be missing if it was not over yet when the
        stream was opened; then one more look is due.
        """
        self.ended = self.ended or self._job_over
        self._job_over = job.is_terminal
        self.pause = 0.0 if job.is_terminal else INITIAL_BACKOFF

    def broke(self, error: SharpzoError) -> None:
        """A connection failed.

        Raises:
            SharpzoError: `error` itself, if another connection will not fix it.
        """
        self._breaks += 1
        if self._breaks > MAX_STREAM_BREAKS or not may_retry(error, Retry.ALWAYS):
            raise error
        asked = error.retry_after if isinstance(error, APIStatusError) else None
        self.pause = backoff(self._breaks) if asked is None else asked

    def _is_new(self, event: JobEvent) -> bool:
        if event.seq <= self.last:
            return False
        self.last = event.seq
        self._last_ends_job = ends_job(event)
        self._breaks = 0
        return True


def ends_job(event: JobEvent) -> bool:
    """Whether this is the last event of its job."""
    return event.type.rpartition(".")[2] in TERMINAL_STATUSES


def _event(data: str) -> JobEvent:
    try:
        return JobEvent.read(json.loads(data))
    except (ValueError, ValidationError) as error:
        raise APIResponseError("the event stream holds something that is not an event") from error
