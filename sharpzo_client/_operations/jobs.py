"""Calls about jobs."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

from sharpzo_client._constants import PAGE_SIZE
from sharpzo_client._operation import Flow, Operation, Sleep
from sharpzo_client._operations import _build as api
from sharpzo_client._response import reads, reads_nothing, reads_object, reads_series
from sharpzo_client.errors import JobCancelled, JobFailed, WaitTimeoutError
from sharpzo_client.models import Job, JobEvent, Page, StepRecord

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from sharpzo_client.progress import ProgressView

OnEvent = Callable[[JobEvent], object]
ResultForm = Literal["jsonl", "csv"]


def create_job(
    dataset_id: str, *, idempotency_key: str | None, **options: object
) -> Operation[Job]:
    body = {"dataset_id": dataset_id, **api.without_none(options)}
    return api.create(Job, "jobs", body=body, idempotency_key=idempotency_key)


def get_job(job_id: str) -> Operation[Job]:
    return api.get(Job, "jobs", job_id)


def list_jobs(page_size: int, kind: str | None) -> Operation[Page[Job]]:
    return api.first_page(Job, "jobs", page_size=page_size, kind=kind)


def delete_job(job_id: str) -> Operation[None]:
    return api.delete("jobs", job_id)


def change_state(
    job_id: str, action: Literal["pause", "resume", "cancel", "finish"]
) -> Operation[Job]:
    """Ask a job for one of these; repeating the call changes nothing, so it may be retried."""
    return Operation(method="POST", path=api.path("jobs", job_id, action), read=reads(Job))


def list_events(job_id: str, after: int, page_size: int = PAGE_SIZE) -> Operation[Page[JobEvent]]:
    return api.first_page(JobEvent, "jobs", job_id, "events", page_size=page_size, after=after)


def stream_events(job_id: str, after: int) -> Operation[None]:
    return Operation(
        method="GET",
        path=api.path("jobs", job_id, "events"),
        params={"after": after},
        headers={"Accept": "text/event-stream", "Last-Event-ID": str(after)},
        read=reads_nothing,
    )


def job_metrics(
    job_id: str, from_step: int | None, to_step: int | None, resolution: int | None
) -> Operation[tuple[StepRecord, ...]]:
    bounds = {"from_step": from_step, "to_step": to_step, "resolution": resolution}
    return Operation(
        method="GET",
        path=api.path("jobs", job_id, "metrics"),
        params=api.without_none(bounds),
        read=reads_series(StepRecord),
    )


def job_report(job_id: str) -> Operation[dict[str, Any]]:
    return Operation(method="GET", path=api.path("jobs", job_id, "report"), read=reads_object)


def download_report(job_id: str, path: str | os.PathLike[str]) -> Flow[Path]:
    return api.save(api.file("jobs", job_id, "report", accept="text/html"), path)


def stream_results(job_id: str, form: ResultForm) -> Operation[None]:
    return Operation(
        method="GET",
        path=api.path("jobs", job_id, "results"),
        params={"format": form},
        headers={"Accept": "*/*"},
        read=reads_nothing,
    )


def wait_for_job(
    job_id: str,
    *,
    timeout: float | None,
    poll: float,
    on_event: OnEvent | None,
    view: AbstractContextManager[ProgressView] | None,
) -> Flow[Job]:
    """Poll until the job has ended; pass on its events and show its progress.

    Raises:
        JobFailed: the job failed.
        JobCancelled: the job was cancelled.
        WaitTimeoutError: it has not ended within `timeout` seconds.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    last_seq = 0
    with view or nullcontext() as progress:
        while True:
            job = yield from get_job(job_id)
            if on_event is not None:  # after get_job: the events of an ended job are complete
                last_seq = yield from _pass_on_events(job_id, last_seq, on_event)
            if progress is not None:
                progress.update(job)
            if job.is_terminal:
                return succeeded(job)
            if deadline is not None and time.monotonic() >= deadline:
                raise WaitTimeoutError(f"job {job_id} is still {job.status}")
            yield Sleep(poll)


def succeeded(job: Job) -> Job:
    """Return the job if it succeeded.

    Raises:
        JobFailed: it failed.
        JobCancelled: it was cancelled.
    """
    if job.status == "cancelled":
        raise JobCancelled(job)
    if job.status != "succeeded":
        raise JobFailed(job)
    return job


def _pass_on_events(job_id: str, last_seq: int, on_event: OnEvent) -> Flow[int]:
    operation: Operation[Page[JobEvent]] | None = list_events(job_id, last_seq)
    while operation is not None:
        page = yield from operation
        for event in page.data:
            on_event(event)
            last_seq = event.seq
        operation = api.next_page(operation, page)
    return last_seq
