import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sharpzo_core.broker.queue import JobQueue, make_celery
from sharpzo_core.ids import Prefix, is_id, new_id
from sharpzo_core.settings import Settings


@pytest.fixture(params=["embedded", pytest.param("redis", marks=pytest.mark.needs("redis"))])
def queue(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[JobQueue]:
    url = request.getfixturevalue("redis_url") if request.param == "redis" else ""
    queue = JobQueue(make_celery(Settings.load(data_dir=tmp_path, broker_url=url)))
    yield queue
    queue.close()


def test_a_ring_puts_one_message(queue: JobQueue) -> None:
    assert queue.depth() == 0
    assert queue.notify(new_id(Prefix.JOB))
    assert queue.notify(new_id(Prefix.JOB))
    assert queue.depth() == 2


def test_a_broker_that_is_away_is_no_error(tmp_path: Path) -> None:
    settings = Settings.load(data_dir=tmp_path, broker_url="redis://127.0.0.1:1/0")
    queue = JobQueue(make_celery(settings))
    started = time.monotonic()
    assert not queue.notify(new_id(Prefix.JOB))
    assert queue.depth() is None
    assert time.monotonic() - started < 2
    queue.close()


def test_the_message_is_the_id_and_json(tmp_path: Path) -> None:
    queue = JobQueue(make_celery(Settings.load(data_dir=tmp_path)))
    job_id = new_id(Prefix.JOB)
    queue.notify(job_id)
    queue.close()
    (message,) = (tmp_path / "broker" / "messages").iterdir()
    assert json.loads(message.read_bytes())["content-type"] == "application/json"


def test_ids_sort_by_time_and_are_recognised() -> None:
    first = new_id(Prefix.JOB)
    time.sleep(0.002)
    second = new_id(Prefix.JOB)
    assert first < second
    assert is_id(Prefix.JOB, first)
    for other in (first.upper(), first[:-1], first + "0", first + "\n", first.replace("job", "ds")):
        assert not is_id(Prefix.JOB, other)
