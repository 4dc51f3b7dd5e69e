"""Connections and transactions, on SQLite and PostgreSQL alike.

`reading` and `writing` are the only two ways to a connection; both translate the driver's errors
for a database that is down, busy, full, read-only or damaged. On SQLite a writer takes the lock at
once: a transaction that reads first and writes later would fail as soon as two overlap.
"""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import make_url

from sharpzo_core.database.sqlite import WriteLock, prepare, primary_code
from sharpzo_core.errors import CoreError, StorageBusy, StorageFull, StorageUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg
    from _typeshed import DataclassInstance

    from sharpzo_core.settings import Settings

R = TypeVar("R", bound="DataclassInstance")

CONNECT_SECONDS = 5  # to open a connection to PostgreSQL
#: How long a process that is stopped during a transaction keeps its locks.
IDLE_SECONDS = 30

#: Execution options: an engine's lock, and the deadline of a transaction that waits for it.
_LOCK, _WRITE_BY = "sharpzo_lock", "sharpzo_write_by"

#: SQLSTATE codes of PostgreSQL.
_DISK_FULL, _READ_ONLY = "53100", "25006"


def make_engine(settings: Settings) -> sa.Engine:
    """The engine of the configured database; it does not connect yet."""
    url = make_url(settings.db_url)
    if url.get_backend_name() == "sqlite":
        return _sqlite_engine(url)
    engine = sa.create_engine(
        url,
        pool_pre_ping=True,
        pool_size=10,
        connect_args={"connect_timeout": CONNECT_SECONDS},
    )
    event.listen(engine, "connect", _prepare_postgres)
    event.listen(engine, "handle_error", _leave_read_only)
    return engine


def _prepare_postgres(connection: psycopg.Connection, record: object) -> None:  # noqa: ARG001
    connection.execute(f"SET idle_in_transaction_session_timeout = '{IDLE_SECONDS}s'")
    connection.commit()


def _leave_read_only(context: sa.engine.ExceptionContext) -> None:
    """Reconnect after a refused write: another server may have become the writable one."""
    if getattr(context.original_exception, "sqlstate", None) == _READ_ONLY:
        context.is_disconnect = True


def _sqlite_engine(url: sa.URL) -> sa.Engine:
    path = Path(url.database or "")
    path.parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(url, execution_options={_LOCK: WriteLock(path)})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, record: object) -> None:  # noqa: ARG001
    prepare(connection)


def _begin_sqlite(connection: sa.Connection) -> None:
    options = connection.get_execution_options()
    if _WRITE_BY in options:
        options[_LOCK].begin(connection.connection.dbapi_connection, options[_WRITE_BY])
    else:
        connection.exec_driver_sql("BEGIN")


@contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A connection for queries that all see the same state of the database.

    Raises:
        StorageUnavailable: the database does not answer.
    """
    with _translated(), engine.connect() as connection:
        yield connection


@contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """One transaction: committed at the end, rolled back by any exception.

    Raises:
        StorageBusy: other processes wrote for too long.
        StorageFull: no space is left.
        StorageUnavailable: the database does not answer, or is read-only.
    """
    with _translated(), _writer(engine) as writer, writer.begin() as connection:
        yield connection


@contextmanager
def _writer(engine: sa.Engine) -> Iterator[sa.Engine]:
    """The engine, once it is this thread's turn to write."""
    lock: WriteLock | None = engine.get_execution_options().get(_LOCK)
    if lock is None:
        yield engine
        return
    # Before a connection is taken from the pool, so that waiting writers do not block readers.
    with lock.turn() as deadline:
        yield engine.execution_options(**{_WRITE_BY: deadline})


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (sa.exc.DBAPIError, sa.exc.TimeoutError, sqlite3.Error) as error:
        meaning = _meaning(error)
        if meaning is None:
            raise
        raise meaning from error


def _meaning(error: Exception) -> CoreError | None:
    """The storage error behind a driver's error; None if the fault is in our code."""
    cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
    code, state = primary_code(cause), getattr(cause, "sqlstate", None)
    if code == sqlite3.SQLITE_FULL or state == _DISK_FULL or "No space left" in str(cause):
        return StorageFull("the database's disk is full")
    if code == sqlite3.SQLITE_BUSY:
        return StorageBusy()
    if code == sqlite3.SQLITE_READONLY or state == _READ_ONLY:
        return StorageUnavailable("the database is read-only")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return StorageUnavailable("the database is damaged")
    if isinstance(error, (sa.exc.OperationalError, sa.exc.TimeoutError, sqlite3.OperationalError)):
        return StorageUnavailable("the database does not answer")
    return None


def ping(engine: sa.Engine) -> None:
    """Check that the database answers.

    Raises:
        StorageUnavailable: it does not answer.
    """
    with reading(engine) as connection:
        connection.execute(sa.select(1))


def record(row: sa.Row[Any], **changes: object) -> dict[str, Any]:
    return {**row._asdict(), **changes}


def as_record(kind: type[R], row: sa.Row[Any], **changes: object) -> R:
    """A dataclass with the columns of the same names, some replaced; other columns are ignored."""
    names = {field.name for field in fields(kind)} - changes.keys()
    return kind(**{name: getattr(row, name) for name in names}, **changes)
