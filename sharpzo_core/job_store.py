"""`JobStore`: what the API asks about jobs. What a worker may do is in `job_leases.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from sharpzo_core.clock import Clock, utc_now
from sharpzo_core.datasets import DatasetStatus
from sharpzo_core.db import reading, writing
from sharpzo_core.errors import NotFound, StateConflict, ValidationFailed
from sharpzo_core.ids import Prefix, new_id
from sharpzo_core.job_rows import NO_LEASE, NewEvent, change, get_job, insert_event, read_job
from sharpzo_core.jobs import (
    EventType,
    Job,
    JobEvent,
    JobStatus,
    JobStep,
    Phase,
    is_terminal,
)
from sharpzo_core.listing import MAX_PAGE, Listing, newest_first
from sharpzo_core.tables import datasets, job_events, job_steps, jobs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

MAX_STEPS = 10_000  # records in one answer


class JobStore:
    """Jobs, their events and their recorded steps."""

    def __init__(self, engine: sa.Engine, clock: Clock = utc_now) -> None:
        self._engine = engine
        self._clock = clock

    def create(
        self,
        *,
        dataset_id: str,
        backbone: str,
        config: Mapping[str, Any],
        name: str | None = None,
        metadata: Mapping[str, str] | None = None,
        job_id: str | None = None,
        within: Callable[[sa.Connection, Job], None] | None = None,
    ) -> Job:
        """Accept a job; it is durable when this returns, and so is what `within` writes.

        Raises:
            NotFound: there is no such dataset.
            StateConflict: the dataset is not ready.
        """
        now = self._clock()
        job = Job(
            id=job_id or new_id(Prefix.JOB),
            name=name,
            status=JobStatus.QUEUED,
            phase=None,
            dataset_id=dataset_id,
            backbone=backbone,
            config=dict(config),
            metadata=dict(metadata or {}),
            created_at=now,
            last_event=1,
        )
        with writing(self._engine) as connection:
            _require_ready(connection, dataset_id)
            values = {column.name: getattr(job, column.name) for column in jobs.columns}
            connection.execute(sa.insert(jobs).values(values))
            insert_event(connection, job.id, 1, NewEvent(EventType.QUEUED, "accepted"), now)
            if within is not None:
                within(connection, job)
        return job

    def get(self, job_id: str) -> Job:
        """The job.

        Raises:
            NotFound: there is none with this id.
        """
        with reading(self._engine) as connection:
            return get_job(connection, job_id)

    def list(self, limit: int = 20, after: str | None = None) -> Listing[Job]:
        """A page of jobs, newest first.

        Raises:
            ValidationFailed: the cursor or the limit is wrong.
        """
        with reading(self._engine) as connection:
            return newest_first(connection, jobs, Prefix.JOB, limit, after, read_job)

    def count_by_status(self) -> dict[JobStatus, int]:
        """How many jobs are in each status; every status is present."""
        query = sa.select(jobs.c.status, sa.func.count()).group_by(jobs.c.status)
        with reading(self._engine) as connection:
            found = {row.status: row[1] for row in connection.execute(query)}
        return {status: found.get(status, 0) for status in JobStatus}

    def request_cancel(self, job_id: str) -> Job:
        """Cancel a queued job at once, ask a running one to stop; repeating it changes nothing.

        Raises:
            NotFound: there is no such job.
            StateConflict: the job has already succeeded or failed.
        """
        now = self._clock()
        with writing(self._engine) as connection:
            job = get_job(connection, job_id, lock=True)
            if job.status in (JobStatus.CANCELLING, JobStatus.CANCELLED):
                return job
            if is_terminal(job.status):
                raise StateConflict(f"the job has already {job.status}")
            if job.status is JobStatus.QUEUED:
                values: dict[str, Any] = {"status": JobStatus.CANCELLED, "finished_at": now}
                event = NewEvent(EventType.CANCELLED, "cancelled before it was started")
                values |= NO_LEASE
            else:
                values = {"status": JobStatus.CANCELLING}
                event = NewEvent(EventType.CANCELLING, "asked to stop")
            return change(connection, jobs.c.id == job_id, event, now, **values) or job

    def delete(self, job_id: str) -> None:
        """Forget a finished job, its events and its steps; its prompt stays.

        Raises:
            NotFound: there is no such job.
            StateConflict: the job is not finished.
        """
        with writing(self._engine) as connection:
            job = get_job(connection, job_id, lock=True)
            if not is_terminal(job.status):
                raise StateConflict(f"the job is {job.status}; cancel it first")
            connection.execute(sa.delete(job_events).where(job_events.c.job_id == job_id))
            connection.execute(sa.delete(job_steps).where(job_steps.c.job_id == job_id))
            connection.execute(sa.delete(jobs).where(jobs.c.id == job_id))

    def mark_rung(self, job_id: str) -> None:
        """Note that the job's message was sent."""
        update = sa.update(jobs).where(jobs.c.id == job_id)
        with writing(self._engine) as connection:
            connection.execute(update.values(rung_at=self._clock(), rings=jobs.c.rings + 1))

    def events(self, job_id: str, after: int = 0, limit: int = 100) -> Sequence[JobEvent]:
        """Events with `seq` above `after`, in order.

        Raises:
            NotFound: there is no such job.
            ValidationFailed: `limit` is out of range.
        """
        if not 1 <= limit <= MAX_PAGE:
            raise ValidationFailed([("/limit", f"must be from 1 to {MAX_PAGE}")])
        query = (
            sa.select(job_events)
            .where(job_events.c.job_id == job_id, job_events.c.seq > after)
            .order_by(job_events.c.seq)
            .limit(limit)
        )
        with reading(self._engine) as connection:
            get_job(connection, job_id)
            return [_read_event(row) for row in connection.execute(query)]

    def steps(
        self,
        job_id: str,
        from_step: int = 0,
        to_step: int | None = None,
        resolution: int = 1000,
    ) -> Sequence[JobStep]:
        """Recorded steps in `[from_step, to_step]`, evenly thinned to about `resolution`.

        The last step of the range is always among them.

        Raises:
            NotFound: there is no such job.
            ValidationFailed: `resolution` is out of range.
        """
        if not 1 <= resolution <= MAX_STEPS:
            raise ValidationFailed([("/resolution", f"must be from 1 to {MAX_STEPS}")])
        wanted = (job_steps.c.job_id == job_id) & (job_steps.c.step >= from_step)
        if to_step is not None:
            wanted &= job_steps.c.step <= to_step
        with reading(self._engine) as connection:
            get_job(connection, job_id)
            count = sa.select(sa.func.count()).select_from(job_steps).where(wanted)
            total = connection.execute(count).scalar_one()
            stride = max(1, -(-total // resolution))
            place = sa.func.row_number().over(order_by=job_steps.c.step).label("place")
            numbered = sa.select(job_steps, place).where(wanted).subquery()
            query = sa.select(numbered).where((total - numbered.c.place) % stride == 0)
            return [_read_step(row) for row in connection.execute(query.order_by("step"))]


def _require_ready(connection: sa.Connection, dataset_id: str) -> None:
    """The dataset is ready and stays so until this transaction ends."""
    query = sa.select(datasets.c.status).where(datasets.c.id == dataset_id)
    status = connection.execute(query.with_for_update(read=True)).scalar_one_or_none()
    if status is None:
        raise NotFound("dataset", dataset_id)
    if status != DatasetStatus.READY:
        raise StateConflict(f"the dataset is {status}, not ready")


def _read_event(row: sa.Row[Any]) -> JobEvent:
    return JobEvent(
        seq=row.seq,
        type=EventType(row.type),
        level=row.level,
        message=row.message,
        data=row.data,
        created_at=row.created_at,
    )


def _read_step(row: sa.Row[Any]) -> JobStep:
    return JobStep(
        step=row.step,
        phase=Phase(row.phase),
        loss=row.loss,
        val_loss=row.val_loss,
        val_accuracy=row.val_accuracy,
        sigma=row.sigma,
        sharpness=row.sharpness,
        forward_passes=row.forward_passes,
        seconds=row.seconds,
    )
