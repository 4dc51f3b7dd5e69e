"""A database that is full, read-only, damaged or gone: what is told of it, and how it heals."""

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from sharpzo_core.database.engine import make_engine, ping, reading, writing
from sharpzo_core.errors import CoreError, StorageFull, StorageUnavailable
from sharpzo_core.migrations import migrate
from sharpzo_core.settings import Settings
from sharpzo_core.stores.dataset_store import DatasetStore
from sharpzo_core.stores.worker_store import WorkerStore

LARGE = {"filling": "x" * 100_000}

Fault = Callable[[sa.Engine], AbstractContextManager[None]]


@pytest.fixture
def engine(migrated_sqlite: Path, tmp_path: Path) -> Iterator[sa.Engine]:
    shutil.copy(migrated_sqlite, tmp_path)
    engine = make_engine(Settings.load(data_dir=tmp_path))
    yield engine
    engine.dispose()


@pytest.fixture
def postgres(postgres_url: str) -> Iterator[sa.Engine]:
    settings = Settings.load(database_url=postgres_url)
    migrate(settings)
    engine = make_engine(settings)
    yield engine
    engine.dispose()


@pytest.fixture
def administrator(postgres_url: str) -> Iterator[sa.Engine]:
    engine = sa.create_engine(postgres_url, isolation_level="AUTOCOMMIT")
    yield engine
    engine.dispose()


@contextmanager
def pragma(engine: sa.Engine, during: str, afterwards: str) -> Iterator[None]:
    """Have every connection run something when it is taken from the pool."""
    now = during

    def apply(connection: sqlite3.Connection, *_: Any) -> None:
        connection.execute(now)

    event.listen(engine, "checkout", apply)
    yield
    now = afterwards


def read_only(engine: sa.Engine) -> AbstractContextManager[None]:
    return pragma(engine, "PRAGMA query_only = ON", "PRAGMA query_only = OFF")


def full(engine: sa.Engine) -> AbstractContextManager[None]:
    with engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
    return pragma(
        engine, f"PRAGMA max_page_count = {pages}", f"PRAGMA max_page_count = {pages * 1000}"
    )


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (read_only, StorageUnavailable, "is read-only"),
        (full, StorageFull, "disk is full"),
    ],
)
def test_reads_go_on_where_nothing_can_be_written(
    engine: sa.Engine, fault: Fault, error: type[CoreError], message: str
) -> None:
    datasets = DatasetStore(engine)
    first = datasets.create("photos", LARGE)
    with fault(engine):
        for _ in range(3):
            with pytest.raises(error, match=message):
                datasets.create("more photos", LARGE)
        ping(engine)
        assert [dataset.id for dataset in datasets.list().items] == [first.id]
    datasets.create("more photos", LARGE)
    assert len(datasets.list().items) == 2


def test_a_folder_that_is_away_and_comes_back(engine: sa.Engine, tmp_path: Path) -> None:
    away = tmp_path.with_name("away")
    tmp_path.rename(away)
    for _ in range(2):
        with pytest.raises(StorageUnavailable):
            ping(engine)
        with pytest.raises(StorageUnavailable):
            WorkerStore(engine).beat("wrk_a", "host", 1)
    away.rename(tmp_path)
    WorkerStore(engine).beat("wrk_a", "host", 1)


def test_a_file_that_is_no_database_is_called_damaged(engine: sa.Engine, tmp_path: Path) -> None:
    (tmp_path / "sharpzo.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(StorageUnavailable, match="damaged"):
        ping(engine)


def test_a_fault_of_ours_is_not_the_storages(engine: sa.Engine) -> None:
    WorkerStore(engine).beat("wrk_a", "host", 1)
    with pytest.raises(sa.exc.IntegrityError), writing(engine) as connection:
        connection.exec_driver_sql("INSERT INTO workers SELECT * FROM workers")


@pytest.mark.needs("postgres")
def test_connections_that_the_server_closed_are_replaced(
    postgres: sa.Engine, administrator: sa.Engine
) -> None:
    workers = WorkerStore(postgres)
    workers.beat("wrk_a", "host", 1)
    assert terminate_others(administrator) >= 1
    workers.beat("wrk_b", "host", 1)
    assert len(workers.active(60)) == 2


@pytest.mark.needs("postgres")
def test_a_transaction_whose_connection_is_closed_ends_as_unavailable(
    postgres: sa.Engine, administrator: sa.Engine
) -> None:
    workers = WorkerStore(postgres)
    with pytest.raises(StorageUnavailable):
        write_while_the_server_closes(postgres, administrator)
    with pytest.raises(StorageUnavailable):
        read_while_the_server_closes(postgres, administrator)
    assert workers.active(60) == []
    workers.beat("wrk_b", "host", 1)
    assert len(workers.active(60)) == 1


def write_while_the_server_closes(postgres: sa.Engine, administrator: sa.Engine) -> None:
    with writing(postgres) as connection:
        connection.execute(sa.text("INSERT INTO workers VALUES ('wrk_a', 'host', 1, now(), now())"))
        terminate_others(administrator)


def read_while_the_server_closes(postgres: sa.Engine, administrator: sa.Engine) -> None:
    with reading(postgres) as connection:
        terminate_others(administrator)
        connection.execute(sa.select(1))


def terminate_others(administrator: sa.Engine) -> int:
    """Close every other connection to the database; how many there were."""
    query = sa.text(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    with administrator.connect() as connection:
        return int(connection.execute(query).scalar_one())


@pytest.mark.needs("postgres")
def test_a_server_that_takes_no_writes_is_asked_again_over_new_connections(
    postgres: sa.Engine, administrator: sa.Engine
) -> None:
    workers = WorkerStore(postgres)
    workers.beat("wrk_a", "host", 1)
    set_read_only(administrator, "on")
    postgres.dispose()
    for _ in range(2):
        with pytest.raises(StorageUnavailable, match="is read-only"):
            workers.beat("wrk_b", "host", 1)
    assert len(workers.active(60)) == 1
    set_read_only(administrator, "off")
    # A reader may have taken a connection of before; the first write finds out at the latest.
    with pytest.raises(StorageUnavailable, match="is read-only"):
        workers.beat("wrk_b", "host", 1)
    workers.beat("wrk_b", "host", 1)
    assert len(workers.active(60)) == 2


def set_read_only(administrator: sa.Engine, value: str) -> None:
    """For every connection made from now on."""
    name = administrator.url.database
    with administrator.connect() as connection:
        connection.execute(
            sa.text(f"ALTER DATABASE {name} SET default_transaction_read_only = {value}")
        )
