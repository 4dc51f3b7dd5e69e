"""`AliasStore`: the moves of aliases, and their history.

Every move is one transaction that locks the alias's row: it numbers and appends an entry to the
history and changes where the alias points, so that the history is a chain without gaps.

The history is also the stack for rollbacks. The entry of a rollback replaces the one that it
returned to: its `beneath` is that entry's `beneath`. So a second rollback goes further back, and no
entry is ever removed.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from sharpzo_core.database.engine import as_record, reading, record, writing
from sharpzo_core.database.pagination import Listing, check_limit
from sharpzo_core.database.tables import alias_changes, aliases, prompts
from sharpzo_core.database.tenants import TenantStore, owned
from sharpzo_core.errors import AliasAmbiguous, NotFound, NothingToRollBack, ValidationFailed
from sharpzo_core.records.aliases import (
    AliasAction,
    AliasChange,
    AliasHistory,
    AliasRecord,
    AliasRef,
    Expected,
    Gate,
)
from sharpzo_core.records.prompts import PromptRecord
from sharpzo_core.stores.prompt_store import get_prompt, lock_prompt

_NAMED = 10  # names that the error of an ambiguous alias lists
_MAX_DIGITS = 18  # of a cursor; what a database column holds
_MISNAMED = (
    "must be letters, digits, dots, dashes and underscores, not digits alone (production), "
    "perhaps after a name (clothing@production)"
)


class AliasStore(TenantStore):
    def set(
        self,
        alias: str,
        prompt_id: str,
        *,
        gate: Gate | None = None,
        expected: Expected | None = None,
        comment: str | None = None,
    ) -> AliasRecord:
        """Point `alias` or `name@alias` to a prompt; repeating that changes nothing.

        Raises:
            ValidationFailed: the alias is not valid, or the prompt has another name.
            NotFound: there is no such prompt.
            AliasMoved: the alias does not point where expected.
            GateFailed: the prompt does not reach the required score.
        """
        ref = AliasRef.parse(alias)
        if ref is None:
            raise ValidationFailed([("/alias", _MISNAMED)])
        with writing(self._engine) as connection:
            name = get_prompt(connection, prompt_id, self._tenant).name
            if ref.name not in (None, name):
                message = f"belongs to {ref.name}, but the prompt is a version of {name}"
                raise ValidationFailed([("/alias", message)])
            place = self._lock_or_insert(connection, name, ref.alias)
            prompt = lock_prompt(connection, prompt_id, self._tenant)
            if place.prompt_id == prompt.id:
                return _read(place)
            if expected is not None:
                expected.check(place.prompt_id)
            current = self._pointed(connection, place)
            move = _next(place, AliasAction.SET, prompt, self._clock(), comment)
            if gate is not None:
                move = replace(move, gate=gate.check(prompt, current))
            return _read(_append(connection, move))

    def rollback(
        self,
        alias: str,
        *,
        expected: Expected | None = None,
        comment: str | None = None,
        in_transaction: Callable[[sa.Connection, AliasRecord], None] | None = None,
    ) -> AliasRecord:
        """Point the alias back to the previous prompt, like an undo.

        Deleted prompts are skipped. What `in_transaction` writes is committed with it.

        Raises:
            NotFound: there is no such alias.
            AliasAmbiguous: several names have it.
            AliasMoved: it does not point where expected.
            NothingToRollBack: there is no earlier prompt.
        """
        with writing(self._engine) as connection:
            place = self._lock(connection, alias)
            if expected is not None:
                expected.check(place.prompt_id)
            prompt, beneath = _find_beneath(connection, place)
            move = _next(place, AliasAction.ROLLBACK, prompt, self._clock(), comment)
            moved = _read(_append(connection, replace(move, beneath=beneath)))
            if in_transaction is not None:
                in_transaction(connection, moved)
            return moved

    def delete(self, alias: str) -> None:
        """Delete the alias. Its history is kept, and continues if it is set again.

        Raises:
            NotFound: there is no such alias.
            AliasAmbiguous: several names have it.
        """
        with writing(self._engine) as connection:
            place = self._lock(connection, alias)
            _append(connection, _next(place, AliasAction.DELETED, None, self._clock(), None))

    def list(
        self, limit: int = 20, after: str | None = None, name: str | None = None
    ) -> Listing[AliasRecord]:
        """A page of aliases, or of those of one name, sorted by name and alias.

        Raises:
            ValidationFailed: the cursor or the limit is wrong.
        """
        check_limit(limit)
        place = sa.tuple_(aliases.c.name, aliases.c.alias)
        query = sa.select(aliases).where(aliases.c.prompt_id.is_not(None), self._own(aliases))
        if name is not None:
            query = query.where(aliases.c.name == name)
        if after is not None:
            ref = AliasRef.parse(after)
            if ref is None or ref.name is None:
                raise ValidationFailed([("/after", "not a cursor of this list")])
            query = query.where(place > (ref.name, ref.alias))
        query = query.order_by(aliases.c.name, aliases.c.alias).limit(limit + 1)
        with reading(self._engine) as connection:
            found = [_read(row) for row in connection.execute(query)]
        return Listing(found[:limit], found[limit - 1].ref if len(found) > limit else None)

    def get(
        self,
        alias: str,
        *,
        at: datetime | None = None,
        limit: int = 20,
        after: str | None = None,
    ) -> AliasHistory:
        """Where the alias points, or pointed `at` that time, and a page of its history until then.

        Raises:
            NotFound: there is no such alias, or there was none at that time.
            AliasAmbiguous: several names have it.
            ValidationFailed: the cursor or the limit is wrong.
        """
        check_limit(limit)
        with reading(self._engine) as connection:
            found = self._find(connection, alias, at)
            query = sa.select(alias_changes).where(
                alias_changes.c.name == found.name,
                alias_changes.c.alias == found.alias,
                alias_changes.c.seq <= found.seq,
                self._own(alias_changes),
            )
            if after is not None:
                query = query.where(alias_changes.c.seq < _parse_cursor(after))
            query = query.order_by(alias_changes.c.seq.desc()).limit(limit + 1)
            changes = [_read_change(row) for row in connection.execute(query)]
        more = len(changes) > limit
        page = Listing(changes[:limit], str(changes[limit - 1].seq) if more else None)
        return AliasHistory(found, page)

    def _pointed(self, connection: sa.Connection, place: sa.Row[Any]) -> PromptRecord | None:
        if place.prompt_id is None:
            return None
        return get_prompt(connection, place.prompt_id, self._tenant)

    def _find(
        self, connection: sa.Connection, text: str, at: datetime | None = None
    ) -> AliasRecord:
        """The one alias of this text, as it is or was.

        Raises:
            NotFound: there is none.
            AliasAmbiguous: several names have it.
        """
        ref = AliasRef.parse(text)
        if ref is None:
            raise NotFound("alias", text)
        query = self._in_force(ref) if at is None else self._in_force_at(ref, at)
        found = [_read(row) for row in connection.execute(query.order_by("name").limit(_NAMED + 1))]
        if not found:
            raise NotFound("alias", text)
        if len(found) > 1:
            raise _ambiguous(ref.alias, found)
        return found[0]

    def _in_force(self, ref: AliasRef) -> sa.Select[Any]:
        query = sa.select(aliases).where(
            aliases.c.alias == ref.alias, aliases.c.prompt_id.is_not(None), self._own(aliases)
        )
        return query if ref.name is None else query.where(aliases.c.name == ref.name)

    def _in_force_at(self, ref: AliasRef, at: datetime) -> sa.Select[Any]:
        """The last entry of each name's history until that time, as a row of `aliases`."""
        mine = self._own(alias_changes)
        names = sa.select(aliases.c.name).where(aliases.c.alias == ref.alias, self._own(aliases))
        if ref.name is not None:
            names = names.where(aliases.c.name == ref.name)
        change = alias_changes.c
        last = (
            sa.select(change.name, sa.func.max(change.seq).label("seq"))
            .where(change.name.in_(names), change.alias == ref.alias, change.created_at <= at, mine)
            .group_by(change.name)
            .subquery()
        )
        return (
            sa.select(
                change.name,
                change.alias,
                change.prompt_id,
                change.version,
                change.seq.label("last_seq"),
                change.created_at.label("updated_at"),
            )
            .join(last, (change.name == last.c.name) & (change.seq == last.c.seq))
            .where(change.alias == ref.alias, change.prompt_id.is_not(None), mine)
        )

    def _lock(self, connection: sa.Connection, text: str) -> sa.Row[Any]:
        """The alias's row, locked for this transaction."""
        found = self._find(connection, text)
        place = connection.execute(self._locked(found.name, found.alias)).one()
        if place.prompt_id is None:  # deleted while we waited for the lock
            raise NotFound("alias", text)
        return place

    def _lock_or_insert(self, connection: sa.Connection, name: str, alias: str) -> sa.Row[Any]:
        """The row of an alias that may never have been set, locked."""
        place = connection.execute(self._locked(name, alias)).one_or_none()
        if place is not None:
            return place
        first = {
            "tenant": self._owner,
            "name": name,
            "alias": alias,
            "last_seq": 0,
            "updated_at": self._clock(),
        }
        try:
            with connection.begin_nested():
                connection.execute(sa.insert(aliases).values(first))
        except sa.exc.IntegrityError:  # another transaction was first with this alias
            pass
        return connection.execute(self._locked(name, alias)).one()

    def _locked(self, name: str, alias: str) -> sa.Select[Any]:
        query = sa.select(aliases).where(
            aliases.c.name == name, aliases.c.alias == alias, self._own(aliases)
        )
        return query.with_for_update()


