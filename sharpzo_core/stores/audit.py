"""The audit log: who requested what, with which result. Entries are never changed."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from sharpzo_core.database.engine import reading, record, writing
from sharpzo_core.database.pagination import Listing, newest_first
from sharpzo_core.database.tables import audit_log
from sharpzo_core.database.tenants import DEFAULT_TENANT, TenantStore
from sharpzo_core.ids import Prefix


@dataclass(frozen=True, kw_only=True)
class AuditEntry:
    id: str
    tenant: str = DEFAULT_TENANT  #: The default tenant if the caller is unknown
    at: datetime
    key_id: str | None  #: None if there was no valid key
    method: str
    route: str | None  #: The path template; None if there is no such route
    object_id: str | None  #: The object of the request
    status: int
    code: str | None  #: Of the error
    request_id: str
    address: str | None  #: Of the client


class AuditStore(TenantStore):
    def append(self, entries: Sequence[AuditEntry]) -> None:
        rows = [vars(entry) for entry in entries]
        with writing(self._engine) as connection:
            stored = sa.select(audit_log.c.id).where(audit_log.c.id.in_([e.id for e in entries]))
            kept = set(connection.execute(stored).scalars())
            fresh = [row for row in rows if row["id"] not in kept]
            if fresh:
                connection.execute(sa.insert(audit_log), fresh)

    def list(
        self, limit: int = 20, after: str | None = None, key_id: str | None = None
    ) -> Listing[AuditEntry]:
        """A page of entries, or of those of one key, newest first.

        Raises:
            ValidationFailed: the cursor or the limit is wrong.
        """
        wanted = self._own(audit_log)
        if key_id is not None:
            wanted &= audit_log.c.key_id == key_id
        with reading(self._engine) as connection:
            return newest_first(connection, audit_log, Prefix.AUDIT, limit, after, _read, wanted)

    def delete_before(self, moment: datetime) -> int:
        with writing(self._engine) as connection:
            old = sa.delete(audit_log).where(audit_log.c.at < moment)
            return connection.execute(old).rowcount


def _read(row: sa.Row[Any]) -> AuditEntry:
    return AuditEntry(**record(row))
