"""Connections and transactions, on SQLite and PostgreSQL alike.

`reading` and `writing` are the only two ways to a connection; both translate the driver's
"unavailable" into `StorageUnavailable`. On SQLite a writer takes the lock at once (BEGIN
IMMEDIATE): a transaction that reads first and writes later would fail as soon as two overlap.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import make_url

from sharpzo_core.errors import StorageFull, StorageUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sharpzo_core.settings import Settings

BUSY_SECONDS = 10  # how long a SQLite writer waits for another
CONNECT_SECONDS = 5  # how long a PostgreSQL connection may take to come up
WAL_RETRIES = 100  # switching a new file to WAL ignores the busy timeout
WAL_RETRY_SECONDS = 0.05

_WRITING = "sharpzo_writing"


def make_engine(settings: Settings) -> sa.Engine:
    """The engine of the configured database; nothing is connected yet."""
    url = make_url(settings.db_url)
    if url.get_backend_name() == "sqlite":
        return _sqlite_engine(url)
    return sa.create_engine(
        url,
        pool_pre_ping=True,
        pool_size=10,
        connect_args={"connect_timeout": CONNECT_SECONDS},
    )


def _sqlite_engine(url: sa.URL) -> sa.Engine:
    if url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(url, connect_args={"timeout": BUSY_SECONDS})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, record: object) -> None:  # noqa: ARG001
    connection.isolation_level = None  # transactions begin where we say
    connection.execute("PRAGMA foreign_keys = ON")
    # FULL: a commit that was acknowledged survives a loss of power.
    connection.execute("PRAGMA synchronous = FULL")
    for _ in range(WAL_RETRIES):
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            time.sleep(WAL_RETRY_SECONDS)
        else:
            return
    connection.execute("PRAGMA journal_mode = WAL")


def _begin_sqlite(connection: sa.Connection) -> None:
    writing = connection.get_execution_options().get(_WRITING, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


@contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A connection for queries, which see one state of the database."""
    with _translated(), engine.connect() as connection:
        yield connection


@contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """One transaction: committed at the end, rolled back by any exception."""
    writer = engine.execution_options(**{_WRITING: True})
    with _translated(), writer.begin() as connection:
        yield connection


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (sa.exc.OperationalError, sa.exc.TimeoutError) as error:
        if "disk is full" in str(error) or "No space left" in str(error):
            raise StorageFull("the database's disk is full") from error
        raise StorageUnavailable("the database does not answer") from error


def ping(engine: sa.Engine) -> None:
    """Ask the database for nothing.

    Raises:
        StorageUnavailable: it does not answer.
    """
    with reading(engine) as connection:
        connection.execute(sa.select(1))


def record(row: sa.Row[Any], **changes: object) -> dict[str, Any]:
    """The columns of a row by name, with some replaced."""
    return {**row._asdict(), **changes}
