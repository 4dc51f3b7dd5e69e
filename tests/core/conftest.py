"""The stores, on SQLite and on PostgreSQL, with a clock that tests turn."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from sharpzo_core.database.engine import make_engine
from sharpzo_core.database.tables import metadata
from sharpzo_core.migrations import migrate
from sharpzo_core.records.datasets import DatasetRecord
from sharpzo_core.records.jobs import Job, NewJob, Origin
from sharpzo_core.settings import Settings
from sharpzo_core.stores.alias_store import AliasStore
from sharpzo_core.stores.dataset_store import DatasetStore
from sharpzo_core.stores.job_leases import JobLeases
from sharpzo_core.stores.job_store import JobStore
from sharpzo_core.stores.prompt_store import PromptStore
from sharpzo_core.stores.worker_store import WorkerStore

LEASE_SECONDS = 20.0


class TestClock:
    __test__ = False

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def pass_seconds(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@dataclass
class Stores:
    engine: sa.Engine
    clock: TestClock
    jobs: JobStore
    leases: JobLeases
    datasets: DatasetStore
    prompts: PromptStore
    aliases: AliasStore
    workers: WorkerStore

    def ready_dataset(self, images: int = 16) -> DatasetRecord:
        dataset = self.datasets.create("photos")
        counts = {"train": {"cat": images, "dog": images}, "test": {"cat": 1, "dog": 2}}
        return self.datasets.mark_ready(
            dataset.id, classes=["cat", "dog"], counts=counts, sha256="0" * 64
        )

    def job(self, key_id: str | None = None, **values: Any) -> Job:
        dataset = self.ready_dataset()
        new = NewJob(dataset_id=dataset.id, backbone="tiny", config={"seed": 1}, **values)
        return self.jobs.create(new, Origin(key_id))

    def claimed(self, **values: Any) -> Job:
        job = self.leases.claim(self.job(**values).id, "wrk_a", "process")
        assert job is not None
        return job


@pytest.fixture(scope="session")
def migrated_postgres(shared_postgres_url: str) -> str:
    migrate(Settings.load(database_url=shared_postgres_url))
    return shared_postgres_url


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.needs("postgres"))])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    """A migrated database without rows."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("migrated_sqlite"), tmp_path)
        engine = make_engine(Settings.load(data_dir=tmp_path))
    else:
        url = request.getfixturevalue("migrated_postgres")
        engine = make_engine(Settings.load(database_url=url))
        with engine.begin() as connection:
            for table in reversed(metadata.sorted_tables):
                connection.execute(sa.delete(table))
    yield engine
    engine.dispose()


@pytest.fixture
def stores(engine: sa.Engine) -> Stores:
    clock = TestClock()
    return Stores(
        engine=engine,
        clock=clock,
        jobs=JobStore(engine, clock),
        leases=JobLeases(engine, lease_seconds=LEASE_SECONDS, max_attempts=3, clock=clock),
        datasets=DatasetStore(engine, clock),
        prompts=PromptStore(engine, clock),
        aliases=AliasStore(engine, clock),
        workers=WorkerStore(engine, clock),
    )
