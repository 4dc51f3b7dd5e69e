"""`DatasetLeases`: which API process unpacks a dataset, so that several can share a database.

A lease is short and renewed. Any process may take over a dataset whose lease has expired; every
write of a result names the owner, so the previous owner cannot damage the work of the new one.
"""

from collections.abc import Collection
from datetime import datetime, timedelta

import sqlalchemy as sa

from sharpzo_core.clock import Clock, utc_now
from sharpzo_core.database.engine import reading, writing
from sharpzo_core.database.tables import datasets
from sharpzo_core.records.datasets import DatasetStatus


class DatasetLeases:
    def __init__(
        self, engine: sa.Engine, owner: str, lease_seconds: float, clock: Clock = utc_now
    ) -> None:
        self._engine = engine
        self._owner = owner
        self._lease = timedelta(seconds=lease_seconds)
        self._clock = clock

    @property
    def owner(self) -> str:
        return self._owner

    def lock(self, connection: sa.Connection, dataset_id: str) -> None:
        update = sa.update(datasets).where(datasets.c.id == dataset_id)
        connection.execute(update.values(self._values(self._clock())))

    def renew(self, dataset_ids: Collection[str]) -> set[str]:
        if not dataset_ids:
            return set()
        update = sa.update(datasets).where(self._held(dataset_ids)).returning(datasets.c.id)
        with writing(self._engine) as connection:
            rows = connection.execute(update.values(self._values(self._clock())))
            return set(rows.scalars())

    def release(self, dataset_ids: Collection[str]) -> None:
        """Let another process continue with these at once."""
        if not dataset_ids:
            return
        update = sa.update(datasets).where(self._held(dataset_ids))
        with writing(self._engine) as connection:
            connection.execute(update.values(lease_expires_at=self._clock()))

    def abandoned(self) -> list[str]:
        """Datasets in processing without a valid lease, oldest first."""
        query = sa.select(datasets.c.id).where(self._abandoned()).order_by(datasets.c.id)
        with reading(self._engine) as connection:
            return list(connection.execute(query).scalars())

    def take(self, dataset_id: str) -> bool:
        """Lease an abandoned dataset; False if another process was faster."""
        update = sa.update(datasets).where(datasets.c.id == dataset_id, self._abandoned())
        with writing(self._engine) as connection:
            return connection.execute(update.values(self._values(self._clock()))).rowcount == 1

    def _values(self, now: datetime) -> dict[str, object]:
        return {"lease_owner": self._owner, "lease_expires_at": now + self._lease}

    def _held(self, dataset_ids: Collection[str]) -> sa.ColumnElement[bool]:
        return (
            datasets.c.id.in_(list(dataset_ids))
            & (datasets.c.lease_owner == self._owner)
            & (datasets.c.status == DatasetStatus.PROCESSING)
        )

    def _abandoned(self) -> sa.ColumnElement[bool]:
        now = self._clock()
        # A version without leases may have left a dataset without one.
        never_leased = datasets.c.lease_expires_at.is_(None) & (
            datasets.c.created_at <= now - self._lease
        )
        return (datasets.c.status == DatasetStatus.PROCESSING) & (
            (datasets.c.lease_expires_at <= now) | never_leased
        )
