"""Totals of all jobs, for metrics: they outlive jobs and processes.

Workers write them in transactions that they need anyway, so all API processes report the same.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from sharpzo_core.database.engine import reading
from sharpzo_core.database.tables import job_events, job_totals, jobs, tenant_usage
from sharpzo_core.database.tenants import TenantStore
from sharpzo_core.records.jobs import TERMINAL, Job, JobKind, JobStatus

#: Upper bounds of the histogram's buckets, in seconds; one more bucket is for longer jobs.
#: Never change them: rows refer to buckets by index.
DURATIONS = (10.0, 30.0, 60.0, 180.0, 600.0, 1800.0, 3600.0, 10_800.0, 43_200.0, 86_400.0)


@dataclass(frozen=True)
class Durations:
    counts: Sequence[int]  #: Jobs by bucket, see `DURATIONS`; not cumulative
    seconds: float  #: Of all of them


@dataclass(frozen=True)
class Figures:
    queued_seconds: float  #: How long the oldest waiting job has waited; 0 if none waits
    forward_passes: int  #: Charged since the beginning
    durations: Mapping[tuple[JobKind, JobStatus], Durations]  #: Every kind and outcome


class FigureStore(TenantStore):
    def read(self) -> Figures:
        """Read all totals.

        Raises:
            StorageUnavailable: the database does not answer.
        """
        # While a job waits, its last event is the one that queued it.
        last = (job_events.c.job_id == jobs.c.id) & (job_events.c.seq == jobs.c.last_event)
        waiting = (jobs.c.status == JobStatus.QUEUED) & self._own(jobs)
        since = sa.select(sa.func.min(job_events.c.created_at)).join_from(jobs, job_events, last)
        passes = sa.select(sa.func.coalesce(sa.func.sum(tenant_usage.c.forward_passes), 0))
        with reading(self._engine) as connection:
            queued_at = connection.execute(since.where(waiting)).scalar_one()
            total = connection.execute(passes.where(self._own(tenant_usage))).scalar_one()
            durations = self._durations(connection)
        waited = 0.0 if queued_at is None else (self._clock() - queued_at).total_seconds()
        return Figures(max(0.0, waited), int(total), durations)

    def _durations(
        self, connection: sa.Connection
    ) -> Mapping[tuple[JobKind, JobStatus], Durations]:
        columns = (job_totals.c.kind, job_totals.c.outcome, job_totals.c.bucket)
        query = sa.select(
            *columns, sa.func.sum(job_totals.c.jobs), sa.func.sum(job_totals.c.seconds)
        )
        rows = connection.execute(query.where(self._own(job_totals)).group_by(*columns)).all()
        found = {}
        for kind in JobKind:
            for outcome in sorted(TERMINAL):
                own = [row for row in rows if (row.kind, row.outcome) == (kind, outcome)]
                counts = [0] * (len(DURATIONS) + 1)
                for row in own:
                    counts[row.bucket] += int(row[3])
                found[kind, outcome] = Durations(counts, float(sum(row[4] for row in own)))
        return found


def count_end(connection: sa.Connection, job: Job) -> None:
    """Count a job that a worker has just ended, as the last statement of its transaction.

    So a transaction that waits for the counter's row holds no lock that others wait for.
    """
    if job.started_at is None or job.finished_at is None:
        return
    seconds = max(0.0, (job.finished_at - job.started_at).total_seconds())
    place = {
        "tenant": job.tenant,
        "kind": job.kind,
        "outcome": job.status,
        "bucket": bisect_left(DURATIONS, seconds),
    }
    update = (
        sa.update(job_totals)
        .where(*(job_totals.c[name] == value for name, value in place.items()))
        .values(jobs=job_totals.c.jobs + 1, seconds=job_totals.c.seconds + seconds)
    )
    if connection.execute(update).rowcount:
        return
    try:
        with connection.begin_nested():
            connection.execute(
                sa.insert(job_totals).values(place | {"jobs": 1, "seconds": seconds})
            )
    except sa.exc.IntegrityError:  # another transaction was first
        connection.execute(update)
