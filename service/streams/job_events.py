"""A job's events as a stream (server-sent events), read from the store alone."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.concurrency import run_in_threadpool

from sharpzo_core.errors import CoreError
from sharpzo_core.records.jobs import TERMINAL_EVENTS, JobEvent, is_terminal
from sharpzo_core.schemas.jobs import EventPublic

if TYPE_CHECKING:
    import threading
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from sharpzo_core.stores.job_store import JobStore

logger = logging.getLogger(__name__)

EVENT_STREAM = "text/event-stream"
POLL_SECONDS = 0.25
KEEPALIVE_SECONDS = 15.0
MAX_LOOKS = 400.0  # at the database in a second, by all streams together
_BATCH = 100  # events read at a time
_open: set[object] = set()  # streams


def open_streams() -> int:
    """Clients of this process that are being told events."""
    return len(_open)


@contextmanager
def open_stream(job_id: str) -> Iterator[Callable[[], float]]:
    """Count a stream while it is open; gives how many seconds it waits between two looks.

    A stream whose job is deleted, or whose database is away, just ends: the client comes again and
    is told.
    """
    _open.add(stream := object())
    try:
        yield lambda: max(POLL_SECONDS, len(_open) / MAX_LOOKS)
    except CoreError as error:
        logger.info("stream of %s ends early: %s", job_id, error, extra={"action": "stream_ended"})
    finally:
        _open.discard(stream)


async def stream_events(
    jobs: JobStore,
    job_id: str,
    after: int,
    stopping: threading.Event,
    admitted: Callable[[], Awaitable[bool]],
) -> AsyncIterator[bytes]:
    """Every event with `seq` above `after`, until the job's last one or the server's end.

    It ends as well when the caller is not `admitted` any more.
    """
    spoke = time.monotonic()
    with open_stream(job_id) as pause:
        while not stopping.is_set() and await admitted():
            events, ended = await run_in_threadpool(_look, jobs, job_id, after)
            for event in events:
                yield _encode(event)
                after = event.seq
            if ended:
                return
            if events:
                spoke = time.monotonic()
                continue
            if time.monotonic() - spoke >= KEEPALIVE_SECONDS:
                yield KEEPALIVE_COMMENT
                spoke = time.monotonic()
            await asyncio.sleep(pause())


def _look(jobs: JobStore, job_id: str, after: int) -> tuple[list[JobEvent], bool]:
    """The next events, and whether none will follow unless somebody resumes the job."""
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
