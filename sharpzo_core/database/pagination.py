"""Pages of a list, newest first, by cursor.

The cursor is the last id of a page, and the next page holds the rows that sort below it. So while a
list changes as it is read page by page:

- ids only descend: no row is returned twice;
- rows that exist all the time are returned, even if the cursor's own row is deleted;
- rows added meanwhile may be missing: usually they sort above the cursor. They sort below it, and
  are returned once, if they come from a process whose clock is behind, from the same millisecond,
  or from a transaction that began long ago.

To see what is new, read the list again from its start.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import sqlalchemy as sa

from sharpzo_core.errors import ValidationFailed
from sharpzo_core.ids import Prefix, is_id

T = TypeVar("T")

MAX_PAGE = 1000


@dataclass(frozen=True)
class Listing(Generic[T]):
    items: list[T]
    next: str | None

    @property
    def has_more(self) -> bool:
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
    """Rows older than the one with id `after` that are `wanted`; ids sort by creation time.

    `read` receives the table's columns and the extra `columns`.

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
    """Check that a page may have `limit` items.

    Raises:
        ValidationFailed: `limit` is out of range.
    """
    if not 1 <= limit <= MAX_PAGE:
        raise ValidationFailed([("/limit", f"must be from 1 to {MAX_PAGE}")])
