"""Streams a job's events as server-sent events, read from the store."""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.concurrency import run_in_threadpool

from sharpzo_core.errors import CoreError
from sharpzo_core.records.jobs import TERMINAL_EVENTS, JobEvent, is_terminal
from sharpzo_core.schemas.jobs import EventPublic
from sharpzo_core.stores.job_store import JobStore

logger = logging.getLogger(__name__)

EVENT_STREAM = "text/event-stream"
POLL_SECONDS = 0.25
KEEPALIVE_SECONDS = 15.0
MAX_POLLS = 400.0  # of the database per second, by all streams together
_BATCH = 100  # events read at a time
_open: set[object] = set()  # streams


def open_streams() -> int:
    """The number of open streams of this process."""
    return len(_open)


@contextmanager
def open_stream(job_id: str) -> Iterator[Callable[[], float]]:
    """Count a stream while it is open; yields a function for the seconds between two polls.

    A stream ends without an error when its job is deleted or the database is down; the client
    reconnects and gets the error then.
    """
    _open.add(stream := object())
    try:
        yield lambda: max(POLL_SECONDS, len(_open) / MAX_POLLS)
    except CoreError as error:
        logger.info("stream of %s ended early: %s", job_id, error, extra={"action": "stream_ended"})
    finally:
        _open.discard(stream)


async def stream_events(
    jobs: JobStore,
    job_id: str,
    after: int,
    stopping: threading.Event,
    admitted: Callable[[], Awaitable[bool]],
) -> AsyncIterator[bytes]:
    """Yield events with `seq` above `after` until the job's last event or the server's shutdown.

    The stream also ends when the caller is no longer `admitted`.
    """
    last_sent = time.monotonic()
    with open_stream(job_id) as pause:
        while not stopping.is_set() and await admitted():
            events, ended = await run_in_threadpool(_read, jobs, job_id, after)
            for event in events:
                yield _encode(event)
                after = event.seq
            if ended:
                return
            if events:
                last_sent = time.monotonic()
                continue
            if time.monotonic() - last_sent >= KEEPALIVE_SECONDS:
                yield KEEPALIVE_COMMENT
                last_sent = time.monotonic()
            await asyncio.sleep(pause())


def _read(jobs: JobStore, job_id: str, after: int) -> tuple[list[JobEvent], bool]:
    """The next events, and whether they are the last unless the job is resumed."""
    events = list(jobs.events(job_id, after, _BATCH))
    if events and events[-1].type not in TERMINAL_EVENTS:
        return events, False
    last = events[-1].seq if events else after
    job = jobs.get(job_id)
    return events, is_terminal(job.status) and job.last_event <= last


def _encode(event: JobEvent) -> bytes:
    public = EventPublic.from_record(event)
    return format_sse_event(
        data_str=public.model_dump_json(), event=public.type, id=str(public.seq)
    )
