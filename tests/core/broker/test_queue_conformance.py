"""What the queue promises, on every broker: little, and that without fail."""

import json
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from sharpzo_core.broker.queue import JobQueue, QueueName, TaskName, make_celery
from sharpzo_core.ids import Prefix, new_id
from sharpzo_core.settings import Settings
from tests.conftest import wait_for_port
from tests.core.broker.consumers import receive, receive_and_die

PATIENCE = 3.5  # seconds that a request may spend on a broker that is away


@pytest.fixture(params=["embedded", pytest.param("redis", marks=pytest.mark.needs("redis"))])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    url = request.getfixturevalue("redis_url") if request.param == "redis" else ""
    return Settings.load(data_dir=tmp_path, broker_url=url)


@pytest.fixture
def queue(settings: Settings) -> Iterator[JobQueue]:
    queue = JobQueue(make_celery(settings))
    yield queue
    queue.close()


def ids_of(messages: list[Any]) -> list[str]:
    return sorted(message.decode()[0][0] for message in messages)


def test_every_id_arrives_once(queue: JobQueue, settings: Settings) -> None:
    ids = sorted(new_id(Prefix.JOB) for _ in range(30))
    assert all(queue.notify(job_id) for job_id in ids)
    assert queue.depth() == len(ids)
    assert ids_of(receive(settings, len(ids))) == ids
    assert queue.depth() == 0


def test_a_message_is_json_with_the_id_alone(queue: JobQueue, settings: Settings) -> None:
    job_id = new_id(Prefix.JOB)
    queue.notify(job_id)
    (message,) = receive(settings, 1)
    assert message.content_type == "application/json"
    assert message.headers["task"] == TaskName.TUNE
    arguments, named, _ = json.loads(message.body)
    assert (arguments, named) == ([job_id], {})
    assert message.delivery_info["routing_key"] == QueueName.TUNING


def test_a_message_that_died_with_its_receiver_blocks_nothing(
    queue: JobQueue, settings: Settings
) -> None:
    job_id, other = new_id(Prefix.JOB), new_id(Prefix.JOB)
    queue.notify(job_id)
    receive_and_die(settings)
    assert queue.depth() == 0
    queue.notify(job_id)  # as the sweeper does
    queue.notify(other)
    assert ids_of(receive(settings, 2)) == sorted([job_id, other])


class RedisServer:
    """A Redis of our own, to be maltreated."""

    def __init__(self, folder: Path, port: int) -> None:
        self._folder = folder
        self.port = port
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", *options]
        self._process = subprocess.Popen(command, cwd=self._folder, stdout=subprocess.DEVNULL)
        wait_for_port(self.port)

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self) -> None:
        self.signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()

    def run(self, *command: str, password: str | None = None) -> None:
        with redis.Redis(port=self.port, password=password) as client:
            client.execute_command(*command)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = RedisServer(tmp_path, port)
    server.start("--save", "")
    yield server
    server.stop()


@pytest.fixture
def on_server(server: RedisServer, tmp_path: Path) -> Iterator[JobQueue]:
    url = f"redis://127.0.0.1:{server.port}/0"
    queue = JobQueue(make_celery(Settings.load(data_dir=tmp_path, broker_url=url)))
    assert queue.notify(new_id(Prefix.JOB))
    yield queue
    queue.close()


def fill_memory(server: RedisServer) -> Callable[[], None]:
    server.run("CONFIG", "SET", "maxmemory-policy", "noeviction")
    server.run("CONFIG", "SET", "maxmemory", "1")
    return lambda: server.run("CONFIG", "SET", "maxmemory", "0")


def make_read_only(server: RedisServer) -> Callable[[], None]:
    server.run("REPLICAOF", "127.0.0.1", "1")
    return lambda: server.run("REPLICAOF", "NO", "ONE")


def demand_a_password(server: RedisServer) -> Callable[[], None]:
    server.run("CONFIG", "SET", "requirepass", "secret")
    server.run("CLIENT", "KILL", "TYPE", "NORMAL", password="secret")
    return lambda: server.run("CONFIG", "SET", "requirepass", "", password="secret")


def freeze(server: RedisServer) -> Callable[[], None]:
    server.signal(signal.SIGSTOP)
    return lambda: server.signal(signal.SIGCONT)


def kill(server: RedisServer) -> Callable[[], None]:
    server.stop()
    return lambda: server.start("--save", "")


@pytest.mark.needs("redis-server")
@pytest.mark.parametrize(
    "break_it",
    [fill_memory, make_read_only, demand_a_password, freeze, kill],
    ids=lambda function: function.__name__,
)
def test_a_broker_that_refuses_is_no_error_and_heals(
    on_server: JobQueue, server: RedisServer, break_it: Callable[[RedisServer], Callable[[], None]]
) -> None:
    heal = break_it(server)
    started = time.monotonic()
    assert not on_server.notify(new_id(Prefix.JOB))
    assert time.monotonic() - started < PATIENCE
    heal()
    assert on_server.notify(new_id(Prefix.JOB))
    assert on_server.depth()


@pytest.mark.needs("redis-server")
@pytest.mark.parametrize(
    "break_it", [fill_memory, freeze, kill], ids=lambda function: function.__name__
)
def test_the_depth_of_a_broker_that_is_away_is_unknown(
    on_server: JobQueue, server: RedisServer, break_it: Callable[[RedisServer], Callable[[], None]]
) -> None:
    heal = break_it(server)
    started = time.monotonic()
    assert on_server.depth() is None
    assert time.monotonic() - started < PATIENCE
    heal()
    assert on_server.depth() is not None
