from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from sharpzo_core.db import make_engine, ping, writing
from sharpzo_core.errors import StorageUnavailable
from sharpzo_core.migrations import migrate
from sharpzo_core.settings import Settings
from sharpzo_core.tables import metadata, workers
from sharpzo_core.worker_store import WorkerStore


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.needs("postgres"))])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """An empty database."""
    if request.param == "sqlite":
        return Settings.load(data_dir=tmp_path)
    return Settings.load(data_dir=tmp_path, database_url=request.getfixturevalue("postgres_url"))


def test_migrated_tables_are_the_declared_ones(settings: Settings) -> None:
    migrate(settings)
    migrate(settings)
    engine = make_engine(settings)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


def test_processes_that_start_together_migrate_once(settings: Settings) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(migrate, [settings] * 4))
    engine = make_engine(settings)
    ping(engine)
    with engine.connect() as connection:
        versions = connection.execute(sa.text("SELECT version_num FROM alembic_version")).all()
    assert len(versions) == 1
    engine.dispose()


def test_a_failed_transaction_leaves_nothing(settings: Settings) -> None:
    migrate(settings)
    engine = make_engine(settings)
    store = WorkerStore(engine)
    store.beat("wrk_a", "host", 1)
    with pytest.raises(ZeroDivisionError):
        forget_workers_and_fail(engine)
    assert len(store.alive(60)) == 1
    engine.dispose()


def forget_workers_and_fail(engine: sa.Engine) -> None:
    with writing(engine) as connection:
        connection.execute(sa.delete(workers))
        raise ZeroDivisionError


def test_a_database_that_is_away_is_named_as_such() -> None:
    settings = Settings.load(database_url="postgresql+psycopg://nobody@127.0.0.1:1/nothing")
    engine = make_engine(settings)
    with pytest.raises(StorageUnavailable):
        ping(engine)
    engine.dispose()


def test_sqlite_keeps_what_it_acknowledged(tmp_path: Path) -> None:
    settings = Settings.load(data_dir=tmp_path)
    migrate(settings)
    engine = make_engine(settings)
    with engine.connect() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in (
                "journal_mode",
                "synchronous",
                "busy_timeout",
                "foreign_keys",
                "wal_autocheckpoint",
            )
        }
    engine.dispose()
    full = 2
    assert pragmas == {
        "journal_mode": "wal",
        "synchronous": full,
        "busy_timeout": 10_000,
        "foreign_keys": 1,
        "wal_autocheckpoint": 0,
    }
