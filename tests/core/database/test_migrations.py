import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations

from sharpzo_core.database.engine import make_engine, ping, writing
from sharpzo_core.database.tables import metadata, workers
from sharpzo_core.errors import SchemaTooNew, StorageUnavailable
from sharpzo_core.migrations import migrate, migration_engine, upgrade
from sharpzo_core.schemas.prompts import LineagePublic, PromptPublic
from sharpzo_core.settings import Settings
from sharpzo_core.stores.alias_store import AliasStore
from sharpzo_core.stores.prompt_store import PromptStore
from sharpzo_core.stores.worker_store import WorkerStore
from tests.core.stores.dying import migrate_and_die

FIRST = "0001"


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


@pytest.mark.slow
def test_a_migration_that_is_killed_at_any_statement_is_finished_by_the_next_start(
    settings: Settings,
) -> None:
    kills = kill_at_every_statement(settings)
    assert kills > len(metadata.tables)
    assert difference_from_the_declared(settings) == []


@pytest.mark.slow
def test_rows_survive_killed_migrations(settings: Settings) -> None:
    engine = make_engine(settings)
    with writing(engine) as connection:
        upgrade(connection, FIRST)
        insert_first_rows(connection)
    before = first_rows(engine)
    kill_at_every_statement(settings)
    assert first_rows(engine) == before
    assert difference_from_the_declared(settings) == []
    engine.dispose()


def test_rebuilding_a_table_keeps_the_rows_that_refer_to_it(settings: Settings) -> None:
    engine = migration_engine(settings)
    with writing(engine) as connection:
        upgrade(connection, FIRST)
        insert_first_rows(connection)
    before = first_rows(engine)
    with writing(engine) as connection:
        operations = Operations(MigrationContext.configure(connection))
        # SQLite copies the table and drops the old one; PostgreSQL only alters it.
        with operations.batch_alter_table("jobs") as table:
            table.alter_column("backbone", type_=sa.String(300))
    assert first_rows(engine) == before
    engine.dispose()


#: Prompts as the third revision knew them.
PROMPTS_BEFORE_LINEAGE = """
INSERT INTO prompts (id, job_id, name, version, backbone, classes, metrics, sha256, created_at)
VALUES ('prm_{a}', 'job_1', 'pets', 1, '{{"name": "tiny", "pretrained": null, "fingerprint": "f"}}',
        '["cat", "dog"]', '{{"val_accuracy": 0.5}}', 'a', '2026-01-01 00:00:00');
INSERT INTO prompts (id, job_id, name, version, backbone, classes, metrics, sha256, created_at)
VALUES ('prm_{b}', NULL, 'pets', 2, '{{"name": "tiny", "pretrained": null, "fingerprint": "f"}}',
        '["cat", "dog"]', '{{}}', 'b', '2026-01-01 00:00:00');
INSERT INTO prompt_names (name, last_version) VALUES ('pets', 2)
"""


def test_prompts_from_before_aliases_and_lineage_are_used_as_any_other(settings: Settings) -> None:
    a, b = "0" * 26, "1" * 26
    engine = migration_engine(settings)
    with writing(engine) as connection:
        upgrade(connection, "0003")
        for statement in PROMPTS_BEFORE_LINEAGE.format(a=a, b=b).split(";"):
            connection.exec_driver_sql(statement)
    with writing(engine) as connection:
        upgrade(connection)
    engine.dispose()
    engine = make_engine(settings)
    prompts, aliases = PromptStore(engine), AliasStore(engine)
    tuned, imported = prompts.get("pets:1"), prompts.get("pets:2")
    assert [(p.lineage, p.pinned, p.aliases) for p in (tuned, imported)] == [({}, False, ())] * 2
    told = PromptPublic.from_record(tuned).lineage.model_dump()
    backbone = {"name": "tiny", "pretrained": None, "fingerprint": "f"}
    known = {"source": "job", "job_id": "job_1", "backbone": backbone}
    assert told == dict.fromkeys(LineagePublic.model_fields) | known
    assert PromptPublic.from_record(imported).lineage.source == "import"
    for prompt in (tuned, imported):
        aliases.set("live", prompt.id)
    assert aliases.rollback("live").prompt_id == tuned.id
    assert prompts.pin("pets@live").aliases == ("live",)
    engine.dispose()


def test_the_newest_revision_can_be_taken_back(settings: Settings) -> None:
    engine = migration_engine(settings)
    with writing(engine) as connection:
        upgrade(connection, "0003")
        before = columns_of(connection)
        upgrade(connection)
        assert columns_of(connection) != before
        downgrade(connection, "0003")
        assert columns_of(connection) == before
    engine.dispose()


def columns_of(connection: sa.Connection) -> dict[str, set[str]]:
    look = sa.inspect(connection)
    return {
        table: {column["name"] for column in look.get_columns(table)}
        for table in look.get_table_names()
    }


