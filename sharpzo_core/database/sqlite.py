"""SQLite with several writing processes: a fair write lock, and checkpoints under that lock.

SQLite lets one connection write at a time. Its own busy handler sleeps longer the longer it has
waited, up to 100 ms, so that the newest writer is served first and some writers starve. Here it is
the other way round: a writer that has waited longer polls more often. The threads of one process
queue among themselves before one of them asks for the lock.

Only the holder of the write lock copies the write-ahead log into the database ("checkpoint").
SQLite 3.7.0 to 3.51.2 can damage a database if a commit restarts the log while another connection
begins a checkpoint (https://sqlite.org/wal.html#walresetbug). As nobody can commit while our
checkpoints run, the two never meet. The checkpoint of the last connection that closes has the
database to itself.

Delete the checkpoints here (`shorten_log`, `restarts_log_safely`, `wal_autocheckpoint = 0`) when
the oldest supported Python bundles SQLite 3.51.3.
"""

import logging
import random
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from sharpzo_core.errors import StorageBusy

WRITE_SECONDS = 10.0  # how long a writer waits for all others
SHORTEST_PAUSE, LONGEST_PAUSE = (
    0.000_3,
    0.010,
)  # seconds between two attempts to take the write lock
QUEUE_SECONDS = 1.0  # a longer wait is for one long transaction, not for a queue
BUSY_MILLISECONDS = 10_000  # all locks but that of the start of a write
LOG_BYTES = 4 * 2**20  # a larger log is copied
WAL_SECONDS = 10.0  # to switch a new file to a write-ahead log

#: The first version with the fault in restarting the log, and the first ones without it.
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
        """Wait for this thread's turn within the process; yields the deadline for `begin`.

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
            # Two connections, because the one with the transaction cannot copy.
            with closing(self._connect()) as holder, closing(self._connect()) as copier:
                holder.execute("PRAGMA busy_timeout = 0")
                if _begins(holder):  # otherwise the next writer copies it
                    copier.execute("PRAGMA wal_checkpoint(PASSIVE)")
        except (OSError, sqlite3.Error):
            # The write itself is committed; only the log keeps growing.
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
    """Apply the settings of every connection.

    Raises:
        sqlite3.Error: the file cannot be opened.
    """
    connection.isolation_level = None  # we begin transactions ourselves
    connection.execute(f"PRAGMA busy_timeout = {BUSY_MILLISECONDS}")
    connection.execute("PRAGMA foreign_keys = ON")
    # FULL: a commit that was acknowledged survives a loss of power.
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    # A restarted log is truncated, so that its size says how much there is to copy.
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
    """Seconds until the next attempt: the longer the wait so far, the shorter the pause."""
    if waited > QUEUE_SECONDS:
        return LONGEST_PAUSE
    jitter = random.uniform(0.5, 1.0)  # noqa: S311 - keeps two writers out of step
    return max(SHORTEST_PAUSE, LONGEST_PAUSE / (2 + waited / LONGEST_PAUSE) * jitter)


def is_busy(error: BaseException | None) -> bool:
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


def report_version(url: str) -> None:
    """Log a line for the operator if the database is a SQLite with that fault."""
    if url.startswith("sqlite") and not restarts_log_safely(sqlite3.sqlite_version_info):
        logger.info(
            "SQLite %s can damage a database that several programs write to; this service prevents "
            "it for its own processes (let no other program write to its database)",
            sqlite3.sqlite_version,
            extra={"action": "sqlite_version", "version": sqlite3.sqlite_version},
        )
