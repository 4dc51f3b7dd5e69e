"""`PromptStore`: the only file with queries about prompts."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from sharpzo_core.clock import Clock, utc_now
from sharpzo_core.db import reading, record, writing
from sharpzo_core.errors import NotFound, StateConflict
from sharpzo_core.ids import Prefix, is_id
from sharpzo_core.listing import Listing, newest_first
from sharpzo_core.prompts import NewPrompt, PromptRecord
from sharpzo_core.tables import prompt_names, prompts

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

#: What a prompt, and so a job, may be called: it stands in URLs, before `:version` or `@alias`.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"

_REF = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{0,99})(:(?P<version>[1-9][0-9]{0,8}))?")


class PromptStore:
    """Immutable versions of tuned prompts, counted per name."""

    def __init__(self, engine: sa.Engine, clock: Clock = utc_now) -> None:
        self._engine = engine
        self._clock = clock

    def publish(
        self,
        prompt: NewPrompt,
        within: Callable[[sa.Connection, PromptRecord], None] | None = None,
    ) -> PromptRecord:
        """Store a prompt as the next version of its name; its file must already be stored.

        What `within` writes is stored with it or not at all.
        """
        with writing(self._engine) as connection:
            published = insert_prompt(connection, prompt, self._clock())
            if within is not None:
                within(connection, published)
            return published

    def get(self, ref: str) -> PromptRecord:
        """The prompt with this id, `name` (its newest version) or `name:version`.

        Raises:
            NotFound: there is none.
        """
        with reading(self._engine) as connection:
            return _get(connection, ref)

    def list(self, limit: int = 20, after: str | None = None) -> Listing[PromptRecord]:
        """A page of prompts, newest first.

        Raises:
            ValidationFailed: the cursor or the limit is wrong.
        """
        with reading(self._engine) as connection:
            return newest_first(connection, prompts, Prefix.PROMPT, limit, after, _read)

    def delete(self, ref: str) -> PromptRecord:
        """Forget one prompt and return what it was. Its file is the caller's to remove.

        Raises:
            NotFound: there is none.
            StateConflict: a bare name has several versions. Repeating such a request, as clients
                do when an answer was lost, would delete them one after the other.
        """
        with writing(self._engine) as connection:
            prompt = _get(connection, ref)
            if ref == prompt.name and _versions(connection, ref) > 1:
                raise StateConflict(
                    f"{ref} has several versions (say which: {ref}:{prompt.version}, or the id)"
                )
            connection.execute(sa.delete(prompts).where(prompts.c.id == prompt.id))
            return prompt


def insert_prompt(connection: sa.Connection, prompt: NewPrompt, now: datetime) -> PromptRecord:
    """Publish inside the caller's transaction."""
    version = _next_version(connection, prompt.name)
    published = PromptRecord(**vars(prompt), version=version, created_at=now)
    values = vars(published) | {
        "classes": list(prompt.classes),
        "backbone": dict(prompt.backbone),
        "metrics": dict(prompt.metrics),
    }
    connection.execute(sa.insert(prompts).values(values))
    return published


def _next_version(connection: sa.Connection, name: str) -> int:
    """Count the name up; the row stays locked until the transaction ends."""
    count_up = (
        sa.update(prompt_names)
        .where(prompt_names.c.name == name)
        .values(last_version=prompt_names.c.last_version + 1)
        .returning(prompt_names.c.last_version)
    )
    version = connection.execute(count_up).scalar_one_or_none()
    if version is not None:
        return int(version)
    try:
        with connection.begin_nested():
            connection.execute(sa.insert(prompt_names).values(name=name, last_version=1))
    except sa.exc.IntegrityError:  # another transaction was first with this name
        return int(connection.execute(count_up).scalar_one())
    return 1


def _get(connection: sa.Connection, ref: str) -> PromptRecord:
    query = _query(ref)
    row = None if query is None else connection.execute(query).one_or_none()
    if row is None:
        raise NotFound("prompt", ref)
    return _read(row)


def _versions(connection: sa.Connection, name: str) -> int:
    query = sa.select(sa.func.count()).select_from(prompts).where(prompts.c.name == name)
    return int(connection.execute(query).scalar_one())


def _query(ref: str) -> sa.Select[Any] | None:
    if is_id(Prefix.PROMPT, ref):
        return sa.select(prompts).where(prompts.c.id == ref)
    match = _REF.fullmatch(ref)
    if match is None:
        return None
    query = sa.select(prompts).where(prompts.c.name == match["name"])
    if match["version"] is not None:
        return query.where(prompts.c.version == int(match["version"]))
    return query.order_by(prompts.c.version.desc()).limit(1)


def _read(row: sa.Row[Any]) -> PromptRecord:
    return PromptRecord(**record(row, classes=tuple(row.classes)))
