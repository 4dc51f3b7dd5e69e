"""SQLite under many writers: everybody gets the lock in time, and the log stays short."""

import shutil
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from sharpzo_core.database import sqlite
from sharpzo_core.database.engine import make_engine, reading, writing
from sharpzo_core.database.tables import job_events, job_steps
from sharpzo_core.errors import StorageBusy
from sharpzo_core.settings import Settings
from sharpzo_core.stores.dataset_store import DatasetStore
from sharpzo_core.stores.worker_store import WorkerStore
from tests.core.conftest import Stores
from tests.core.database.writers import processes, write_many

PROCESSES, WRITES = 8, 40


@pytest.fixture
def engine(migrated_sqlite: Path, tmp_path: Path) -> Iterator[sa.Engine]:
    shutil.copy(migrated_sqlite, tmp_path)
    engine = make_engine(Settings.load(data_dir=tmp_path))
    yield engine
    engine.dispose()


def file_of(engine: sa.Engine) -> Path:
    return Path(engine.url.database or "")


@contextmanager
def another_writes(engine: sa.Engine) -> Iterator[None]:
    """Another connection, as if of another process, holds the write lock."""
    with closing(sqlite3.connect(file_of(engine), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


@pytest.fixture
def impatient(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[sa.Engine]:
    """An engine on the same file that waits for the lock a moment only."""
    monkeypatch.setattr(sqlite.WriteLock.__init__, "__defaults__", (0.05,))
    impatient = make_engine(Settings.load(data_dir=file_of(engine).parent))
    yield impatient
    impatient.dispose()


def test_many_processes_write_without_an_error(stores: Stores) -> None:
    dataset_id = stores.ready_dataset().id
    folder = file_of(stores.engine).parent
    with ProcessPoolExecutor(PROCESSES, mp_context=processes()) as pool:
        runs = [pool.submit(write_many, folder, dataset_id, WRITES) for _ in range(PROCESSES)]
        seconds = [second for run in runs for second in run.result()]
    assert len(seconds) == PROCESSES * WRITES
    assert max(seconds) < sqlite.WRITE_SECONDS / 2
    with reading(stores.engine) as connection:
        steps = connection.execute(sa.select(sa.func.count()).select_from(job_steps)).scalar_one()
        events = connection.execute(sa.select(sa.func.count()).select_from(job_events)).scalar_one()
    assert steps == PROCESSES * WRITES // 2
    assert events == PROCESSES * (2 + WRITES // 2)  # each was queued and started too


def test_threads_of_one_process_wait_for_each_other(engine: sa.Engine) -> None:
    workers = WorkerStore(engine)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: workers.beat(f"wrk_{number}", "host", 1), range(64)))
    assert len(workers.active(60)) == 64


def test_a_lock_that_is_never_released_makes_writers_busy_and_readers_read(
    impatient: sa.Engine,
) -> None:
    workers = WorkerStore(impatient)
    workers.beat("wrk_a", "host", 1)
    with another_writes(impatient):
        with pytest.raises(StorageBusy) as caught:
            workers.beat("wrk_b", "host", 1)
        assert [worker.id for worker in workers.active(60)] == ["wrk_a"]
    assert (caught.value.status, caught.value.code, caught.value.retry_after) == (503, "busy", 1)
    workers.beat("wrk_b", "host", 1)
    assert len(workers.active(60)) == 2


def test_a_thread_that_never_ends_its_write_makes_others_busy(impatient: sa.Engine) -> None:
    workers = WorkerStore(impatient)
    with writing(impatient), ThreadPoolExecutor(1) as pool, pytest.raises(StorageBusy):
        pool.submit(workers.beat, "wrk_b", "host", 1).result()
    workers.beat("wrk_b", "host", 1)


def test_writers_that_wait_leave_the_connections_to_the_readers(engine: sa.Engine) -> None:
    workers, many = WorkerStore(engine), 40  # more than the pool has connections
    started = threading.Barrier(many + 1)

    def beat(number: int) -> None:
        started.wait()
        workers.beat(f"wrk_{number}", "host", 1)

    with ThreadPoolExecutor(many) as pool:
        with another_writes(engine):
            beats = [pool.submit(beat, number) for number in range(many)]
            started.wait()
            assert workers.active(60) == []
        for finished in beats:
            finished.result()
    assert len(workers.active(60)) == many


def test_the_log_is_copied_and_starts_anew(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "LOG_BYTES", 200_000)
    log = file_of(engine).with_name("sharpzo.db-wal")
    datasets, longest = DatasetStore(engine), 0
    for number in range(100):
        datasets.create("x" * 190, {"number": number, "filling": "y" * 10_000})
        longest = max(longest, log.stat().st_size)
    assert 200_000 <= longest < 400_000
    assert log.stat().st_size < longest
    assert file_of(engine).stat().st_size > 500_000


def test_a_log_is_never_copied_while_another_writes(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = WorkerStore(engine)
    workers.beat("wrk_a", "host", 1)
    monkeypatch.setattr(sqlite, "LOG_BYTES", 0)
    before = file_of(engine).stat().st_mtime_ns
    with writing(engine) as connection:
        connection.execute(sa.delete(job_steps))
        sqlite.WriteLock(file_of(engine)).shorten_log()
        assert file_of(engine).stat().st_mtime_ns == before
    assert file_of(engine).stat().st_mtime_ns != before


@pytest.mark.parametrize(
    ("version", "safe"),
    [
        ((3, 6, 23), True),
        ((3, 7, 0), False),
        ((3, 40, 1), False),
        ((3, 44, 5), False),
        ((3, 44, 6), True),
        ((3, 45, 0), False),
        ((3, 50, 6), False),
        ((3, 50, 7), True),
        ((3, 51, 2), False),
        ((3, 51, 3), True),
        ((4, 0, 0), True),
    ],
)
def test_versions_with_the_fault_are_known(version: tuple[int, int, int], safe: bool) -> None:
    assert sqlite.restarts_log_safely(version) is safe
