"""How far a job is, on standard error."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from sharpzo_client.display import SEARCHING, Pace, Standing, display, stage_title

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sharpzo_client.display import Display
    from sharpzo_client.models import Job

#: Kind of a job -> what it counts, where that is not steps of a search.
UNITS = {"evaluation": "image", "classification": "image"}


class ProgressView(Protocol):
    """Something that shows how far a job is."""

    def update(self, job: Job) -> None:
        """Show the job as it is now."""


@contextmanager
def live_progress() -> Iterator[ProgressView]:
    """A drawing that stays while the block runs; the last state remains on the screen."""
    with display() as shown:
        yield JobView(shown)


class JobView:
    """Shows what is known of a job each time that somebody looks at it."""

    def __init__(self, shown: Display) -> None:
        self._shown = shown
        self._pace = Pace()
        self._last = Standing("waiting for the service")

    def lost(self) -> None:
        """Show that the service does not answer just now."""
        self._shown.show(replace(self._last, pace=None, eta=None, note="no answer; trying again"))

    def update(self, job: Job) -> None:
        """Show the job as it is now."""
        searching = job.status == "running" and job.phase in SEARCHING
        if searching:
            self._pace.count(job.progress.forward_passes)
        else:
            self._pace.forget()
        self._last = Standing(
            title=job_title(job),
            step=job.progress.step,
            total=job.progress.total_steps,
            unit=UNITS.get(job.kind, "step"),
            loss=job.metrics.loss,
            accuracy=job.metrics.val_accuracy,
            passes=job.progress.forward_passes,
            budget=(job.config or {}).get("max_forward_passes"),
            pace=self._pace.per_second if searching else None,
            eta=job.progress.eta_seconds if job.status == "running" else None,
            note="waiting for a worker" if job.status == "queued" else "",
            searching=searching,
            over=job.is_terminal,
        )
        self._shown.show(self._last)


def job_title(job: Job) -> str:
    """The stage of a running job, and else its status."""
    if job.status != "running" or not job.phase:
        return job.status
    return stage_title(job.phase, job.config or {})
