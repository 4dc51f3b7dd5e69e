"""A stamp that differs once anything in the database has changed."""

import itertools
import sqlite3
from contextlib import suppress

import sqlalchemy as sa

from sharpzo_core.database.sqlite import prepare

Stamp = tuple[int, int]


class ChangeStamp:
    """Reads the stamp from a connection of its own that never writes; for one thread at a time.

    SQLite counts, for each connection, the commits of all others, in this process and in any other
    (https://sqlite.org/pragma.html#pragma_data_version). A read takes some microseconds. PostgreSQL
    has no such counter.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._path = engine.url.database if engine.dialect.name == "sqlite" else None
        self._connection: sqlite3.Connection | None = None
        self._connections = itertools.count()
        self._number = 0  # of the connection: counters of different ones do not compare

    def read(self) -> Stamp | None:
        """The current stamp; None where there is none, or the database does not answer."""
        if not self._path:
            return None
        try:
            if self._connection is None:
                self._connection = self._connect(self._path)
            # All rows, because an unfinished read would keep the database's log from being cut.
            ((version,),) = self._connection.execute("PRAGMA data_version").fetchall()
        except sqlite3.Error:
            self.close()
            return None
        return self._number, int(version)

    def close(self) -> None:
        """Close the connection; a later `read` opens another one."""
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _connect(self, path: str) -> sqlite3.Connection:
        connection = sqlite3.connect(path, check_same_thread=False)
        try:
            prepare(connection)
            connection.execute("PRAGMA busy_timeout = 0")  # whoever asks does not wait
        except sqlite3.Error:
            connection.close()
            raise
        self._number = next(self._connections)
        return connection
