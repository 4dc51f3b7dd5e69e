"""SQLite under several writing processes: whose turn it is, and who copies the log.

SQLite lets one connection write at a time. Its own way of waiting sleeps longer the longer it has
waited, up to 100 ms, so that whoever came last is served first and somebody starves. Here it is
the other way round: who has waited longer looks more often. The threads of one process queue up
among themselves before one of them asks for the lock.

The write-ahead log is copied into the database ("checkpoint") only by whoever holds the write lock.
Versions 3.7.0 to 3.51.2 of SQLite can damage a database if a commit starts the log anew while
another connection begins a checkpoint (https://sqlite.org/wal.html#walresetbug). As nobody can
commit while our checkpoints run, the two never meet. What remains is the checkpoint of the last
connection that closes, and that one excludes everybody.
"""

from __future__ import annotations

import logging
import random
import sqlite3
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sharpzo_core.errors import StorageBusy

if TYPE_CHECKING:
    from collections.abc import Iterator

WRITE_SECONDS = 10.0  # how long a writer waits for all others
SHORTEST_PAUSE, LONGEST_PAUSE = 0.000_3, 0.010  # seconds between two looks at the write lock
QUEUE_SECONDS = 1.0  # whoever waits longer waits for one long transaction, not in a queue
BUSY_MILLISECONDS = 10_000  # how long everything but the start of a write waits for a lock
LOG_BYTES = 4 * 2**20  # size of the log from which on it is copied
WAL_SECONDS = 10.0  # how long a new file may take to be switched to a write-ahead log

#: First version with the fault in restarting the log, and the first ones without.
_FAULTY_FROM, _FAULTY_UNTIL = (3, 7, 0), (3, 51, 3)
_FIXED = ((3, 44, 6), (3, 50, 7))

logger = logging.getLogger(__name__)


class WriteLock:
    """The right to write to one database file, among the threads and processes of this machine."""

    def __init__(self, path: Path, seconds: float = WRITE_SECONDS) -> None:
        self._path = path
        self._log = path.with_name(path.name + "-wal")
        self._seconds = seconds
        self._turn = threading.Lock()

    @contextmanager
    def turn(self) -> Iterator[float]:
        """This thread's turn within the process; yields the time until which `begin` may wait.

        Raises:
            StorageBusy: other threads took too long.
        """
        deadline = time.monotonic() + self._seconds
        if not self._turn.acquire(timeout=self._seconds):
            raise StorageBusy
        try:
            yield deadline
            self.shorten_log()
        finally:
            self._turn.release()

    def begin(self, connection: sqlite3.Connection, deadline: float) -> None:
        """Start a transaction that holds the write lock.

        Raises:
            StorageBusy: other processes took too long.
            sqlite3.Error: the database cannot be written.
        """
        started = time.monotonic()
        connection.execute("PRAGMA busy_timeout = 0")
        try:
            while not _begins(connection):
                now = time.monotonic()
                if now >= deadline:
                    raise StorageBusy
                time.sleep(_pause(now - started))
        finally:
            connection.execute(f"PRAGMA busy_timeout = {BUSY_MILLISECONDS}")

    def shorten_log(self) -> None:
        """Copy a long log into the database while nobody can write."""
        try:
            if self._log.stat().st_size < LOG_BYTES:
                return
            # Two connections, for the one with the transaction may not copy.
            with closing(self._connect()) as holder, closing(self._connect()) as copier:
                holder.execute("PRAGMA busy_timeout = 0")
                if _begins(holder):  # else the next writer does it
                    copier.execute("PRAGMA wal_checkpoint(PASSIVE)")
        except (OSError, sqlite3.Error):
            # What was to be written is written; the log only grows on.
            logger.warning(
                "the database's log could not be shortened",
                exc_info=True,
                extra={"action": "checkpoint_blocked"},
            )

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path)
        prepare(connection)
        return connection


def prepare(connection: sqlite3.Connection) -> None:
    """Settings of every connection.

    Raises:
        sqlite3.Error: the file cannot be opened.
    """
    connection.isolation_level = None  # transactions begin where we say
    connection.execute(f"PRAGMA busy_timeout = {BUSY_MILLISECONDS}")
    connection.execute("PRAGMA foreign_keys = ON")
    # FULL: a commit that was acknowledged survives a loss of power.
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    # A log that starts anew gives its space back, so that its size says how much is to be copied.
    connection.execute("PRAGMA journal_size_limit = 0")
    _use_log(connection)


def _use_log(connection: sqlite3.Connection) -> None:
    """Switch a new file to a write-ahead log; SQLite does not wait for others there."""
    deadline = time.monotonic() + WAL_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() >= deadline:
                raise
            time.sleep(_pause(0))
        else:
            return


def _begins(connection: sqlite3.Connection) -> bool:
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        if not is_busy(error):
            raise
        return False
    return True


def _pause(waited: float) -> float:
    """How long to look away: the less, the longer somebody has waited, so that nobody starves."""
    if waited > QUEUE_SECONDS:
        return LONGEST_PAUSE
    jitter = random.uniform(0.5, 1.0)  # noqa: S311 - only lest two keep step
    return max(SHORTEST_PAUSE, LONGEST_PAUSE / (2 + waited / LONGEST_PAUSE) * jitter)


def is_busy(error: BaseException | None) -> bool:
    """Whether somebody else's lock was in the way."""
    return primary_code(error) == sqlite3.SQLITE_BUSY


def primary_code(error: BaseException | None) -> int:
    """SQLite's result code without its details; 0 for any other error."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


def restarts_log_safely(version: tuple[int, ...]) -> bool:
    """Whether this SQLite itself is free of the fault in restarting the log."""
    if not _FAULTY_FROM <= version < _FAULTY_UNTIL:
        return True
    return any(version[:2] == fixed[:2] and version >= fixed for fixed in _FIXED)


def report_version() -> None:
    """Tell the operator of a SQLite with that fault."""
    if not restarts_log_safely(sqlite3.sqlite_version_info):
        logger.info(
            "SQLite %s can damage a database if its log is restarted during a checkpoint; this "
            "service excludes that, other programs must not write to its database",
            sqlite3.sqlite_version,
            extra={"action": "sqlite_version", "version": sqlite3.sqlite_version},
        )
