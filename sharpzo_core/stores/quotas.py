"""What a tenant may use, and what it has used.

Quotas are checked inside the transaction that would exceed them, while the tenant's row of the
month is locked, so that concurrent requests cannot exceed a quota together.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar, Self

import sqlalchemy as sa

from sharpzo_core.clock import Clock, utc_now
from sharpzo_core.database.engine import reading, writing
from sharpzo_core.database.pagination import MAX_PAGE
from sharpzo_core.database.tables import datasets, jobs, prompts, tenant_usage
from sharpzo_core.database.tenants import DEFAULT_TENANT, TenantStore, owned
from sharpzo_core.errors import QuotaExceeded
from sharpzo_core.records.jobs import TERMINAL
from sharpzo_core.settings import Settings

ACTIVE_RETRY_SECONDS = 60  # until a job may have ended


@dataclass(frozen=True)
class Quotas:
    """Limits per tenant; None: no limit."""

    max_active_jobs: int | None = None
    max_storage_bytes: int | None = None
    max_forward_passes: int | None = None  #: In a month (UTC)

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        return cls(
            settings.tenant_max_active_jobs or None,
            settings.tenant_max_storage_bytes or None,
            settings.tenant_max_forward_passes or None,
        )

    def check_job(
        self, connection: sa.Connection, tenant: str, now: datetime, passes: int | None = None
    ) -> None:
        """Check that the tenant may have one more job, with at most so many forward passes.

        Raises:
            QuotaExceeded: it may not; the message names the quota.
        """
        if self == _NONE:
            return
        _lock(connection, tenant, now)
        self._check_active(active_jobs(connection, tenant))
        self._check_stored(stored_bytes(connection, tenant), 0)
        self._check_passes(passes_of(connection, tenant, now), passes, now)

    def check_storage(
        self, connection: sa.Connection, tenant: str, added: int, now: datetime
    ) -> None:
        """Check that the tenant may store so many more bytes.

        Raises:
            QuotaExceeded: it may not.
        """
        if self.max_storage_bytes is not None:
            _lock(connection, tenant, now)
            self._check_stored(stored_bytes(connection, tenant), added)

    def check_kept(self, connection: sa.Connection, tenant: str, now: datetime) -> None:
        """Check that what the tenant stores, this transaction included, is within its quota.

        Raises:
            QuotaExceeded: it is not.
        """
        if self.max_storage_bytes is not None:
            _lock(connection, tenant, now)
            stored = stored_bytes(connection, tenant)
            if stored > self.max_storage_bytes:
                raise QuotaExceeded(
                    f"storage: this would make {stored} of {self.max_storage_bytes} bytes "
                    "(delete datasets or prompts)"
                )

    def _check_active(self, active: int) -> None:
        if self.max_active_jobs is not None and active >= self.max_active_jobs:
            raise QuotaExceeded(
                f"active jobs: {active} of {self.max_active_jobs} wait, run or are paused "
                "(wait for one to end, or cancel one)",
                ACTIVE_RETRY_SECONDS,
            )

    def _check_stored(self, stored: int, added: int) -> None:
        limit = self.max_storage_bytes
        if limit is not None and (stored + added > limit or stored >= limit):
            more = f", and this needs {added}" if added else ""
            raise QuotaExceeded(
                f"storage: {stored} of {limit} bytes are used{more} (delete datasets or prompts)"
            )

    def _check_passes(self, used: int, wanted: int | None, now: datetime) -> None:
        limit = self.max_forward_passes
        if limit is None:
            return
        if used >= limit:
            raise QuotaExceeded(
                f"forward passes: {used} of {limit} are used this month (wait for the next month)",
                _seconds_left(now),
            )
        if wanted is not None and used + wanted > limit:
            raise QuotaExceeded(
                f"forward passes: {used} of {limit} are used this month, and this job may take "
                f"{wanted} (lower max_forward_passes, or wait for the next month)",
                _seconds_left(now),
            )


_NONE = Quotas()


class MeteredStore(TenantStore):
    """A store whose rows count against quotas, if any are given."""

    table: ClassVar[sa.Table]  #: One row per object

    def __init__(
        self,
        engine: sa.Engine,
        clock: Clock = utc_now,
        tenant: str | None = DEFAULT_TENANT,
        quotas: Quotas = _NONE,
    ) -> None:
        super().__init__(engine, clock, tenant)
        self._quotas = quotas

    def known(self, ids: Collection[str]) -> set[str]:
        """The ids that have a row."""
        found: set[str] = set()
        ordered = sorted(ids)
        with reading(self._engine) as connection:
            for start in range(0, len(ordered), MAX_PAGE):
                some = self.table.c.id.in_(ordered[start : start + MAX_PAGE])
                query = sa.select(self.table.c.id).where(some, self._own(self.table))
                found.update(connection.execute(query).scalars())
        return found

    def require_room(self, added: int = 0) -> None:
        """Check, before anything is received, that the tenant may store so many more bytes.

        Raises:
            QuotaExceeded: it may not.
        """
        if self._quotas.max_storage_bytes is not None:
            with writing(self._engine) as connection:
                self._quotas.check_storage(connection, self._owner, added, self._clock())


@dataclass(frozen=True)
class Usage:
    tenant: str
    month: str
    active_jobs: int
    storage_bytes: int
    forward_passes: int  #: In this month


class UsageStore(TenantStore):
    def get(self) -> Usage:
        now, tenant = self._clock(), self._owner
        with reading(self._engine) as connection:
            return Usage(
                tenant=tenant,
                month=month_of(now),
                active_jobs=active_jobs(connection, tenant),
                storage_bytes=stored_bytes(connection, tenant),
                forward_passes=passes_of(connection, tenant, now),
            )


def month_of(moment: datetime) -> str:
    return f"{moment:%Y-%m}"


def active_jobs(connection: sa.Connection, tenant: str) -> int:
    query = sa.select(sa.func.count()).select_from(jobs)
    active = owned(jobs, tenant) & jobs.c.status.not_in(TERMINAL)
    return int(connection.execute(query.where(active)).scalar_one())


def stored_bytes(connection: sa.Connection, tenant: str) -> int:
    return sum(
        int(
            connection.execute(
                sa.select(sa.func.coalesce(sa.func.sum(table.c.bytes), 0)).where(
                    owned(table, tenant)
                )
            ).scalar_one()
        )
        for table in (datasets, prompts)
    )


def passes_of(connection: sa.Connection, tenant: str, now: datetime) -> int:
    query = sa.select(tenant_usage.c.forward_passes).where(_row(tenant, now))
    return int(connection.execute(query).scalar_one_or_none() or 0)


def charge(connection: sa.Connection, tenant: str, passes: int, now: datetime) -> int:
    _lock(connection, tenant, now)
    update = (
        sa.update(tenant_usage)
        .where(_row(tenant, now))
        .values(forward_passes=tenant_usage.c.forward_passes + passes)
        .returning(tenant_usage.c.forward_passes)
    )
    return int(connection.execute(update).scalar_one())


def _lock(connection: sa.Connection, tenant: str, now: datetime) -> None:
    """Lock the tenant's row of this month until the transaction ends; create it if needed."""
    query = sa.select(tenant_usage.c.tenant).where(_row(tenant, now)).with_for_update()
    if connection.execute(query).one_or_none() is not None:
        return
    first = {"tenant": tenant, "month": month_of(now), "forward_passes": 0}
    try:
        with connection.begin_nested():
            connection.execute(sa.insert(tenant_usage).values(first))
    except sa.exc.IntegrityError:  # another transaction was first in this month
        connection.execute(query).one()


def _row(tenant: str, now: datetime) -> sa.ColumnElement[bool]:
    return (tenant_usage.c.tenant == tenant) & (tenant_usage.c.month == month_of(now))


def _seconds_left(now: datetime) -> int:
    year, month = divmod(now.year * 12 + now.month, 12)
    begin = now.replace(
        year=year, month=month + 1, day=1, hour=0, minute=0, second=0, microsecond=0
    )
    return int((begin - now).total_seconds()) + 1
