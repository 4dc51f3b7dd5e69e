"""How a job's row changes: one conditional UPDATE, and its event in the same transaction."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from sharpzo_core.database.engine import record
from sharpzo_core.database.tables import job_events, jobs
from sharpzo_core.database.tenants import owned
from sharpzo_core.errors import NotFound
from sharpzo_core.ids import Prefix, is_id
from sharpzo_core.records.jobs import (
    CheckpointRef,
    EventType,
    Job,
    JobKind,
    JobStatus,
    Phase,
    sources,
)

#: What a job that no worker holds has in its lease columns.
NO_LEASE: Mapping[str, None] = {
    "lease_owner": None,
    "lease_process": None,
    "lease_token": None,
    "lease_expires_at": None,
    "eta_seconds": None,
}

_CHECKPOINT = ("checkpoint_folder", "checkpoint_step", "checkpoint_saved_at")


@dataclass(frozen=True)
class NewEvent:
    type: EventType
    message: str
    level: str = "info"
    data: Mapping[str, Any] = field(default_factory=dict)


#: The events of requests, by the status that they lead to.
_MOVE_EVENTS: Mapping[JobStatus, NewEvent] = {
    JobStatus.PAUSED: NewEvent(EventType.PAUSED, "paused before it was started"),
    JobStatus.PAUSING: NewEvent(EventType.PAUSING, "asked to pause"),
    JobStatus.QUEUED: NewEvent(EventType.RESUMED, "queued again"),
    JobStatus.RUNNING: NewEvent(EventType.RESUMED, "continues; it had not paused yet"),
    JobStatus.CANCELLED: NewEvent(EventType.CANCELLED, "cancelled while no worker had it"),
    JobStatus.CANCELLING: NewEvent(EventType.CANCELLING, "asked to stop"),
}
_FINISHING = NewEvent(EventType.FINISHING, "asked to finish with the best prompt so far")
#: What a request that queues a job again resets.
_RESET: Mapping[str, Any] = {
    "phase": None,
    "phase_label": None,
    "losses": 0,
    "crashes": 0,
    "error_code": None,
    "error_message": None,
    "finished_at": None,
    "rings": 0,
    "rung_at": None,
}


def move(
    connection: sa.Connection,
    job: Job,
    target: JobStatus,
    now: datetime,
    data: Mapping[str, Any] | None = None,
    *,
    finishing: bool = False,
    **others: Any,  # noqa: ANN401 - columns of `jobs`
) -> Job:
    """Change a job, which the caller has locked, as a request demands; see `REQUESTS`.

    `data` is added to the event. Any request that changes a job takes the place of an earlier one
    to finish it.
    """
    if target is job.status and finishing == job.finishing:
        return job
    values: dict[str, Any] = {"finishing": finishing, **others}
    if target is not job.status:
        values["status"] = target
    if target is JobStatus.CANCELLED:
        values |= {"finished_at": now, **NO_LEASE}
    elif target is JobStatus.QUEUED:
        values |= _RESET
    event = _FINISHING if finishing else _MOVE_EVENTS[target]
    event = replace(event, data=dict(data or {}))
    return change(connection, jobs.c.id == job.id, event, now, **values) or job


def change(
    connection: sa.Connection,
    condition: sa.ColumnElement[bool],
    event: NewEvent,
    now: datetime,
    **values: Any,  # noqa: ANN401 - columns of `jobs`
) -> Job | None:
    """Update the one job that fulfils the condition, and add an event; None if there is none.

    A new `status` is set only where the transition table allows it, and the event names it.
    """
    if "status" in values:
        status = JobStatus(values["status"])
        condition &= jobs.c.status.in_(sources(status))
        event = replace(event, data={**event.data, "status": status})
    update = (
        sa.update(jobs)
        .where(condition)
        .values(values | {"last_event": jobs.c.last_event + 1})
        .returning(jobs)
    )
    row = connection.execute(update).one_or_none()
    if row is None:
        return None
    job = read_job(row)
    insert_event(connection, job.id, job.last_event, event, now)
    return job


def insert_event(
    connection: sa.Connection, job_id: str, seq: int, event: NewEvent, now: datetime
) -> None:
    """Write event number `seq`; the caller has just counted it in the job's row."""
    connection.execute(
        sa.insert(job_events).values(
            job_id=job_id,
            seq=seq,
            type=event.type,
            level=event.level,
            message=event.message,
            data=dict(event.data),
            created_at=now,
        )
    )


def get_job(
    connection: sa.Connection, job_id: str, tenant: str | None, *, lock: bool = False
) -> Job:
    """The tenant's job; `lock` locks its row for this transaction.

    Raises:
        NotFound: there is none with this id.
    """
    row = None
    if is_id(Prefix.JOB, job_id):
        query = sa.select(jobs).where(jobs.c.id == job_id, owned(jobs, tenant))
        row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise NotFound("job", job_id)
    return read_job(row)


def read_job(row: sa.Row[Any]) -> Job:
    values = record(row, status=JobStatus(row.status), kind=JobKind(row.kind))
    values["phase"] = None if row.phase is None else Phase(row.phase)
    folder, step, saved_at = (values.pop(name) for name in _CHECKPOINT)
    values["checkpoint"] = None if folder is None else CheckpointRef(folder, step, saved_at)
    return Job(**values)


def job_values(job: Job) -> dict[str, Any]:
    plain = {c.name: getattr(job, c.name) for c in jobs.columns if c.name not in _CHECKPOINT}
    return plain | checkpoint_values(job.checkpoint)


def checkpoint_values(checkpoint: CheckpointRef | None) -> dict[str, Any]:
    if checkpoint is None:
        return dict.fromkeys(_CHECKPOINT)
    return dict(
        zip(_CHECKPOINT, (checkpoint.folder, checkpoint.step, checkpoint.saved_at), strict=True)
    )
