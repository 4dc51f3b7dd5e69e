"""`WorkerStore`: heartbeats of worker processes."""

from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

from sharpzo_core.clock import Clock, utc_now
from sharpzo_core.database.engine import reading, record, writing
from sharpzo_core.database.tables import workers


@dataclass(frozen=True, kw_only=True)
class WorkerRecord:
    id: str
    hostname: str
    pid: int
    started_at: datetime
    seen_at: datetime


class WorkerStore:
    def __init__(self, engine: sa.Engine, clock: Clock = utc_now) -> None:
        self._engine = engine
        self._clock = clock

    def beat(self, worker_id: str, hostname: str, pid: int) -> None:
        now = self._clock()
        with writing(self._engine) as connection:
            seen = sa.update(workers).where(workers.c.id == worker_id).values(seen_at=now)
            if connection.execute(seen).rowcount == 0:
                row = WorkerRecord(
                    id=worker_id, hostname=hostname, pid=pid, started_at=now, seen_at=now
                )
                connection.execute(sa.insert(workers).values(vars(row)))

    def leave(self, worker_id: str) -> None:
        with writing(self._engine) as connection:
            connection.execute(sa.delete(workers).where(workers.c.id == worker_id))

    def active(self, within_seconds: float) -> list[WorkerRecord]:
        """Workers with a heartbeat in the last `within_seconds`."""
        limit = self._clock() - timedelta(seconds=within_seconds)
        query = sa.select(workers).where(workers.c.seen_at >= limit).order_by(workers.c.id)
        with reading(self._engine) as connection:
            return [WorkerRecord(**record(row)) for row in connection.execute(query)]

    def delete_silent(self, after_seconds: float) -> int:
        """Delete workers without a heartbeat for so long; returns how many."""
        limit = self._clock() - timedelta(seconds=after_seconds)
        with writing(self._engine) as connection:
            return connection.execute(sa.delete(workers).where(workers.c.seen_at < limit)).rowcount
