"""`sharpzo jobs watch`: show a job's events as they happen, with its progress below."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sharpzo_cli.errors import RunFailed
from sharpzo_cli.formatting import event_line, show_outcome
from sharpzo_cli.output import print_json, say
from sharpzo_cli.remote import service
from sharpzo_client import SharpzoError
from sharpzo_client.display import display
from sharpzo_client.progress import JobView

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sharpzo_client import Client, Job

POLL_SECONDS = 1.0  # between two requests for the job's progress
POLL_TIMEOUT = 10.0  # seconds of inactivity


def watch_job(url: str, job_id: str, *, as_json: bool) -> None:
    """Follow a job until it ends; with `as_json` print each event as a line and nothing else.

    Raises:
        RunFailed: it failed or was cancelled.
        KeyboardInterrupt: Ctrl-C; the job keeps running.
    """
    with service(url) as client:
        job = client.jobs.get(job_id)  # an unknown id fails before anything is drawn
        try:
            job = _watch_events(client, job_id) if as_json else _watch(client, job)
        except KeyboardInterrupt:
            say(_next_commands(job_id), err=True)
            raise
    if not as_json:
        show_outcome(job)
    if job.status != "succeeded":
        reason = f": {job.error.message}" if job.error else ""
        fix = f"continue from its last checkpoint with `sharpzo jobs resume {job_id}`"
        raise RunFailed(f"job {job_id} {job.status}{reason}", fix)


def _watch_events(client: Client, job_id: str) -> Job:
    for event in client.jobs.stream_events(job_id):
        print_json(event.model_dump(mode="json"))
    return client.jobs.get(job_id)


def _watch(client: Client, job: Job) -> Job:
    with display() as shown:
        view = JobView(shown)
        with _polling(client.base_url, job.id, view) as poll_now:
            for event in client.jobs.stream_events(job.id):
                shown.say(event_line(event))
                poll_now()
        ended = client.jobs.get(job.id)
        view.update(ended)
    return ended


@contextmanager
def _polling(url: str, job_id: str, view: JobView) -> Iterator[Callable[[], None]]:
    """Poll the job's progress in a thread while the block runs; the yielded function polls now.

    Events alone are too few to show progress. A failed request is repeated: the event stream
    decides whether the service is really gone.
    """
    from sharpzo_client import Client

    due, ended = threading.Event(), threading.Event()

    def poll() -> None:
        with Client(url, timeout=POLL_TIMEOUT, max_retries=0) as client:
            while not ended.is_set():
                due.clear()
                try:
                    job = client.jobs.get(job_id)
                except SharpzoError:
                    view.disconnected()
                else:
                    if not ended.is_set():
                        view.update(job)
                due.wait(POLL_SECONDS)

    poller = threading.Thread(target=poll, daemon=True)
    poller.start()
    try:
        yield due.set
    finally:
        ended.set()
        due.set()
        poller.join(POLL_SECONDS)


def _next_commands(job_id: str) -> str:
    return (
        f"{job_id} keeps running; watch it with `sharpzo jobs watch {job_id}`, "
        f"cancel it with `sharpzo jobs cancel {job_id}`"
    )