def _ambiguous(alias: str, found: Sequence[AliasRecord]) -> AliasAmbiguous:
    refs = ", ".join(place.ref for place in found[:_NAMED])
    more = ", …" if len(found) > _NAMED else ""
    return AliasAmbiguous(f"several names have the alias {alias} (name one: {refs}{more})")


def _find_beneath(connection: sa.Connection, place: sa.Row[Any]) -> tuple[PromptRecord, int]:
    """The prompt that a rollback returns to, and the entry that is then beneath.

    Raises:
        NothingToRollBack: there is none.
    """
    query = _below(place)
    while (found := connection.execute(query).first()) is not None:
        try:
            return lock_prompt(connection, found.prompt_id, place.tenant), found.beneath
        except NotFound:  # deleted since the query: try again
            continue
    raise NothingToRollBack(f"{place.name}@{place.alias} has no earlier prompt that still exists")


def _below(place: sa.Row[Any]) -> sa.Select[Any]:
    change = alias_changes.c
    of_alias = (change.name == place.name) & (change.alias == place.alias)
    of_alias &= owned(alias_changes, place.tenant)
    columns = (change.seq, change.prompt_id, change.beneath)
    stack = sa.select(*columns).where(of_alias, change.seq == place.last_seq).cte(recursive=True)
    stack = stack.union_all(sa.select(*columns).where(of_alias, change.seq == stack.c.beneath))
    return (
        sa.select(stack.c.prompt_id, stack.c.beneath)
        .join(prompts, prompts.c.id == stack.c.prompt_id)
        .where(prompts.c.id != place.prompt_id, owned(prompts, place.tenant))
        .order_by(stack.c.seq.desc())
        .limit(1)
    )


