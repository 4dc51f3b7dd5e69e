"""`sharpzo jobs watch`: a job's events as they happen, and below them how far it is."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sharpzo_cli.errors import RunFailed
from sharpzo_cli.formatting import event_line, show_outcome
from sharpzo_cli.output import print_json, say
from sharpzo_cli.remote import service
from sharpzo_client import Client, SharpzoError
from sharpzo_client.display import display
from sharpzo_client.progress import JobView

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sharpzo_client import Job

LOOK_SECONDS = 1.0  # between two looks at how far the job is
LOOK_TIMEOUT = 10.0  # seconds without a byte


def watch_job(url: str, job_id: str, *, as_json: bool) -> None:
    """Show a job until it has ended; with `as_json` print each event as a line and nothing else.

    Raises:
        RunFailed: it failed or was cancelled.
        KeyboardInterrupt: Ctrl-C; the job goes on.
    """
    with service(url) as client:
        job = client.jobs.get(job_id)  # an unknown job is told before anything is drawn
        try:
            job = _watch_events(client, job_id) if as_json else _watch(client, job)
        except KeyboardInterrupt:
            say(_how_to_go_on(job_id), err=True)
            raise
    if not as_json:
        show_outcome(job)
    if job.status != "succeeded":
        reason = f": {job.error.message}" if job.error else ""
        fix = f"`sharpzo jobs resume {job_id}` goes on from its last checkpoint"
        raise RunFailed(f"job {job_id} {job.status}{reason}", fix)


def _watch_events(client: Client, job_id: str) -> Job:
    for event in client.jobs.stream_events(job_id):
        print_json(event.model_dump(mode="json"))
    return client.jobs.get(job_id)


def _watch(client: Client, job: Job) -> Job:
    with display() as shown:
        view = JobView(shown)
        with _looking(client.base_url, job.id, view) as look_now:
            for event in client.jobs.stream_events(job.id):
                shown.say(event_line(event, job.config))
                look_now()
        ended = client.jobs.get(job.id)
        view.update(ended)
    return ended


@contextmanager
def _looking(url: str, job_id: str, view: JobView) -> Iterator[Callable[[], None]]:
    """Look at the job now and then while the block runs, and when what is yielded is called.

    Events are few; figures are the job's own. A look that fails is repeated: whether the service
    has gone for good is decided by the stream.
    """
    due, over = threading.Event(), threading.Event()

    def look() -> None:
        with Client(url, timeout=LOOK_TIMEOUT, max_retries=0) as client:
            while not over.is_set():
                due.clear()
                try:
                    job = client.jobs.get(job_id)
                except SharpzoError:
                    view.lost()
                else:
                    if not over.is_set():
                        view.update(job)
                due.wait(LOOK_SECONDS)

    looker = threading.Thread(target=look, daemon=True)
    looker.start()
    try:
        yield due.set
    finally:
        over.set()
        due.set()
        looker.join(LOOK_SECONDS)


def _how_to_go_on(job_id: str) -> str:
    return (
        f"{job_id} goes on; `sharpzo jobs watch {job_id}` shows it again, "
        f"`sharpzo jobs cancel {job_id}` stops it"
    )
