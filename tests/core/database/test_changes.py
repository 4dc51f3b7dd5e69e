"""The stamp of a database differs after every commit of anybody, and only then."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from sharpzo_core.database.changes import ChangeStamp
from sharpzo_core.database.engine import make_engine, reading, writing
from sharpzo_core.settings import Settings

INSERT = "INSERT INTO t VALUES (1)"


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    engine = make_engine(Settings(data_dir=tmp_path))
    commit(engine, "CREATE TABLE t (x INTEGER)")
    yield engine
    engine.dispose()


@pytest.fixture
def stamp(engine: sa.Engine) -> Iterator[ChangeStamp]:
    stamp = ChangeStamp(engine)
    yield stamp
    stamp.close()


def commit(engine: sa.Engine, statement: str = INSERT) -> None:
    with writing(engine) as connection:
        connection.exec_driver_sql(statement)


def fail_after_a_write(engine: sa.Engine) -> None:
    with writing(engine) as connection:
        connection.exec_driver_sql(INSERT)
        raise RuntimeError


def test_reads_and_rollbacks_leave_it(engine: sa.Engine, stamp: ChangeStamp) -> None:
    before = stamp.read()
    assert before is not None
    with reading(engine) as connection:
        connection.exec_driver_sql("SELECT * FROM t")
    with pytest.raises(RuntimeError):
        fail_after_a_write(engine)
    assert stamp.read() == before


def test_every_commit_changes_it_from_the_moment_it_is_visible(
    engine: sa.Engine, stamp: ChangeStamp
) -> None:
    seen = {stamp.read()}
    for count in range(1, 20):
        commit(engine)
        seen.add(stamp.read())
        assert len(seen) == count + 1


def test_a_commit_of_another_process_changes_it(
    engine: sa.Engine, stamp: ChangeStamp, tmp_path: Path
) -> None:
    before = stamp.read()
    code = f"import sqlite3; c = sqlite3.connect({str(tmp_path / 'sharpzo.db')!r})"
    subprocess.run([sys.executable, "-c", f"{code}; c.execute({INSERT!r}); c.commit()"], check=True)
    assert stamp.read() not in (before, None)


def test_an_open_transaction_neither_changes_nor_blocks_it(
    engine: sa.Engine, stamp: ChangeStamp
) -> None:
    before = stamp.read()
    with writing(engine) as connection:
        connection.exec_driver_sql(INSERT)
        assert stamp.read() == before
    assert stamp.read() != before


def test_a_new_connection_never_repeats_a_stamp(engine: sa.Engine, stamp: ChangeStamp) -> None:
    before = stamp.read()
    stamp.close()
    assert stamp.read() not in (before, None)


def test_there_is_none_if_the_database_does_not_answer(tmp_path: Path) -> None:
    engine = make_engine(Settings(data_dir=tmp_path))
    (tmp_path / "sharpzo.db").write_bytes(b"not a database" * 1000)
    assert ChangeStamp(engine).read() is None


def test_there_is_none_on_postgresql(tmp_path: Path) -> None:
    url = "postgresql+psycopg://user@localhost/none"
    assert ChangeStamp(make_engine(Settings(data_dir=tmp_path, database_url=url))).read() is None
