"""Schema migrations, applied by Alembic at start-up."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import event

from sharpzo_core.database.engine import make_engine, writing
from sharpzo_core.errors import SchemaTooNew, ValidationFailed

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

    from sharpzo_core.settings import Settings

#: Key of the PostgreSQL advisory lock that lets one process migrate at a time.
_LOCK = 7_305_913_044


def migrate(settings: Settings) -> None:
    """Bring the database to the newest revision; safe if several processes start at once.

    Raises:
        SchemaTooNew: a newer version of this program has migrated the database.
        StorageUnavailable: the database does not answer.
    """
    with _changing(settings) as connection:
        upgrade(connection)


def downgrade(settings: Settings, revision: str) -> None:
    """Downgrade the database to an earlier revision, for an older version of this program.

    Raises:
        ValidationFailed: there is no such revision, or the database has not reached it.
        SchemaTooNew: a newer version of this program has migrated the database.
        StorageUnavailable: the database does not answer.
    """
    with _changing(settings) as connection:
        config = _config(connection)
        history = ScriptDirectory.from_config(config)
        _refuse_newer(connection, history)
        heads = MigrationContext.configure(connection).get_current_heads()
        reached = {step.revision for step in history.iterate_revisions(heads, "base")}
        if revision not in reached:
            known = ", ".join(sorted(reached)) or "none"
            raise ValidationFailed([("", f"revision {revision} is not one of: {known}")])
        command.downgrade(config, revision)


@contextmanager
def _changing(settings: Settings) -> Iterator[sa.Connection]:
    engine = migration_engine(settings)
    try:
        # On SQLite the transaction itself takes the write lock. Both databases roll back a
        # revision that was applied only in part.
        with writing(engine) as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            yield connection
    finally:
        engine.dispose()


def migration_engine(settings: Settings) -> sa.Engine:
    """An engine for changing tables.

    SQLite changes a table by copying it and dropping the old one, which would delete the rows that
    refer to it.
    """
    engine = make_engine(settings)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _ignore_references)
    return engine


def _ignore_references(connection: sqlite3.Connection, record: object) -> None:  # noqa: ARG001
    connection.execute("PRAGMA foreign_keys = OFF")


def upgrade(connection: sa.Connection, revision: str = "head") -> None:
    """Apply missing revisions, inside the caller's transaction.

    Raises:
        SchemaTooNew: a newer version of this program has migrated the database.
    """
    config = _config(connection)
    _refuse_newer(connection, ScriptDirectory.from_config(config))
    command.upgrade(config, revision)


def _config(connection: sa.Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", "sharpzo_core:migrations")
    config.attributes["connection"] = connection
    return config


def _refuse_newer(connection: sa.Connection, history: ScriptDirectory) -> None:
    known = {step.revision for step in history.walk_revisions()}
    for found in MigrationContext.configure(connection).get_current_heads():
        if found not in known:
            raise SchemaTooNew(found, history.get_current_head() or "none")
