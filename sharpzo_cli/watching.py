"""`sharpzo jobs watch`: show a job's events as they happen, with its progress below."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sharpzo_cli.errors import CliError, RunFailed
from sharpzo_cli.formatting import event_line, show_outcome
from sharpzo_cli.output import print_json, say
from sharpzo_cli.remote import service
from sharpzo_client import SharpzoError
from sharpzo_client.display import display
from sharpzo_client.progress import JobView

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sharpzo_client import Client, Job, JobEvent

POLL_SECONDS = 1.0  # between two requests for the job's progress
POLL_TIMEOUT = 10.0  # seconds of inactivity


def watch_job(url: str, job_id: str, *, as_json: bool, finishes: bool = False) -> None:
    """Follow a job until it ends; with `as_json` print each event as a line and nothing else.

    With `finishes`, the first Ctrl-C asks the job to finish, and the job is followed to its end.

    Raises:
        RunFailed: it failed or was cancelled.
        KeyboardInterrupt: Ctrl-C; the job keeps running.
    """
    follower = _Follower(url, job_id, as_json=as_json)
    try:
        try:
            job = follower.follow()
        except KeyboardInterrupt:
            if not finishes or not _finishing(url, job_id):
                raise
            job = follower.follow()
    except KeyboardInterrupt:
        say(_next_commands(job_id), err=True)
        raise
    if not as_json:
        show_outcome(job)
    if job.status != "succeeded":
        reason = f": {job.error.message}" if job.error else ""
        fix = f"continue from its last checkpoint with `sharpzo jobs resume {job_id}`"
        raise RunFailed(f"job {job_id} {job.status}{reason}", fix)


def _finishing(url: str, job_id: str) -> bool:
    """Ask the job to finish; False, with the reason printed, if it cannot."""
    try:
        # Ctrl-C may have left the follower's connection in the middle of an answer.
        with service(url) as client:
            client.jobs.finish(job_id)
    except CliError as error:
        say(f"it was not asked to finish: {error.what}", err=True)
        return False
    say("finishing with the best prompt so far; press Ctrl-C again to stop watching", err=True)
    return True


class _Follower:
    """Shows a job's events and its progress; may be interrupted and continued."""

    def __init__(self, url: str, job_id: str, *, as_json: bool) -> None:
        self._url = url
        self._job_id = job_id
        self._as_json = as_json
        self._last = 0  # `seq` of the last event that was shown

    def follow(self) -> Job:
        """Show what happens until the job ends; returns it as it is then."""
        with service(self._url) as client:
            job = client.jobs.get(self._job_id)  # an unknown id fails before anything is drawn
            if self._as_json:
                for event in self._events(client):
                    print_json(event.model_dump(mode="json"))
                return client.jobs.get(self._job_id)
            return self._draw(client, job)

    def _draw(self, client: Client, job: Job) -> Job:
        with display() as shown:
            view = JobView(shown)
            with _polling(client.base_url, job.id, view) as poll_now:
                for event in self._events(client):
                    shown.say(event_line(event))
                    poll_now()
            ended = client.jobs.get(job.id)
            view.update(ended)
        return ended

    def _events(self, client: Client) -> Iterator[JobEvent]:
        for event in client.jobs.stream_events(self._job_id, self._last):
            self._last = event.seq
            yield event


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
        f"{job_id} keeps running; watch it with `sharpzo jobs watch {job_id}`, finish it early "
        f"with `sharpzo jobs finish {job_id}`, cancel it with `sharpzo jobs cancel {job_id}`"
    )