def downgrade(connection: sa.Connection, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", "sharpzo_core:migrations")
    config.attributes["connection"] = connection
    command.downgrade(config, revision)


def kill_at_every_statement(settings: Settings) -> int:
    """Migrate, killed each time one statement later, until it comes through; how many kills."""
    arguments = {"data_dir": settings.data_dir, "database_url": settings.database_url}
    return next(n for n in count() if not migrate_and_die(arguments, n + 1))


def difference_from_the_declared(settings: Settings) -> list[Any]:
    engine = make_engine(settings)
    with engine.connect() as connection:
        found: list[Any] = compare_metadata(MigrationContext.configure(connection), metadata)
    engine.dispose()
    return found


#: Rows as the first revision knew them, in plain SQL: the tables have changed since.
FIRST_ROWS = """
INSERT INTO datasets (id, name, status, classes, counts, source, created_at)
VALUES ('ds_1', 'photos', 'ready', '[]', '{}', '{}', '2026-01-01 00:00:00');
INSERT INTO jobs (id, status, dataset_id, backbone, config, metadata, step, total_steps,
                  forward_passes, metrics, attempt, created_at, rings, last_event)
VALUES ('job_1', 'running', 'ds_1', 'tiny', '{}', '{}', 3, 9,
        30, '{}', 1, '2026-01-01 00:00:00', 0, 1);
INSERT INTO job_events (job_id, seq, type, level, message, data, created_at)
VALUES ('job_1', 1, 'queued', 'info', 'accepted', '{}', '2026-01-01 00:00:00');
INSERT INTO job_steps (job_id, step, phase, forward_passes, seconds)
VALUES ('job_1', 3, 'stage1', 30, 1.5)
"""


def insert_first_rows(connection: sa.Connection) -> None:
    for statement in FIRST_ROWS.split(";"):
        connection.exec_driver_sql(statement)


def first_rows(engine: sa.Engine) -> list[Any]:
    queries = (
        "SELECT id, name, status FROM datasets",
        "SELECT id, status, dataset_id, step, forward_passes, attempt FROM jobs",
        "SELECT job_id, seq, message FROM job_events",
        "SELECT job_id, step, seconds FROM job_steps",
    )
    with engine.connect() as connection:
        return [tuple(connection.exec_driver_sql(query).one()) for query in queries]


def test_a_newer_schema_is_refused_by_name(settings: Settings) -> None:
    migrate(settings)
    pretend_newer(settings)
    with pytest.raises(SchemaTooNew, match=r"schema 9999.*up to 0\d\d\d") as caught:
        migrate(settings)
    assert "\n" not in str(caught.value)


def test_a_worker_on_a_newer_schema_says_so_in_one_line(tmp_path: Path) -> None:
    settings = Settings.load(data_dir=tmp_path)
    migrate(settings)
    pretend_newer(settings)
    environment = settings.environment() | {"PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-m", "worker"]
    worker = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert worker.returncode == 1
    (line,) = (line for line in worker.stderr.splitlines() if "schema" in line)
    assert line.startswith("error: the database has schema 9999")
    assert "Traceback" not in worker.stderr


def pretend_newer(settings: Settings) -> None:
    engine = make_engine(settings)
    with writing(engine) as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()


def test_a_failed_transaction_leaves_nothing(settings: Settings) -> None:
    migrate(settings)
    engine = make_engine(settings)
    store = WorkerStore(engine)
    store.beat("wrk_a", "host", 1)
    with pytest.raises(ZeroDivisionError):
        forget_workers_and_fail(engine)
    assert len(store.active(60)) == 1
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


def take_back(settings: Settings, revision: str) -> subprocess.CompletedProcess[str]:
    environment = settings.environment() | {"PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-m", "sharpzo_core.migrations", revision]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_an_operator_can_go_back_and_forth_with_the_rows_that_both_know(settings: Settings) -> None:
    migrate(settings)
    engine = make_engine(settings)
    with writing(engine) as connection:
        connection.exec_driver_sql(FIRST_ROWS.split(";", maxsplit=1)[0])
    assert take_back(settings, "0007").returncode == 0
    with engine.connect() as connection:
        assert "request_id" not in columns_of(connection)["jobs"]
        assert connection.exec_driver_sql("SELECT id FROM datasets").scalar_one() == "ds_1"
    migrate(settings)
    assert difference_from_the_declared(settings) == []
    engine.dispose()


@pytest.mark.parametrize("revision", ["0042", "head", "-1", "base"])
def test_what_is_no_earlier_revision_is_refused_in_one_line(tmp_path: Path, revision: str) -> None:
    settings = Settings.load(data_dir=tmp_path)
    migrate(settings)
    refused = take_back(settings, revision)
    assert refused.returncode != 0
    assert "Traceback" not in refused.stderr
    assert difference_from_the_declared(settings) == []
