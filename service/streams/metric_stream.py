"""A job's curves as a stream (server-sent events), thinned here, so that a page can just draw.

`job` is the job, whenever it has changed; `series` replaces all steps that the client has; `steps`
follow them. A stream begins with `job` and `series`, so whoever lost one asks again.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from pydantic import TypeAdapter
from starlette.concurrency import run_in_threadpool

from service.streams.job_events import KEEPALIVE_SECONDS, open_stream
from sharpzo_core.records.jobs import Job, is_terminal
from sharpzo_core.schemas.jobs import JobPublic, StepPublic

if TYPE_CHECKING:
    import threading
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from sharpzo_core.records.jobs import JobStep
    from sharpzo_core.stores.job_store import JobStore

_steps: TypeAdapter[list[StepPublic]] = TypeAdapter(list[StepPublic])


async def stream_steps(
    jobs: JobStore,
    job_id: str,
    resolution: int,
    stopping: threading.Event,
    admitted: Callable[[], Awaitable[bool]],
) -> AsyncIterator[bytes]:
    """The job and its steps as they come, until it has ended or the server ends.

    The client never has more than twice `resolution` steps to hold. The stream ends as well when
    the caller is not `admitted` any more.
    """
    curve = _Curve(jobs, job_id, resolution)
    spoke = time.monotonic()
    with open_stream(job_id) as pause:
        while not stopping.is_set() and await admitted():
            messages = await run_in_threadpool(curve.advance)
            for message in messages:
                yield message
            if curve.ended:
                return
            if messages:
                spoke = time.monotonic()
            elif time.monotonic() - spoke >= KEEPALIVE_SECONDS:
                yield KEEPALIVE_COMMENT
                spoke = time.monotonic()
            await asyncio.sleep(pause())


@dataclass(frozen=True)
class _Sent:
    """What the client knows."""

    job: Job
    last_step: int
    following: int  #: steps since the last `series`


class _Curve:
    """Compares what a client knows with what the store has."""

    def __init__(self, jobs: JobStore, job_id: str, resolution: int) -> None:
        self._jobs = jobs
        self._job_id = job_id
        self._resolution = resolution
        self._sent: _Sent | None = None
        self.ended = False

    def advance(self) -> list[bytes]:
        """What there is to tell since the last time."""
        job = self._jobs.get(self._job_id)
        sent, self.ended = self._sent, is_terminal(job.status)
        if sent is not None and job == sent.job:
            return []
        messages = [_encode("job", JobPublic.from_record(job).model_dump_json())]
        if sent is None or self._is_outdated(sent, job):
            steps = self._jobs.steps(self._job_id, resolution=self._resolution)
            messages.append(_encode_steps("series", steps))
            following = 0
        else:
            begin = sent.last_step + 1
            steps = self._jobs.steps(self._job_id, begin, resolution=self._resolution)
            messages += [_encode_steps("steps", steps)] if steps else []
            following = sent.following + len(steps)
        last = steps[-1].step if steps else (0 if sent is None else sent.last_step)
        self._sent = _Sent(job, last, following)
        return messages

    def _is_outdated(self, sent: _Sent, job: Job) -> bool:
        """Whether steps that were sent may be gone, or are too many by now."""
        went_back = job.step < sent.last_step or job.attempt != sent.job.attempt
        return went_back or self.ended or sent.following >= self._resolution


def _encode_steps(event: str, steps: Sequence[JobStep]) -> bytes:
    data = _steps.dump_json([StepPublic.from_record(step) for step in steps]).decode()
    return _encode(event, data)


def _encode(event: str, data: str) -> bytes:
    return format_sse_event(data_str=data, event=event)
