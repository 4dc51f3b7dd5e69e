"""A worker ignores the Celery messages of other programs that use the same broker.

Whoever writes to the broker is trusted (docs/security.md), so that nothing is promised about things
that no Celery client writes.
"""

import base64
import json
import pickle
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from sharpzo_core.broker.queue import QueueName, TaskName
from sharpzo_core.ids import Prefix, new_id
from sharpzo_core.records.jobs import JobStatus
from tests.helpers import Workplace

LARGE = "x" * 5_000_000


class Trap:
    """Creates a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._path,)


def envelope(
    content: bytes,
    task: str = TaskName.TUNE,
    content_type: str = "application/json",
    **changes: Any,
) -> bytes:
    """A message as the broker's client writes it."""
    message: dict[str, Any] = {
        "body": base64.b64encode(content).decode(),
        "content-encoding": "utf-8" if content_type.endswith("json") else "binary",
        "content-type": content_type,
        "headers": headers(task),
        "properties": {
            "body_encoding": "base64",
            "correlation_id": str(uuid.uuid4()),
            "delivery_tag": str(uuid.uuid4()),
            "delivery_info": {"exchange": "", "routing_key": QueueName.TUNING},
            "delivery_mode": 2,
            "priority": 0,
        },
    }
    return json.dumps(message | changes).encode()


def headers(task: str = TaskName.TUNE, **changes: Any) -> dict[str, Any]:
    usual = {"lang": "py", "eta": None, "expires": None, "timelimit": [None, None], "retries": 0}
    return {"task": task, "id": str(uuid.uuid4())} | usual | changes


def arguments(*values: object, **named: object) -> bytes:
    return json.dumps([values, named, {}]).encode()


def bad_messages(trap: Path) -> list[bytes]:
    pickled = pickle.dumps(((Trap(trap),), {}, {}))
    return [
        envelope(arguments(), headers=headers(eta="2026-01-01T00:00:00+00:00")),
        envelope(arguments(), headers=headers(expires="2026-01-01T00:00:00+00:00")),
        envelope(pickled, content_type="application/x-python-serialize"),
        envelope(arguments(new_id(Prefix.JOB)), task="os.system"),
        envelope(arguments(new_id(Prefix.JOB))),  # of no job here
        envelope(arguments(new_id(Prefix.DATASET))),
        envelope(arguments("job_' OR 1=1--")),
        envelope(arguments(17)),
        envelope(arguments(None)),
        envelope(arguments()),
        envelope(arguments(new_id(Prefix.JOB), "more")),
        envelope(arguments(job_id=new_id(Prefix.JOB), queue="x")),
        envelope(arguments(LARGE)),
    ]


def put(place: Workplace, message: bytes) -> None:
    """Past every client, straight into the broker."""
    if place.settings.embedded_broker:
        name = f"0_{uuid.uuid4()}.{QueueName.TUNING}.msg"
        (place.settings.broker_dir / "messages" / name).write_bytes(message)
        return
    with redis.Redis.from_url(place.settings.broker_url) as client:
        client.lpush(QueueName.TUNING, message)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mode", ["embedded", pytest.param("redis", marks=pytest.mark.needs("redis"))]
)
def test_a_worker_ignores_bad_messages_and_runs_the_job_behind_them(
    make_workplace: Callable[..., Workplace],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    mode: str,
) -> None:
    url = request.getfixturevalue("redis_url") if mode == "redis" else ""
    place = make_workplace(broker_url=url, sweep_seconds=60)
    trap = tmp_path / "unpickled"
    for message in bad_messages(trap):
        put(place, message)
    job = place.submit()
    worker = place.start_worker()
    assert place.wait_until_ended(job.id).status is JobStatus.SUCCEEDED
    assert worker.poll() is None
    assert place.queue.depth() == 0
    assert not trap.exists()
    assert place.jobs.get(job.id).attempt == 1
