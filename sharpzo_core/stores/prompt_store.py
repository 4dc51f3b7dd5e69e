"""`PromptStore`: the versions of prompts. Aliases are in `alias_store.py`."""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from sharpzo_core.database.engine import reading, record, writing
from sharpzo_core.database.pagination import Listing, newest_first
from sharpzo_core.database.tables import aliases, jobs, prompt_names, prompts
from sharpzo_core.database.tenants import owned
from sharpzo_core.errors import NotFound, PromptInUse, StateConflict
from sharpzo_core.ids import Prefix, is_id
from sharpzo_core.records.aliases import is_alias
from sharpzo_core.records.jobs import TERMINAL
from sharpzo_core.records.prompts import NewPrompt, PromptRecord
from sharpzo_core.stores.quotas import MeteredStore

_REF = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{0,99})"
    r"(:(?P<version>[1-9][0-9]{0,8})|@(?P<alias>[A-Za-z0-9._-]{1,100}))?"
)

#: The aliases that point to a prompt, as one text; aliases contain no spaces.
_ALIASES = (
    sa.select(sa.func.aggregate_strings(aliases.c.alias, " "))
    .where(aliases.c.prompt_id == prompts.c.id, aliases.c.tenant == prompts.c.tenant)
    .scalar_subquery()
    .label("aliases")
)


class PromptStore(MeteredStore):
    """Immutable versions of tuned prompts, numbered per name."""

    table = prompts

    def publish(
        self,
        prompt: NewPrompt,
        in_transaction: Callable[[sa.Connection, PromptRecord], None] | None = None,
    ) -> PromptRecord:
        """Store a prompt as the next version of its name; its file must already be stored.

        What `in_transaction` writes is committed with it.

        Raises:
            QuotaExceeded: the tenant may not store that much.
        """
        with writing(self._engine) as connection:
            now = self._clock()
            self._quotas.check_storage(connection, self._owner, prompt.bytes, now)
            published = insert_prompt(connection, prompt, self._owner, now)
            if in_transaction is not None:
                in_transaction(connection, published)
            return published

    def get(self, ref: str) -> PromptRecord:
        """The prompt with this id, `name` (its newest version), `name:version` or `name@alias`.

        Raises:
            NotFound: there is none.
        """
        with reading(self._engine) as connection:
            return get_prompt(connection, ref, self._tenant)

    def list(
        self, limit: int = 20, after: str | None = None, name: str | None = None
    ) -> Listing[PromptRecord]:
        """A page of prompts, or of the versions of one name, newest first.

        Raises:
            ValidationFailed: the cursor or the limit is wrong.
        """
        wanted = self._own(prompts)
        if name is not None:
            wanted &= prompts.c.name == name
        with reading(self._engine) as connection:
            return newest_first(
                connection, prompts, Prefix.PROMPT, limit, after, _read, wanted, (_ALIASES,)
            )

    def pin(self, ref: str, *, pinned: bool = True) -> PromptRecord:
        """Set whether every API process keeps the prompt in memory.

        Raises:
            NotFound: there is none.
        """
        with writing(self._engine) as connection:
            prompt = get_prompt(connection, ref, self._tenant)
            update = sa.update(prompts).where(prompts.c.id == prompt.id, self._own(prompts))
            connection.execute(update.values(pinned=pinned))
            return get_prompt(connection, prompt.id, self._tenant)

    def pinned(self) -> Sequence[PromptRecord]:
        query = sa.select(prompts, _ALIASES).where(prompts.c.pinned, self._own(prompts))
        query = query.order_by(prompts.c.id)
        with reading(self._engine) as connection:
            return [_read(row) for row in connection.execute(query)]

    def delete(self, ref: str) -> PromptRecord:
        """Delete one prompt and return its record. The caller removes its file.

        Raises:
            NotFound: there is none.
            StateConflict: a bare name has several versions. A client that repeats such a request,
                because the answer was lost, would delete one after the other.
            PromptInUse: an alias points to it, or a job that has not ended uses it.
        """
        with writing(self._engine) as connection:
            prompt = get_prompt(connection, ref, self._tenant)
            if ref == prompt.name and self._versions(connection, ref) > 1:
                raise StateConflict(
                    f"{ref} has several versions (name one: {ref}:{prompt.version}, or the id)"
                )
            prompt = lock_prompt(connection, prompt.id, self._tenant, exclusively=True)
            _require_no_alias(prompt)
            _require_no_job(connection, prompt)
            mine = (prompts.c.id == prompt.id) & self._own(prompts)
            connection.execute(sa.delete(prompts).where(mine))
            return prompt

    def _versions(self, connection: sa.Connection, name: str) -> int:
        query = sa.select(sa.func.count()).select_from(prompts)
        mine = (prompts.c.name == name) & self._own(prompts)
        return int(connection.execute(query.where(mine)).scalar_one())


