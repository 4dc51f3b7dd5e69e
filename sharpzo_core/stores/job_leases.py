"""`JobLeases`: what a worker may do to a job, and what happens to one whose worker is lost.

A worker claims a queued job by one conditional UPDATE and gets a `Lease`. Every later write names
the lease, so a worker that was wrongly considered dead cannot write once another has the job.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Self

import sqlalchemy as sa

from sharpzo_core.clock import Clock, utc_now
from sharpzo_core.database.engine import reading, writing
from sharpzo_core.database.tables import job_steps, jobs
from sharpzo_core.errors import LeaseLost
from sharpzo_core.records.jobs import (
    JOB_FORMAT,
    LEASED,
    CheckpointRef,
    EventType,
    Job,
    JobProgress,
    JobStatus,
    JobStep,
    Lease,
    Phase,
    is_terminal,
)
from sharpzo_core.records.prompts import NewPrompt
from sharpzo_core.settings import Settings
from sharpzo_core.stores.job_rows import NO_LEASE, NewEvent, change, checkpoint_values, read_job
from sharpzo_core.stores.job_totals import count_end
from sharpzo_core.stores.prompt_store import insert_prompt
from sharpzo_core.stores.quotas import charge

WORKER_LOST = "worker_lost"
MAX_LOSSES = 100  # workers that may be lost without a new checkpoint, whatever they died of

_CLAIMABLE = (jobs.c.status == JobStatus.QUEUED) & (jobs.c.format <= JOB_FORMAT)
_PAUSED = NewEvent(EventType.PAUSED, "paused until it is resumed")
_RELEASED = NewEvent(EventType.RELEASED, "the worker shuts down; the job waits for another")
_USED_UP = NewEvent(
    EventType.PAUSING, "the tenant has used up its forward passes of this month", "warning"
)
_REQUEUED = NewEvent(EventType.QUEUED, "waits for another worker")


@dataclass(frozen=True)
class HeldLease:
    """A lease as another worker sees it."""

    lease: Lease
    owner: str
    process: str | None
    expires_at: datetime


class JobLeases:
    def __init__(
        self,
        engine: sa.Engine,
        *,
        lease_seconds: float,
        max_attempts: int,
        clock: Clock = utc_now,
        max_passes: int | None = None,
    ) -> None:
        self._engine = engine
        self._duration = timedelta(seconds=lease_seconds)
        self._max_attempts = max_attempts
        self._clock = clock
        self._max_passes = max_passes  # of a tenant in a month

    @classmethod
    def from_settings(cls, engine: sa.Engine, settings: Settings) -> Self:
        return cls(
            engine,
            lease_seconds=settings.lease_seconds,
            max_attempts=settings.max_attempts,
            max_passes=settings.tenant_max_forward_passes or None,
        )

    def whose_turn(self, job_id: str) -> str:
        """The job to claim on a message about `job_id`: that one, or another tenant's oldest.

        The tenant that runs the fewest jobs comes first, and of those the one whose last start was
        longest ago. So a tenant with a thousand waiting jobs delays another's first job by one turn
        at most. The caller notifies again for a job that has to wait for another.
        """
        with reading(self._engine) as connection:
            owner = sa.select(jobs.c.tenant).where((jobs.c.id == job_id) & _CLAIMABLE)
            mine = connection.execute(owner).scalar_one_or_none()
            turns = sorted(connection.execute(_TURNS).all(), key=_turn)
        if mine is None or not turns or turns[0].tenant == mine:
            return job_id
        first: str = turns[0].first
        return first

    def claim(
        self, job_id: str, owner: str, process: str | None = None, token: str | None = None
    ) -> Job | None:
        """Take a queued job; None if it is taken, finished or deleted.

        A caller that makes the token may repeat a claim whose answer was lost.
        """
        now = self._clock()
        token = token or new_token()
        with writing(self._engine) as connection:
            claimed = change(
                connection,
                (jobs.c.id == job_id) & _CLAIMABLE,
                NewEvent(EventType.STARTED, "a worker took the job", data={"worker": owner}),
                now,
                status=JobStatus.RUNNING,
                phase=Phase.PREPARING,
                phase_label="Preparing",
                attempt=jobs.c.attempt + 1,
                started_at=sa.func.coalesce(jobs.c.started_at, now),
                lease_owner=owner,
                lease_process=process,
                lease_token=token,
                lease_expires_at=now + self._duration,
            )
            return claimed or self._claimed_before(connection, job_id, token)

    def _claimed_before(self, connection: sa.Connection, job_id: str, token: str) -> Job | None:
        query = sa.select(jobs).where(jobs.c.id == job_id, jobs.c.lease_token == token)
        row = connection.execute(query).one_or_none()
        return None if row is None else read_job(row)

    def renew(self, lease: Lease) -> Job:
        """Extend the lease; returns the job, which a request may have changed.

        Raises:
            LeaseLost: another worker has the job, or it has ended.
        """
        with writing(self._engine) as connection:
            return self._write(connection, lease, {})

    def save_progress(
        self,
        lease: Lease,
        progress: JobProgress,
        metrics: Mapping[str, float | None],
        steps: Sequence[JobStep] = (),
    ) -> Job:
        """Write the job's progress and its newest steps in ascending order; extends the lease.

        Returns the job, which a request may have changed. Steps recorded earlier with the same or a
        higher number are replaced: a run that resumed from a checkpoint repeats them.

        Raises:
            LeaseLost: another worker has the job, or it has ended.
        """
        values = {
            "phase": progress.phase,
            "phase_label": progress.phase_label,
            "step": progress.step,
            "total_steps": progress.total_steps,
            "forward_passes": progress.forward_passes,
            "eta_seconds": progress.eta_seconds,
            "metrics": dict(metrics),
        }
        with writing(self._engine) as connection:
            job = self._charge(connection, lease, self._write(connection, lease, values))
            if steps:
                stale = job_steps.c.step >= steps[0].step
                connection.execute(sa.delete(job_steps).where(job_steps.c.job_id == job.id, stale))
                rows = [vars(step) | {"job_id": job.id} for step in steps]
                connection.execute(sa.insert(job_steps), rows)
            return job

    def save_checkpoint(self, lease: Lease, checkpoint: CheckpointRef) -> JobStatus:
        """Record a durable checkpoint. The job made progress, so workers lost before do not count.

        Raises:
            LeaseLost: another worker has the job, or it has ended.
        """
        values = {"losses": 0, "crashes": 0, **checkpoint_values(checkpoint)}
        with writing(self._engine) as connection:
            return self._write(connection, lease, values).status

    def add_event(self, lease: Lease, event: NewEvent) -> None:
        """Append an event.

        Raises:
            LeaseLost: another worker has the job, or it has ended.
        """
        self._finish(lease, event)

    def release(self, lease: Lease) -> Job:
        """Release a job before it is done: queue it again, or pause or cancel it as requested.

        This attempt does not count. The caller notifies a worker of a job that is queued.

        Raises:
            LeaseLost: another worker has the job, or it has ended.
        """
        with writing(self._engine) as connection:
            job = self._locked(connection, lease)
            if job.status is JobStatus.CANCELLING:
                return self._cancel(connection, lease)
            values: dict[str, Any] = {"attempt": jobs.c.attempt - 1, **NO_LEASE}
            if job.status is JobStatus.PAUSING:
                return self._change(connection, lease, _PAUSED, status=JobStatus.PAUSED, **values)
            values |= {"rings": 1, "rung_at": self._clock()}
            return self._change(connection, lease, _RELEASED, status=JobStatus.QUEUED, **values)

    def succeed(
        self,
        lease: Lease,
        prompt: NewPrompt,
        metrics: Mapping[str, float | None],
        stopped_by: str = "completed",
    ) -> Job:
        """Publish the prompt and end the job, in one transaction.

        `stopped_by` is what ended the search, as the engine's `TuneResult` names it.

        A job with a request to cancel ends as cancelled instead and publishes nothing.

        Raises:
            LeaseLost: another worker has the job, or it has ended.
        """
        now = self._clock()
        with writing(self._engine) as connection:
            job = self._locked(connection, lease)
            if job.status is JobStatus.CANCELLING:
                return self._cancel(connection, lease)
            published = insert_prompt(connection, prompt, job.tenant, now)
            event = NewEvent(
                EventType.SUCCEEDED,
                f"published as {published.name}:{published.version}",
                data={
                    "prompt_id": published.id,
                    "metrics": dict(metrics),
                    "stopped_by": stopped_by,
                },
            )
            return self._change(
                connection,
                lease,
                event,
                status=JobStatus.SUCCEEDED,
                prompt_id=published.id,
                stopped_by=stopped_by,
                metrics=dict(metrics),
                finished_at=now,
                **NO_LEASE,
            )

    def complete(self, lease: Lease, folder: str, metrics: Mapping[str, float | None]) -> Job:
        """End a job that publishes no prompt, in one transaction; `folder` holds its results.

        A job with a request to cancel ends as cancelled instead and names no results.

        Raises:
            LeaseLost: another worker has the job, or it has ended.
        """
        with writing(self._engine) as connection:
            job = self._locked(connection, lease)
            if job.status is JobStatus.CANCELLING:
                return self._cancel(connection, lease)
            return self._change(
                connection,
                lease,
                NewEvent(EventType.SUCCEEDED, "done", data={"metrics": dict(metrics)}),
                status=JobStatus.SUCCEEDED,
                result_folder=folder,
                metrics=dict(metrics),
                finished_at=self._clock(),
                **NO_LEASE,
            )

    def fail(self, lease: Lease, code: str, message: str) -> Job:
        """End the job with an error.

        Raises:
            LeaseLost: another worker has the job, or it has ended.
        """
        return self._finish(lease, _failure(code, message), **_failed(code, message, self._clock()))

    def held(self) -> Sequence[HeldLease]:
        query = sa.select(jobs).where(jobs.c.status.in_(LEASED)).order_by(jobs.c.id)
        with reading(self._engine) as connection:
            return [_held(read_job(row)) for row in connection.execute(query)]

    def recover(self, held: HeldLease, *, crashed: bool = False) -> Job | None:
        """Take the job from a lost worker: queue it again, or end it; None if it has moved on.

        A job that was to be cancelled or paused is. `crashed` says that the process which ran the
        job ended while its supervisor lived on, so probably because of the job; `max_attempts` such
        ends without a new checkpoint fail it. A worker that vanished as a whole, as preempted
        machines do, says nothing about the job: only `MAX_LOSSES` of them fail it, so that nothing
        is tried endlessly.
        """
        now = self._clock()
        unchanged = _holds(held.lease) & (jobs.c.lease_expires_at == held.expires_at)
        lost = "the process that ran the job has ended" if crashed else "the worker was lost"
        data = {"worker": held.owner, "attempt": held.lease.attempt, "crashed": crashed}
        event = NewEvent(EventType.WORKER_LOST, lost, "warning", data)
        counts = {"losses": jobs.c.losses + 1, "crashes": jobs.c.crashes + int(crashed)}
        with writing(self._engine) as connection:
            job = change(connection, unchanged, event, now, **counts)
            if job is None:
                return None
            lease = held.lease
            if job.status is JobStatus.CANCELLING:
                return self._cancel(connection, lease)
            if message := self._too_many(job):
                values = _failed(WORKER_LOST, message, now)
                return self._change(connection, lease, _failure(WORKER_LOST, message), **values)
            if job.status is JobStatus.PAUSING:
                return self._change(connection, lease, _PAUSED, status=JobStatus.PAUSED, **NO_LEASE)
            values = {"rings": 0, "rung_at": None, **NO_LEASE}
            return self._change(connection, lease, _REQUEUED, status=JobStatus.QUEUED, **values)

    def _too_many(self, job: Job) -> str | None:
        if job.crashes >= self._max_attempts:
            return (
                f"the process that ran the job ended {job.crashes} times without a new checkpoint "
                "(it may need more memory than the worker has)"
            )
        if job.losses >= MAX_LOSSES:
            return f"{job.losses} workers were lost without a new checkpoint"
        return None

    def waiting(self, limit: int) -> Sequence[Job]:
        """Queued jobs that this version can run, oldest first."""
        query = sa.select(jobs).where(_CLAIMABLE).order_by(jobs.c.id).limit(limit)
        with reading(self._engine) as connection:
            return [read_job(row) for row in connection.execute(query)]

    def _charge(self, connection: sa.Connection, lease: Lease, job: Job) -> Job:
        """Charge the tenant for forward passes that the job reports for the first time.

        A job whose tenant has used up its forward passes is paused: it saves a checkpoint, and can
        be resumed when there are new ones. One that finishes is not: it takes no further step.
        """
        added = job.forward_passes - job.charged_passes
        if added <= 0:
            return job
        update = sa.update(jobs).where(_holds(lease)).values(charged_passes=job.forward_passes)
        connection.execute(update)
        used = charge(connection, job.tenant, added, self._clock())
        if (
            self._max_passes is None
            or used < self._max_passes
            or job.status is not JobStatus.RUNNING
            or job.finishing
        ):
            return job
        return self._change(connection, lease, _USED_UP, status=JobStatus.PAUSING)

    def _locked(self, connection: sa.Connection, lease: Lease) -> Job:
        """The job, locked for this transaction.

        Raises:
            LeaseLost: another worker has the job, or it has ended.
        """
        query = sa.select(jobs).where(_holds(lease)).with_for_update()
        row = connection.execute(query).one_or_none()
        if row is None:
            raise LeaseLost
        return read_job(row)

    def _cancel(self, connection: sa.Connection, lease: Lease) -> Job:
        return self._change(
            connection,
            lease,
            NewEvent(EventType.CANCELLED, "cancelled as requested"),
            status=JobStatus.CANCELLED,
            finished_at=self._clock(),
            **NO_LEASE,
        )

    def _finish(self, lease: Lease, event: NewEvent, **values: Any) -> Job:  # noqa: ANN401
        with writing(self._engine) as connection:
            return self._change(connection, lease, event, **values)

    def _change(
        self,
        connection: sa.Connection,
        lease: Lease,
        event: NewEvent,
        **values: Any,  # noqa: ANN401 - columns of `jobs`
    ) -> Job:
        job = change(connection, _holds(lease), event, self._clock(), **values)
        if job is None:
            raise LeaseLost
        if is_terminal(job.status):
            count_end(connection, job)
        return job

    def _write(self, connection: sa.Connection, lease: Lease, values: dict[str, Any]) -> Job:
        """Update without an event; extends the lease."""
        expires_at = self._clock() + self._duration
        update = (
            sa.update(jobs)
            .where(_holds(lease))
            .values(values | {"lease_expires_at": expires_at})
            .returning(jobs)
        )
        row = connection.execute(update).one_or_none()
        if row is None:
            raise LeaseLost
        return read_job(row)


def _turns() -> sa.Select[Any]:
    """Tenants with jobs to claim: the oldest of these, jobs that run, and when one last started."""
    waiting = (
        sa.select(jobs.c.tenant, sa.func.min(jobs.c.id).label("first"))
        .where(_CLAIMABLE)
        .group_by(jobs.c.tenant)
        .subquery()
    )
    theirs = jobs.c.tenant == waiting.c.tenant
    running = sa.select(sa.func.count()).where(theirs, jobs.c.status.in_(LEASED))
    started = sa.select(sa.func.max(jobs.c.started_at)).where(theirs)
    return sa.select(
        waiting,
        running.correlate(waiting).scalar_subquery().label("running"),
        started.correlate(waiting).scalar_subquery().label("last_start"),
    )


_TURNS = _turns()


def _turn(row: sa.Row[Any]) -> tuple[int, bool, float, str]:
    """The tenant with the fewest running jobs is first; one that never ran any, before all."""
    last = row.last_start
    return (row.running, last is not None, 0.0 if last is None else last.timestamp(), row.first)


def new_token() -> str:
    return secrets.token_hex(16)


def lease_of(job: Job) -> Lease:
    """The lease that the claim of this job gave.

    Raises:
        LeaseLost: the job is not leased.
    """
    if job.lease_token is None:
        raise LeaseLost
    return Lease(job.id, job.attempt, job.lease_token)


def _holds(lease: Lease) -> sa.ColumnElement[bool]:
    return sa.and_(
        jobs.c.id == lease.job_id,
        jobs.c.attempt == lease.attempt,
        jobs.c.lease_token == lease.token,
        jobs.c.status.in_(LEASED),
    )


def _held(job: Job) -> HeldLease:
    # Both columns are set wherever the status is a leased one.
    expires_at = job.lease_expires_at or job.created_at
    return HeldLease(lease_of(job), job.lease_owner or "", job.lease_process, expires_at)


def _failure(code: str, message: str) -> NewEvent:
    return NewEvent(EventType.FAILED, message, "error", {"code": code})


def _failed(code: str, message: str, now: datetime) -> dict[str, Any]:
    return {
        "status": JobStatus.FAILED,
        "error_code": code,
        "error_message": message,
        "finished_at": now,
        **NO_LEASE,
    }
