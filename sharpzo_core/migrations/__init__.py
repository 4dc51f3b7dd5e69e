"""The database's history, applied by Alembic at start-up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import event

from sharpzo_core.db import make_engine, writing
from sharpzo_core.errors import SchemaTooNew
from sharpzo_core.sqlite import report_version

if TYPE_CHECKING:
    import sqlite3

    from sharpzo_core.settings import Settings

#: Key of the PostgreSQL advisory lock that lets one process migrate at a time.
_LOCK = 7_305_913_044


def migrate(settings: Settings) -> None:
    """Bring the database to the newest revision; safe if several processes start at once.

    Raises:
        SchemaTooNew: a newer version of this program has been here.
        StorageUnavailable: the database does not answer.
    """
    engine = migration_engine(settings)
    if engine.dialect.name == "sqlite":
        report_version()
    try:
        # SQLite's write lock is taken by the transaction itself; both kinds of database also roll
        # a half-applied revision back.
        with writing(engine) as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            upgrade(connection)
    finally:
        engine.dispose()


def migration_engine(settings: Settings) -> sa.Engine:
    """An engine for changing tables.

    SQLite changes a table by copying it and dropping the old one, which would take along the rows
    that refer to it.
    """
    engine = make_engine(settings)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _ignore_references)
    return engine


def _ignore_references(connection: sqlite3.Connection, record: object) -> None:  # noqa: ARG001
    connection.execute("PRAGMA foreign_keys = OFF")


def upgrade(connection: sa.Connection, revision: str = "head") -> None:
    """Apply what is missing, inside the caller's transaction.

    Raises:
        SchemaTooNew: a newer version of this program has been here.
    """
    config = Config()
    config.set_main_option("script_location", "sharpzo_core:migrations")
    config.attributes["connection"] = connection
    _refuse_newer(connection, ScriptDirectory.from_config(config))
    command.upgrade(config, revision)


def _refuse_newer(connection: sa.Connection, history: ScriptDirectory) -> None:
    known = {step.revision for step in history.walk_revisions()}
    for found in MigrationContext.configure(connection).get_current_heads():
        if found not in known:
            raise SchemaTooNew(found, history.get_current_head() or "none")