def _next(
    place: sa.Row[Any],
    action: AliasAction,
    prompt: PromptRecord | None,
    now: datetime,
    comment: str | None,
) -> AliasChange:
    """The next entry; beneath it is the current one."""
    return AliasChange(
        tenant=place.tenant,
        name=place.name,
        alias=place.alias,
        seq=place.last_seq + 1,
        action=action,
        prompt_id=None if prompt is None else prompt.id,
        version=None if prompt is None else prompt.version,
        previous_prompt_id=place.prompt_id,
        beneath=place.last_seq,
        comment=comment,
        gate=None,
        # A process whose clock is behind must not make the past ambiguous.
        created_at=max(now, place.updated_at),
    )


def _append(connection: sa.Connection, change: AliasChange) -> sa.Row[Any]:
    update = (
        sa.update(aliases)
        .where(
            aliases.c.name == change.name,
            aliases.c.alias == change.alias,
            owned(aliases, change.tenant),
        )
        .values(
            prompt_id=change.prompt_id,
            version=change.version,
            last_seq=change.seq,
            updated_at=change.created_at,
        )
        .returning(aliases)
    )
    connection.execute(sa.insert(alias_changes).values(vars(change)))
    return connection.execute(update).one()


def _read(row: sa.Row[Any]) -> AliasRecord:
    return as_record(AliasRecord, row, seq=row.last_seq)


def _read_change(row: sa.Row[Any]) -> AliasChange:
    return AliasChange(**record(row, action=AliasAction(row.action)))


def _parse_cursor(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise ValidationFailed([("/after", "not a cursor of this list")])
    return int(text)
