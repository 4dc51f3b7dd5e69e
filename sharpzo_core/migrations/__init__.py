"""The database's history, applied by Alembic at start-up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from sharpzo_core.db import make_engine, writing

if TYPE_CHECKING:
    from sharpzo_core.settings import Settings

#: Key of the PostgreSQL advisory lock that lets one process migrate at a time.
_LOCK = 7_305_913_044


def migrate(settings: Settings) -> None:
    """Bring the database to the newest revision; safe if several processes start at once.

    Raises:
        StorageUnavailable: the database does not answer.
    """
    engine = make_engine(settings)
    try:
        # SQLite's write lock is taken by the transaction itself; both kinds of database also roll
        # a half-applied revision back.
        with writing(engine) as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            upgrade(connection)
    finally:
        engine.dispose()


def upgrade(connection: sa.Connection, revision: str = "head") -> None:
    """Apply what is missing, inside the caller's transaction."""
    config = Config()
    config.set_main_option("script_location", "sharpzo_core:migrations")
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
