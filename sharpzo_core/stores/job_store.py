"""`JobStore`: jobs for the API. What a worker may do is in `job_leases.py`."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from operator import attrgetter
from typing import Any

import sqlalchemy as sa

from sharpzo_core.database.engine import as_record, reading, writing
from sharpzo_core.database.pagination import MAX_PAGE, Listing, newest_first
from sharpzo_core.database.tables import api_keys, datasets, job_events, job_steps, jobs
from sharpzo_core.errors import AuthInvalid, NotFound, StateConflict, ValidationFailed
from sharpzo_core.ids import Prefix
from sharpzo_core.records.datasets import DatasetStatus
from sharpzo_core.records.jobs import (
    FORMATS,
    NOT_FINISHED,
    REQUESTS,
    TERMINAL,
    EventType,
    Job,
    JobEvent,
    JobKind,
    JobStatus,
    JobStep,
    NewJob,
    Origin,
    Phase,
    Request,
    is_terminal,
)
from sharpzo_core.stores.job_rows import NewEvent, get_job, insert_event, job_values, move, read_job
from sharpzo_core.stores.prompt_store import lock_prompt
from sharpzo_core.stores.quotas import MeteredStore

UNKNOWN = Origin()
MAX_STEPS = 10_000  # records in one answer
_EVENT_TYPES = frozenset(EventType)
_RARE = ("val_loss", "val_accuracy", "sigma", "sharpness")  # measured only at some steps


class JobStore(MeteredStore):
    table = jobs

    def create(
        self,
        new: NewJob,
        origin: Origin = UNKNOWN,
        in_transaction: Callable[[sa.Connection, Job], None] | None = None,
    ) -> Job:
        """Accept a job; it is durable when this returns, and so is what `in_transaction` writes.

        Raises:
            NotFound: there is no such dataset or prompt.
            StateConflict: the dataset is not ready.
            QuotaExceeded: the tenant may not have this job now.
            AuthInvalid: the key of `origin` has been revoked.
        """
        now = self._clock()
        job = Job(
            **vars(new),
            **vars(origin),
            tenant=self._owner,
            format=FORMATS[new.kind],
            status=JobStatus.QUEUED,
            created_at=now,
            last_event=1,
        )
        with writing(self._engine) as connection:
            self._require_key(connection, origin)
            self._quotas.check_job(connection, job.tenant, now, _budget(job))
            self._require_ready(connection, job)
            if job.prompt_id is not None:
                lock_prompt(connection, job.prompt_id, self._tenant)
            connection.execute(sa.insert(jobs).values(job_values(job)))
            data = {"status": job.status, **_asked_with(origin)}
            accepted = NewEvent(EventType.QUEUED, "accepted", data=data)
            insert_event(connection, job.id, 1, accepted, now)
            if in_transaction is not None:
                in_transaction(connection, job)
        return job

    def get(self, job_id: str) -> Job:
        """The job.

        Raises:
            NotFound: there is none with this id.
        """
        with reading(self._engine) as connection:
            return get_job(connection, job_id, self._tenant)

    def list(
        self, limit: int = 20, after: str | None = None, kind: JobKind | None = None
    ) -> Listing[Job]:
        """A page of jobs, or of those of one kind, newest first.

        Raises:
            ValidationFailed: the cursor or the limit is wrong.
        """
        with reading(self._engine) as connection:
            wanted = self._own(jobs)
            if kind is not None:
                wanted &= jobs.c.kind == kind
            return newest_first(connection, jobs, Prefix.JOB, limit, after, read_job, wanted)

    def ended(self) -> Sequence[tuple[str, JobStatus, str | None, str | None]]:
        columns = (jobs.c.id, jobs.c.status, jobs.c.result_folder, jobs.c.checkpoint_folder)
        query = sa.select(*columns).where(jobs.c.status.in_(TERMINAL), self._own(jobs))
        with reading(self._engine) as connection:
            rows = connection.execute(query).all()
        return [(row.id, JobStatus(row.status), row[2], row[3]) for row in rows]

    def count_by_status(self) -> dict[JobStatus, int]:
        query = sa.select(jobs.c.status, sa.func.count()).where(self._own(jobs))
        query = query.group_by(jobs.c.status)
        with reading(self._engine) as connection:
            found = {row.status: row[1] for row in connection.execute(query)}
        return {status: found.get(status, 0) for status in JobStatus}

    def request_pause(self, job_id: str, origin: Origin = UNKNOWN) -> Job:
        """Pause a queued job, or ask a running job's worker to pause it.

        Raises:
            NotFound: there is no such job.
            StateConflict: the job has ended, or is being cancelled.
        """
        return self._request(job_id, Request.PAUSE, origin)

    def request_resume(self, job_id: str, origin: Origin = UNKNOWN) -> Job:
        """Queue a paused, failed or cancelled job again; it continues from its last checkpoint.

        The caller notifies a worker. If `origin` has an API key, the job now belongs to that key.

        Raises:
            NotFound: there is no such job, or its dataset or prompt has been deleted.
            StateConflict: the job is running, has succeeded, or is being cancelled.
            QuotaExceeded: the tenant may not have it wait now.
            AuthInvalid: the key of `origin` has been revoked.
        """
        return self._request(job_id, Request.RESUME, origin)

    def request_cancel(self, job_id: str, origin: Origin = UNKNOWN) -> Job:
        """Cancel a waiting job at once, or ask a running job's worker to stop.

        Raises:
            NotFound: there is no such job.
            StateConflict: the job has already succeeded or failed.
        """
        return self._request(job_id, Request.CANCEL, origin)

    def request_finish(self, job_id: str, origin: Origin = UNKNOWN) -> Job:
        """Let a tuning job end its search, and publish its best prompt so far.

        A paused job is queued for this, and the caller notifies a worker. Of requests to pause and
        to finish, the later one counts. Repeating the request changes nothing.

        Raises:
            NotFound: there is no such job, or the dataset of a paused one has been deleted.
            StateConflict: the job does not search: it waits, has ended or is being cancelled, or is
                of another kind.
            AuthInvalid: the key of `origin` has been revoked.
        """
        return self._request(job_id, Request.FINISH, origin)

    def _request(self, job_id: str, request: Request, origin: Origin) -> Job:
        """Do as `REQUESTS` says; repeating a request changes nothing."""
        now, data = self._clock(), _asked_with(origin)
        with writing(self._engine) as connection:
            if request in (Request.RESUME, Request.FINISH):
                # Lock the key before the job, as `KeyStore.revoke` does, against deadlocks.
                self._require_key(connection, origin)
            job = get_job(connection, job_id, self._tenant, lock=True)
            target, finishing = _target(job, request)
            others: dict[str, Any] = {}
            if target is JobStatus.QUEUED and target is not job.status:
                self._require_room(connection, job, finishing=finishing)
                others["key_id"] = origin.key_id or job.key_id
            return move(connection, job, target, now, data, finishing=finishing, **others)

    def _require_room(self, connection: sa.Connection, job: Job, *, finishing: bool) -> None:
        """Check that what a job needs to be queued again still exists."""
        self._require_ready(connection, job)
        if job.prompt_id is not None:
            lock_prompt(connection, job.prompt_id, self._tenant)
        if is_terminal(job.status):
            self._quotas.check_job(connection, job.tenant, self._clock())
        elif not finishing:  # a paused job already counts as active
            passes_only = replace(self._quotas, max_active_jobs=None)
            passes_only.check_job(connection, job.tenant, self._clock())

    def _require_key(self, connection: sa.Connection, origin: Origin) -> None:
        """Check that the API key is not revoked, and prevent that until this transaction ends.

        So a revocation finds every job that the key ever started.
        """
        if origin.key_id is None:
            return
        mine = (api_keys.c.id == origin.key_id) & self._own(api_keys)
        query = sa.select(api_keys.c.revoked_at).where(mine)
        row = connection.execute(query.with_for_update(read=True)).one_or_none()
        if row is None or row.revoked_at is not None:
            raise AuthInvalid

    def _require_ready(self, connection: sa.Connection, job: Job) -> None:
        for dataset_id in job.dataset_ids:
            mine = (datasets.c.id == dataset_id) & self._own(datasets)
            query = sa.select(datasets.c.status).where(mine)
            status = connection.execute(query.with_for_update(read=True)).scalar_one_or_none()
            if status is None:
                raise NotFound("dataset", dataset_id)
            if status != DatasetStatus.READY:
                raise StateConflict(f"the dataset is {status}, not ready")

    def delete(self, job_id: str) -> None:
        """Delete a finished job, its events and its steps; its prompt stays.

        Raises:
            NotFound: there is no such job.
            StateConflict: the job is not finished.
        """
        with writing(self._engine) as connection:
            job = get_job(connection, job_id, self._tenant, lock=True)
            if not is_terminal(job.status):
                raise StateConflict(f"the job is {job.status}; cancel it first")
            connection.execute(sa.delete(job_events).where(job_events.c.job_id == job_id))
            connection.execute(sa.delete(job_steps).where(job_steps.c.job_id == job_id))
            connection.execute(sa.delete(jobs).where(jobs.c.id == job_id, self._own(jobs)))

    def mark_notified(self, job_id: str) -> None:
        update = sa.update(jobs).where(jobs.c.id == job_id, self._own(jobs))
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
            get_job(connection, job_id, self._tenant)
            return [_read_event(row) for row in connection.execute(query)]

    def steps(
        self,
        job_id: str,
        from_step: int = 0,
        to_step: int | None = None,
        resolution: int = 1000,
    ) -> Sequence[JobStep]:
        """Recorded steps in `[from_step, to_step]`, evenly thinned to about `resolution`.

        Each run of steps is thinned to its last step. Values that this step lacks are taken from
        the nearest step before it in the run, so that rare values, such as validation, remain.

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
            get_job(connection, job_id, self._tenant)
            count = sa.select(sa.func.count()).select_from(job_steps).where(wanted)
            total = connection.execute(count).scalar_one()
            stride = max(1, -(-total // resolution))
            if stride == 1:
                every = sa.select(job_steps).where(wanted).order_by(job_steps.c.step)
                return [_read_step(row) for row in connection.execute(every)]
            rows = connection.execute(_thinned(wanted, total, stride))
            runs = groupby(rows, key=attrgetter("run"))
            return [_merge_run([_read_step(row) for row in run]) for _, run in runs]


def _target(job: Job, request: Request) -> tuple[JobStatus, bool]:
    """The status that the request leads to, and whether the job is to finish in it.

    Raises:
        StateConflict: the job cannot do that now.
    """
    target = REQUESTS[request].get(job.status)
    if request is not Request.FINISH:
        if target is None:
            raise StateConflict(f"the job is {job.status}: there is nothing to {request}")
        return target, job.finishing and target is job.status
    if job.kind is not JobKind.TUNING:
        raise StateConflict(
            f"a job of kind {job.kind} has no search to finish (wait for it, or cancel it)"
        )
    if job.finishing and job.status is not JobStatus.FAILED:
        return job.status, True
    if target is None:
        raise StateConflict(f"the job is {job.status}: {NOT_FINISHED[job.status]}")
    return target, True


def _asked_with(origin: Origin) -> dict[str, str]:
    return {} if origin.request_id is None else {"request_id": origin.request_id}


def _budget(job: Job) -> int | None:
    """Forward passes that a new job may take, if its request limits them."""
    budget = job.config.get("max_forward_passes") if job.kind is JobKind.TUNING else None
    return None if budget is None else max(0, budget - job.charged_passes)


def _thinned(wanted: sa.ColumnElement[bool], total: int, stride: int) -> sa.Select[Any]:
    """Of each run of `stride` steps, the last step and the last step that has each rare value."""
    place = sa.func.row_number().over(order_by=job_steps.c.step)
    # Counted from the end, so that the last step is always the last of a run.
    runs = sa.select(job_steps, ((total - place) // stride).label("run")).where(wanted).subquery()
    measured = [runs.c.step, *(sa.case((runs.c[name].is_not(None), runs.c.step)) for name in _RARE)]
    lasts = [
        sa.func.max(steps).over(partition_by=runs.c.run).label(f"last_{index}")
        for index, steps in enumerate(measured)
    ]
    found = sa.select(runs, *lasts).subquery()
    kept = sa.or_(*(found.c.step == found.c[last.name] for last in lasts))
    return sa.select(found).where(kept).order_by(found.c.step)


def _merge_run(steps: Sequence[JobStep]) -> JobStep:
    """The last step, with the values that only earlier steps have."""
    known: dict[str, Any] = {name: _latest(steps, name) for name in _RARE}
    return replace(steps[-1], **known)


def _latest(steps: Sequence[JobStep], name: str) -> float | None:
    # Values of one stage must not appear in the next one.
    phase = steps[-1].phase
    values = (getattr(step, name) for step in reversed(steps) if step.phase is phase)
    return next((value for value in values if value is not None), None)


def _read_event(row: sa.Row[Any]) -> JobEvent:
    kind = EventType(row.type) if row.type in _EVENT_TYPES else row.type
    return as_record(JobEvent, row, type=kind)


def _read_step(row: sa.Row[Any]) -> JobStep:
    return as_record(JobStep, row, phase=Phase(row.phase))
