"""From the engine's `on_step` to the job's row, about once a second."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence

from sharpzo_core.errors import StorageUnavailable
from sharpzo_core.records.jobs import EventType, JobProgress, JobStep, Lease, Phase
from sharpzo_core.stores.job_leases import JobLeases
from sharpzo_core.stores.job_rows import NewEvent
from sharpzo_engine.errors import TuningInterrupted
from sharpzo_engine.search.history import StepRecord
from sharpzo_engine.search.progress import Progress
from worker.heartbeat import Heartbeat

WRITE_SECONDS = 1.0  # between two writes of progress; also how soon a request is noticed
MESSAGE_SECONDS = 5.0  # between two events about preparation
MAX_STEPS = 20_000  # recorded steps of a job; a longer run records every n-th

logger = logging.getLogger(__name__)


class Reporter:
    """The `on_step` callback of one run."""

    def __init__(
        self,
        lease: Lease,
        leases: JobLeases,
        heartbeat: Heartbeat,
        draining: Callable[[], bool],
        ticks: Callable[[], float],
    ) -> None:
        self._lease = lease
        self._leases = leases
        self._heartbeat = heartbeat
        self._draining = draining
        self._ticks = ticks
        self._written = -math.inf
        self._told = -math.inf
        self._phase: Phase | None = None
        self._steps: list[JobStep] = []  # not written yet
        self._metrics: dict[str, float | None] = {}

    def __call__(self, progress: Progress) -> None:
        """Take note; write if it is time.

        Raises:
            TuningInterrupted: the worker shuts down, or the job was asked to stop or pause.
            FinishSearch: the job was asked to finish.
            LeaseLost: another worker owns the job.
        """
        if progress.record is not None:
            self._collect(progress.record, progress.total_steps)
        now, phase, draining = self._ticks(), Phase(progress.phase), self._draining()
        if draining or phase is not self._phase or now - self._written >= WRITE_SECONDS:
            self._written = now
            self._write(progress, phase, now)
        if draining:
            raise TuningInterrupted
        self._heartbeat.check()

    def complete(self, history: Sequence[StepRecord]) -> None:
        """Write every step again, those included that a killed worker had not written.

        Raises:
            LeaseLost: another worker owns the job.
            StorageUnavailable: the database is away.
        """
        last = history[-1]
        self._steps.clear()
        for record in history:
            self._collect(record, len(history))
        progress = JobProgress(
            phase=Phase.EVALUATING,
            phase_label="Evaluating",
            step=last.step,
            total_steps=last.step,
            forward_passes=last.forward_passes,
        )
        self._leases.save_progress(self._lease, progress, self._metrics, self._steps)

    def _collect(self, record: StepRecord, total_steps: int) -> None:
        self._metrics["loss"] = finite(record.loss)
        if record.val_accuracy is not None:
            self._metrics["val_accuracy"] = finite(record.val_accuracy)
        every = -(-total_steps // MAX_STEPS)
        if record.step % every == 0 or record.val_loss is not None:
            self._steps.append(_job_step(record))

    def _write(self, progress: Progress, phase: Phase, now: float) -> None:
        try:
            job = self._leases.save_progress(
                self._lease, _job_progress(progress, phase), self._metrics, self._steps
            )
            self._steps.clear()
            self._heartbeat.observe(job)
            self._tell(progress, phase, now)
        except StorageUnavailable:
            logger.warning(
                "job %s: progress is not written now",
                self._lease.job_id,
                extra={"action": "progress_waits"},
            )

    def _tell(self, progress: Progress, phase: Phase, now: float) -> None:
        if phase is not self._phase:
            self._phase = phase
            data = {"step": progress.step, "forward_passes": progress.forward_passes}
            # After a lost worker this is where the job goes on from its checkpoint.
            where = f" at step {progress.step}" if progress.step > 1 else ""
            message = f"entered {phase}{where}"
            named = {"phase": phase, "phase_label": progress.phase_label}
            event = NewEvent(EventType.PHASE, message, data=named | data)
            extra = {"action": "job_phase", "phase": phase, **data}
            logger.info("job %s %s", self._lease.job_id, message, extra=extra)
        elif progress.message and now - self._told >= MESSAGE_SECONDS:
            event = NewEvent(EventType.MESSAGE, progress.message)
        else:
            return
        self._told = now
        self._leases.add_event(self._lease, event)


def finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def finite_numbers(metrics: Mapping[str, object]) -> dict[str, float | None]:
    return {
        name: finite(value)
        for name, value in metrics.items()
        if value is None or isinstance(value, int | float)
    }


def _job_progress(progress: Progress, phase: Phase) -> JobProgress:
    return JobProgress(
        phase=phase,
        phase_label=progress.phase_label,
        step=progress.step,
        total_steps=progress.total_steps,
        forward_passes=progress.forward_passes,
        eta_seconds=finite(progress.eta_seconds),
    )


def _job_step(record: StepRecord) -> JobStep:
    return JobStep(
        step=record.step,
        phase=Phase(record.phase),
        loss=finite(record.loss),
        val_loss=finite(record.val_loss),
        val_accuracy=finite(record.val_accuracy),
        sigma=finite(record.sigma),
        sharpness=finite(record.sharpness),
        forward_passes=record.forward_passes,
        seconds=record.seconds,
    )
