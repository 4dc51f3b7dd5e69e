"""The progress of a job on standard error."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from sharpzo_client.display import STAGES, PassRate, RunState, display, phase_title

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sharpzo_client.display import Display
    from sharpzo_client.models import Job

#: Kind of a job -> what its steps are, if not steps of a search.
UNITS = {"evaluation": "image", "classification": "image"}


class ProgressView(Protocol):
    """Something that shows the progress of a job."""

    def update(self, job: Job) -> None:
        """Show the current state of the job."""


@contextmanager
def live_progress() -> Iterator[ProgressView]:
    """Show a job while the block runs; the last state stays on the screen."""
    with display() as shown:
        yield JobView(shown)


class JobView:
    """Shows the state of a job each time it is updated."""

    def __init__(self, shown: Display) -> None:
        self._shown = shown
        self._rate = PassRate()
        self._last = RunState("waiting for the service")

    def disconnected(self) -> None:
        """Show that the service does not answer at the moment."""
        self._shown.show(replace(self._last, rate=None, eta=None, note="no answer; retrying"))

    def update(self, job: Job) -> None:
        """Show the current state of the job."""
        searching = job.status == "running" and job.phase in STAGES
        if searching:
            self._rate.count(job.progress.forward_passes)
        else:
            self._rate.reset()
        self._last = RunState(
            title=job_title(job),
            step=job.progress.step,
            total=job.progress.total_steps,
            unit=UNITS.get(job.kind, "step"),
            loss=job.metrics.loss,
            accuracy=job.metrics.val_accuracy,
            passes=job.progress.forward_passes,
            budget=(job.config or {}).get("max_forward_passes"),
            rate=self._rate.per_second if searching else None,
            eta=job.progress.eta_seconds if job.status == "running" else None,
            note=_note(job),
            searching=searching,
            ended=job.is_terminal,
        )
        self._shown.show(self._last)


def _note(job: Job) -> str:
    if job.status == "queued":
        return "waiting for a worker"
    return "finishing" if job.finishing and not job.is_terminal else ""


def job_title(job: Job) -> str:
    """The phase of a running job; otherwise its status."""
    if job.status != "running" or not job.phase:
        return job.status
    return phase_title(job.phase, job.phase_label)
