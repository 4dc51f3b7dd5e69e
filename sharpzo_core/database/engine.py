"""Connections and transactions, on SQLite and PostgreSQL alike.

`reading` and `writing` are the only two ways to a connection; both translate what the driver says
of a database that is away, busy, full, read-only or damaged. On SQLite a writer takes the lock at
once: a transaction that reads first and writes later would fail as soon as two overlap.
"""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import make_url

from sharpzo_core.database.sqlite import WriteLock, prepare, primary_code
from sharpzo_core.errors import CoreError, StorageBusy, StorageFull, StorageUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

    from sharpzo_core.settings import Settings

CONNECT_SECONDS = 5  # how long a PostgreSQL connection may take to come up
#: A process that is stopped in the middle of a transaction keeps its locks no longer than this.
IDLE_SECONDS = 30

#: Execution options: an engine's lock, and until when a transaction may wait for it.
_LOCK, _WRITE_BY = "sharpzo_lock", "sharpzo_write_by"

#: SQLSTATE codes of PostgreSQL.
_DISK_FULL, _READ_ONLY = "53100", "25006"


def make_engine(settings: Settings) -> sa.Engine:
    """The engine of the configured database; nothing is connected yet."""
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
    """Connect anew after a refused write: another server may have become the writable one."""
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
    """A connection for queries, which see one state of the database.

    Raises:
        StorageUnavailable: the database does not answer.
    """
    with _translated(), engine.connect() as connection:
        yield connection


@contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """One transaction: committed at the end, rolled back by any exception.

    Raises:
        StorageBusy: others wrote for too long.
        StorageFull: no space is left.
        StorageUnavailable: the database does not answer, or takes no writes.
    """
    with _translated(), _writer(engine) as writer, writer.begin() as connection:
        yield connection


@contextmanager
def _writer(engine: sa.Engine) -> Iterator[sa.Engine]:
    """The engine with which this thread may begin to write."""
    lock: WriteLock | None = engine.get_execution_options().get(_LOCK)
    if lock is None:
        yield engine
        return
    # Before a connection is taken from the pool: whoever waits leaves them to the readers.
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
    """What a driver's error says of the storage; None if the fault is ours."""
    cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
    code, state = primary_code(cause), getattr(cause, "sqlstate", None)
    if code == sqlite3.SQLITE_FULL or state == _DISK_FULL or "No space left" in str(cause):
        return StorageFull("the database's disk is full")
    if code == sqlite3.SQLITE_BUSY:
        return StorageBusy()
    if code == sqlite3.SQLITE_READONLY or state == _READ_ONLY:
        return StorageUnavailable("the database takes no writes")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return StorageUnavailable("the database is damaged")
    if isinstance(error, (sa.exc.OperationalError, sa.exc.TimeoutError, sqlite3.OperationalError)):
        return StorageUnavailable("the database does not answer")
    return None


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
