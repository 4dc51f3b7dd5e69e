"""Streams a job's curves as server-sent events, already thinned for drawing.

`job` is sent whenever the job changes; `series` replaces all steps of the client, `steps` adds to
them. A stream starts with `job` and `series`, so a client that lost it just reconnects.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from pydantic import TypeAdapter
from starlette.concurrency import run_in_threadpool

from service.streams.job_events import KEEPALIVE_SECONDS, open_stream
from sharpzo_core.records.jobs import Job, JobStep, is_terminal
from sharpzo_core.schemas.jobs import JobPublic, StepPublic
from sharpzo_core.stores.job_store import JobStore

_steps: TypeAdapter[list[StepPublic]] = TypeAdapter(list[StepPublic])


async def stream_steps(
    jobs: JobStore,
    job_id: str,
    resolution: int,
    stopping: threading.Event,
    admitted: Callable[[], Awaitable[bool]],
) -> AsyncIterator[bytes]:
    """Yield the job and its steps as they happen, until the job ends or the server shuts down.

    The client holds at most twice `resolution` steps. The stream also ends when the caller is no
    longer `admitted`.
    """
    curve = _Curve(jobs, job_id, resolution)
    last_sent = time.monotonic()
    with open_stream(job_id) as pause:
        while not stopping.is_set() and await admitted():
            messages = await run_in_threadpool(curve.advance)
            for message in messages:
                yield message
            if curve.ended:
                return
            if messages:
                last_sent = time.monotonic()
            elif time.monotonic() - last_sent >= KEEPALIVE_SECONDS:
                yield KEEPALIVE_COMMENT
                last_sent = time.monotonic()
            await asyncio.sleep(pause())


@dataclass(frozen=True)
class _Sent:
    job: Job
    last_step: int
    following: int  #: steps since the last `series`


class _Curve:
    def __init__(self, jobs: JobStore, job_id: str, resolution: int) -> None:
        self._jobs = jobs
        self._job_id = job_id
        self._resolution = resolution
        self._sent: _Sent | None = None
        self.ended = False

    def advance(self) -> list[bytes]:
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
        """Whether sent steps may have been discarded, or are too many by now."""
        went_back = job.step < sent.last_step or job.attempt != sent.job.attempt
        return went_back or self.ended or sent.following >= self._resolution


def _encode_steps(event: str, steps: Sequence[JobStep]) -> bytes:
    data = _steps.dump_json([StepPublic.from_record(step) for step in steps]).decode()
    return _encode(event, data)


def _encode(event: str, data: str) -> bytes:
    return format_sse_event(data_str=data, event=event)
