"""Pages of a list, newest first, by cursor.

The cursor is the last id of a page, and the next page is what sorts below it. So however a list
changes while somebody reads it page by page:

- ids only descend: nothing is returned twice;
- what was there all the time is returned; that the cursor's own row was deleted does not matter;
- what was added meanwhile may be missing: usually it sorts above the cursor. It sorts below, and is
  returned once, if it comes from a process whose clock is behind, from the same millisecond, or
  from a transaction that began long ago.

Whoever wants to know what is new reads the list again from its start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import sqlalchemy as sa

from sharpzo_core.errors import ValidationFailed
from sharpzo_core.ids import Prefix, is_id

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

T = TypeVar("T")

MAX_PAGE = 1000


@dataclass(frozen=True)
class Listing(Generic[T]):
    """One page; `next` is the cursor of the following one, or None at the end."""

    items: list[T]
    next: str | None

    @property
    def has_more(self) -> bool:
        """Whether there is a following page."""
        return self.next is not None


def newest_first(
    connection: sa.Connection,
    table: sa.Table,
    prefix: Prefix,
    limit: int,
    after: str | None,
    read: Callable[[sa.Row[Any]], T],
    wanted: sa.ColumnElement[bool] | None = None,
    columns: Sequence[sa.ColumnElement[Any]] = (),
) -> Listing[T]:
    """Rows older than the one with id `after`, and `wanted`; ids sort by creation time.

    `read` gets the table's columns, and `columns` beside them.

    Raises:
        ValidationFailed: `after` is not a cursor of this list, or `limit` is out of range.
    """
    if after is not None and not is_id(prefix, after):
        raise ValidationFailed([("/after", "not a cursor of this list")])
    check_limit(limit)
    query = sa.select(table, *columns).order_by(table.c.id.desc()).limit(limit + 1)
    if after is not None:
        query = query.where(table.c.id < after)
    if wanted is not None:
        query = query.where(wanted)
    rows = connection.execute(query).all()
    more = len(rows) > limit
    return Listing([read(row) for row in rows[:limit]], rows[limit - 1].id if more else None)


def check_limit(limit: int) -> None:
    """A page may have so many items.

    Raises:
        ValidationFailed: `limit` is out of range.
    """
    if not 1 <= limit <= MAX_PAGE:
        raise ValidationFailed([("/limit", f"must be from 1 to {MAX_PAGE}")])


def known_ids(connection: sa.Connection, table: sa.Table, ids: Collection[str]) -> set[str]:
    """Those of the ids that the table has a row for."""
    found: set[str] = set()
    ordered = sorted(ids)
    for start in range(0, len(ordered), MAX_PAGE):
        some = table.c.id.in_(ordered[start : start + MAX_PAGE])
        found.update(connection.execute(sa.select(table.c.id).where(some)).scalars())
    return found
