import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sharpzo_core.ids import Prefix, is_id, new_id
from sharpzo_core.logging import JsonFormatter, TextFormatter
from sharpzo_core.queue import JobQueue, make_celery
from sharpzo_core.settings import Settings


@pytest.fixture(params=["embedded", pytest.param("redis", marks=pytest.mark.needs("redis"))])
def queue(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[JobQueue]:
    url = request.getfixturevalue("redis_url") if request.param == "redis" else ""
    queue = JobQueue(make_celery(Settings.load(data_dir=tmp_path, broker_url=url)))
    yield queue
    queue.close()


def test_a_ring_puts_one_message(queue: JobQueue) -> None:
    assert queue.depth() == 0
    assert queue.ring(new_id(Prefix.JOB))
    assert queue.ring(new_id(Prefix.JOB))
    assert queue.depth() == 2


def test_a_broker_that_is_away_is_no_error(tmp_path: Path) -> None:
    settings = Settings.load(data_dir=tmp_path, broker_url="redis://127.0.0.1:1/0")
    queue = JobQueue(make_celery(settings))
    started = time.monotonic()
    assert not queue.ring(new_id(Prefix.JOB))
    assert queue.depth() is None
    assert time.monotonic() - started < 2
    queue.close()


def test_the_message_is_the_id_and_json(tmp_path: Path) -> None:
    queue = JobQueue(make_celery(Settings.load(data_dir=tmp_path)))
    job_id = new_id(Prefix.JOB)
    queue.ring(job_id)
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


def record(message: str, **extra: object) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": "worker", "levelname": "INFO", "msg": message})
    vars(made).update(extra)
    return made


def test_a_json_line_holds_what_extra_held() -> None:
    line = JsonFormatter().format(record("hello", action="job_claimed", job_id="job_1"))
    assert "\n" not in line
    parsed = json.loads(line)
    assert parsed["message"] == "hello"
    assert (parsed["action"], parsed["job_id"]) == ("job_claimed", "job_1")


def test_a_message_cannot_fake_another_line() -> None:
    line = TextFormatter().format(record("name\n2026-01-01 INFO forged\x1b[31m"))
    assert "\n" not in line
    assert "\x1b" not in line
