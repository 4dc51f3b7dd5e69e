"""A live line about a job on the terminal (standard error), drawn with rich."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.progress import Progress

    from sharpzo_client.models import Job


class ProgressView(Protocol):
    """Something that shows how far a job is."""

    def update(self, job: Job) -> None:
        """Show the job as it is now."""


@contextmanager
def live_progress() -> Iterator[ProgressView]:
    """A bar that stays while the block runs; the last state remains on the screen."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[steps]}"),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield _Bar(progress)


class _Bar:
    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("queued", total=None, steps="", figures="")

    def update(self, job: Job) -> None:
        total = job.progress.total_steps or None
        done = job.status == "succeeded"  # a run may end well before its last step
        self._progress.update(
            self._task,
            description=job.status if job.is_terminal or not job.phase else job.phase,
            total=total,
            completed=total if done and total else job.progress.step,
            steps=_steps(job),
            figures=_figures(job),
        )


def _steps(job: Job) -> str:
    if not job.progress.total_steps:
        return ""
    return f"step {job.progress.step}/{job.progress.total_steps}"


def _figures(job: Job) -> str:
    """Loss, accuracy, passes and the time left, as far as they are known."""
    loss, accuracy = job.metrics.loss, job.metrics.val_accuracy
    left = job.progress.eta_seconds
    figures = [
        "" if loss is None else f"loss {loss:.3f}",
        "" if accuracy is None else f"val {accuracy:.1%}",
        f"{job.progress.forward_passes:,} passes" if job.progress.forward_passes else "",
        "" if left is None or job.is_terminal else f"{left:.0f} s left",
    ]
    return "  ".join(figure for figure in figures if figure)