def get_prompt(connection: sa.Connection, ref: str, tenant: str | None) -> PromptRecord:
    """The tenant's prompt of this ref; without a tenant the ref must be an id.

    Raises:
        NotFound: there is none.
    """
    query = _query(ref, tenant)
    row = None if query is None else connection.execute(query).one_or_none()
    if row is None:
        raise NotFound("prompt", ref)
    return _read(row)


def lock_prompt(
    connection: sa.Connection, prompt_id: str, tenant: str | None, *, exclusively: bool = False
) -> PromptRecord:
    """The prompt, locked against deletion until this transaction ends.

    Raises:
        NotFound: there is none with this id.
    """
    lock = sa.select(prompts.c.id).where(prompts.c.id == prompt_id, owned(prompts, tenant))
    connection.execute(lock.with_for_update(read=not exclusively))
    # Read after the lock is taken, to see what was written while waiting for it.
    return get_prompt(connection, prompt_id, tenant)


def insert_prompt(
    connection: sa.Connection, prompt: NewPrompt, tenant: str, now: datetime
) -> PromptRecord:
    """Publish a prompt inside the caller's transaction."""
    version = _next_version(connection, prompt.name, tenant)
    lineage = _with_parent(connection, prompt.lineage, tenant)
    values = vars(prompt) | {"lineage": lineage, "version": version, "created_at": now}
    values["tenant"] = tenant
    row = values | {
        "classes": list(prompt.classes),
        "backbone": dict(prompt.backbone),
        "metrics": dict(prompt.metrics),
    }
    connection.execute(sa.insert(prompts).values(row))
    return PromptRecord(**values)


def _with_parent(
    connection: sa.Connection, lineage: Mapping[str, Any], tenant: str
) -> dict[str, Any]:
    """Add the prompt that the continued job has published, if it has by now."""
    origin = lineage.get("from_checkpoint")
    if origin is None:
        return dict(lineage)
    query = sa.select(jobs.c.prompt_id).where(jobs.c.id == origin, owned(jobs, tenant))
    return {**lineage, "parent": connection.execute(query).scalar_one_or_none()}


def _next_version(connection: sa.Connection, name: str, tenant: str) -> int:
    increment = (
        sa.update(prompt_names)
        .where(prompt_names.c.name == name, owned(prompt_names, tenant))
        .values(last_version=prompt_names.c.last_version + 1)
        .returning(prompt_names.c.last_version)
    )
    version = connection.execute(increment).scalar_one_or_none()
    if version is not None:
        return int(version)
    try:
        with connection.begin_nested():
            first = {"tenant": tenant, "name": name, "last_version": 1}
            connection.execute(sa.insert(prompt_names).values(first))
    except sa.exc.IntegrityError:  # another transaction was first with this name
        return int(connection.execute(increment).scalar_one())
    return 1


def _require_no_alias(prompt: PromptRecord) -> None:
    if prompt.aliases:
        refs = ", ".join(f"{prompt.name}@{alias}" for alias in prompt.aliases)
        raise PromptInUse(f"aliases point to this prompt: {refs} (move or delete them first)")


def _require_no_job(connection: sa.Connection, prompt: PromptRecord) -> None:
    using = sa.select(jobs.c.id).where(
        jobs.c.prompt_id == prompt.id,
        jobs.c.status.not_in(TERMINAL),
        owned(jobs, prompt.tenant),
    )
    job_id = connection.execute(using.order_by(jobs.c.id).limit(1)).scalar_one_or_none()
    if job_id is not None:
        raise PromptInUse(f"{job_id} uses this prompt (cancel that job or let it end first)")


def _query(ref: str, tenant: str | None) -> sa.Select[Any] | None:
    query = sa.select(prompts, _ALIASES).where(owned(prompts, tenant))
    if is_id(Prefix.PROMPT, ref):
        return query.where(prompts.c.id == ref)
    match = _REF.fullmatch(ref)
    if match is None or tenant is None:  # a name alone does not identify the tenant
        return None
    name, version, alias = match["name"], match["version"], match["alias"]
    if alias is not None:
        pointed = sa.select(aliases.c.prompt_id).where(
            aliases.c.name == name, aliases.c.alias == alias, owned(aliases, tenant)
        )
        return query.where(prompts.c.id == pointed.scalar_subquery()) if is_alias(alias) else None
    query = query.where(prompts.c.name == name)
    if version is not None:
        return query.where(prompts.c.version == int(version))
    return query.order_by(prompts.c.version.desc()).limit(1)


def _read(row: sa.Row[Any]) -> PromptRecord:
    aliases = tuple(sorted((row.aliases or "").split()))
    return PromptRecord(**record(row, classes=tuple(row.classes), aliases=aliases))
