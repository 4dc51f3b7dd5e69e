"""A whole service as processes of its own, and the faults that can be done to them.

Clusters are driven and judged through the API. The stores are looked at for what the API does not
tell: which process holds a job.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from sharpzo_client import Client
from sharpzo_client.errors import SharpzoError
from sharpzo_client.models import Job, JobEvent
from sharpzo_core.settings import Settings
from sharpzo_engine.prompts.artifact import TunedPrompt
from tests.conftest import own_database
from tests.faults.proxy import Proxy
from tests.helpers import CONFIG, Workplace, eventually

EMBEDDED = "embedded"  #: SQLite, and messages in files
SERVERS = "servers"  #: PostgreSQL and Redis

#: Everything ten times as quick as by default, for tests; the code is the same.
FAST = {
    "lease_seconds": 2.0,
    "heartbeat_seconds": 0.5,
    "sweep_seconds": 0.5,
    "checkpoint_seconds": 0.2,
}
#: A few seconds, shared by both stages.
LONG: dict[str, Any] = {
    "total_steps": 600,
    "max_forward_passes": 10**9,
    "change_point": 200,
    "cma": {"population_size": 256},
    "zo": {"optimizer": "adam", "queries": 128},
}
#: About a minute, half of it in each stage.
MINUTE = LONG | {"total_steps": 13_000, "change_point": 4_300}
#: Long enough on any machine; to be cancelled.
ENDLESS: dict[str, Any] = {
    "total_steps": 200_000,
    "max_forward_passes": 10**9,
    "change_point": 20,
    "zo": {"optimizer": "adam", "queries": 512},
}

START_SECONDS = 60.0  # for a process to come up on a machine that is busy
END_SECONDS = 120.0  # for a job to end there
TERMINAL_EVENTS = frozenset({"succeeded", "failed", "cancelled"})
#: A process id space of its own, like that of another host. Works without being root.
ISOLATED = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def is_listening(port: int) -> bool:
    """Whether somebody accepts connections on that port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Process:
    """A process in a group of its own; its output goes to a file."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("ab") as stream:
            self._popen = subprocess.Popen(
                command,
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def lives(self) -> bool:
        return self._popen.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Signal the first process of the group alone."""
        self._popen.send_signal(number)

    def signal_group(self, number: signal.Signals) -> None:
        """Signal the process and all that it started."""
        os.killpg(self.pid, number)

    def wait(self, seconds: float = START_SECONDS) -> int:
        """Its exit code, once it has ended."""
        return self._popen.wait(seconds)

    def kill(self) -> None:
        """`kill -9` for the whole group; one that is gone already is no error."""
        if self.lives:
            self.signal_group(signal.SIGKILL)
        self.wait()

    def stop(self) -> int:
        """End it as a service manager would."""
        if self.lives:
            self.signal(signal.SIGTERM)
        return self.wait()

    def logged(self, action: str) -> list[dict[str, Any]]:
        """Its log lines about one action."""
        lines = [line for line in self.log.read_text().splitlines() if f'"{action}"' in line]
        return [record for line in lines if (record := json.loads(line))["action"] == action]


class Worker(Process):
    """A tuning worker."""

    @property
    def is_up(self) -> bool:
        return bool(self.logged("slot_ready"))

    @cached_property
    def name(self) -> str:
        """Its id, as leases and events show it."""
        (started,) = eventually(lambda: self.logged("worker_started"), START_SECONDS, self.log)
        return str(started["worker"])


class Redis:
    """A `redis-server` on a port that it keeps; without persistence a restart empties it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = free_port()
        self._process: Process | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def is_up(self) -> bool:
        return is_listening(self.port)

    def start(self, *, wait: bool = True) -> None:
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1"]
        command += ["--dir", str(self._folder), "--save", "", "--appendonly", "no"]
        self._process = Process(command, {}, self._folder / "redis.log")
        if wait:
            eventually(lambda: self.is_up, START_SECONDS, "redis-server")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()

    def command(self, *words: str) -> object:
        """Have it do something, past every proxy."""
        import redis

        with redis.Redis(port=self.port, socket_timeout=5) as client:
            return client.execute_command(*words)


class Cluster:
    """One data folder and database, and the processes started on them."""

    def __init__(self, folder: Path, backbone: Path, **settings: Any) -> None:
        defaults = {
            "data_dir": folder / "data",
            "backbones": f"tiny=local-dir:{backbone}",
            "port": free_port(),
            "log_format": "json",
        }
        self.settings = Settings.load(**defaults | settings)
        self.stores = Workplace(self.settings)
        self.url = f"http://127.0.0.1:{self.settings.port}"
        self.client = Client(self.url, timeout=30, max_retries=0)
        self.api: Process | None = None
        self.redis: Redis | None = None  #: In the mode that has one
        self.proxy: Proxy | None = None  #: Between the processes and Redis, where there is one
        self.workers: list[Worker] = []
        self._folder = folder
        self._logs = itertools.count(1)
        self._had_worker = False

    def close(self) -> None:
        """End every process and close every connection."""
        if self.api is not None:
            # An embedded worker has a session of its own; its parent ends it when asked to.
            self.api.stop() if self._had_worker and self.api.lives else self.api.kill()
        for worker in self.workers:
            worker.kill()
        self.client.close()
        self.stores.close()

    # Processes

    def start_api(self, *, embedded_worker: bool = False, wait: bool = True) -> Process:
        """Start the API on the port that it always has."""
        command = [sys.executable, "-m", "sharpzo_cli", "serve"]
        self.api = self._start(
            Process, "api", command + ([] if embedded_worker else ["--no-worker"])
        )
        self._had_worker = embedded_worker
        if wait:
            eventually(self.api_answers, START_SECONDS, "the API")
        return self.api

    def start_worker(self, *, isolated: bool = False) -> Worker:
        """Start a worker; an isolated one sees no other's processes, as if on another host."""
        prefix = (*ISOLATED, "--kill-child") if isolated else ()
        worker = self._start(Worker, "worker", [*prefix, sys.executable, "-m", "worker"])
        self.workers.append(worker)
        return worker

    def start_workers(self, count: int, **options: Any) -> list[Worker]:
        """Start several side by side, and wait until all are up."""
        started = [self.start_worker(**options) for _ in range(count)]
        for worker in started:
            self.wait_until_up(worker)
        return started

    def _start(self, kind: type[Any], name: str, command: list[str]) -> Any:
        log = self._folder / f"{name}-{next(self._logs)}.log"
        return kind(command, self.settings.environment(), log)

    def wait_until_up(self, worker: Worker) -> None:
        """Return once the worker looks for jobs."""
        eventually(lambda: worker.is_up, START_SECONDS, worker.log)

    def api_answers(self) -> bool:
        try:
            self.client.health.livez()
        except SharpzoError:
            return False
        return True

    def ready(self) -> str:
        """Empty if the service says that it is ready, else the reason why not."""
        try:
            self.client.health.readyz()
        except SharpzoError as error:
            return str(error)
        return ""

    def wait_until_ready(self, seconds: float = START_SECONDS) -> None:
        eventually(lambda: not self.ready(), seconds, "readiness")

    # Jobs

    @cached_property
    def dataset_id(self) -> str:
        """The dataset of all jobs here."""
        return self.stores.add_dataset().id

    def submit(self, name: str | None = None, **config: Any) -> Job:
        """Ask the API for a job."""
        return self.client.jobs.create(self.dataset_id, config=CONFIG | config, name=name)

    def submit_until_accepted(self, client: Client, name: str) -> str:
        """Send one job with one key again and again until the API has accepted it."""

        def accepted() -> str | None:
            try:
                job = client.jobs.create(
                    self.dataset_id, config=CONFIG, name=name, idempotency_key=name
                )
            except SharpzoError:
                return None
            return job.id

        return eventually(accepted, END_SECONDS, f"accepting {name}") or ""

    def wait(
        self, job_id: str, condition: Callable[[Job], bool], seconds: float = END_SECONDS
    ) -> Job:
        """The job as soon as it is so."""

        def look() -> Job | None:
            job = self.client.jobs.get(job_id)
            return job if condition(job) else None

        try:
            found = eventually(look, seconds, "the condition")
        except TimeoutError as error:
            history = [(event.type, event.message) for event in self.events(job_id)]
            raise TimeoutError(f"{self.client.jobs.get(job_id)}\n{history}") from error
        assert found is not None
        return found

    def wait_until_running(self, job_id: str, step: int = 1) -> Job:
        """The job once it has made its first steps."""
        job = self.wait(job_id, lambda job: job.progress.step >= step or job.is_terminal)
        assert job.status == "running", f"the job was too short for this test: {job}"
        return job

    def wait_until_saved(self, job_id: str) -> None:
        """Return as soon as the running job has a checkpoint."""
        self.stores.wait_for_checkpoint(job_id)

    def wait_until_ended(self, job_id: str, seconds: float = END_SECONDS) -> Job:
        return self.wait(job_id, lambda job: job.is_terminal, seconds)

    def cancel(self, job_id: str) -> Job:
        """Cancel a job and wait for its end."""
        self.client.jobs.cancel(job_id)
        return self.wait_until_ended(job_id)

    def cancel_all(self) -> None:
        """Leave no job unfinished."""
        unfinished = [job.id for job in self.client.jobs.list() if not job.is_terminal]
        for job_id in unfinished:
            self.client.jobs.cancel(job_id)
        for job_id in unfinished:
            self.wait_until_ended(job_id)

    def events(self, job_id: str) -> list[JobEvent]:
        return list(self.client.jobs.events(job_id))

    def event_types(self, job_id: str) -> list[str]:
        return [event.type for event in self.events(job_id)]

    def prompts_of(self, job_id: str) -> int:
        """How many prompt versions this job has published."""
        return sum(prompt.job_id == job_id for prompt in self.client.prompts.list())

    def vectors_sha256(self, job: Job) -> str:
        """The hash of what the job learned."""
        assert job.prompt_id is not None, job
        path = self._folder / f"{job.prompt_id}.safetensors"
        self.client.prompts.download(job.prompt_id, path)
        return TunedPrompt.load(path).vectors_sha256

    def undisturbed(self, seconds: float = END_SECONDS, **config: Any) -> str:
        """The hash of what a job learns that nothing happens to."""
        ended = self.wait_until_ended(self.submit(**config).id, seconds)
        assert (ended.status, ended.attempt) == ("succeeded", 1), ended
        return self.vectors_sha256(ended)

    # Who runs what

    def holder(self, job_id: str) -> Worker:
        """The worker that runs the job."""
        owner = eventually(lambda: self.stores.jobs.get(job_id).lease_owner, START_SECONDS)
        return next(worker for worker in self.workers if worker.lives and worker.name == owner)

    def child_of(self, job_id: str) -> int:
        """The id of the process that runs the job, in the namespace of its own worker."""
        identity = self.stores.jobs.get(job_id).lease_process
        assert identity is not None
        return int(identity.split("/")[2])


def history_faults(events: Sequence[JobEvent]) -> list[str]:
    """What is wrong with the history of a job that has ended."""
    faults = []
    if [event.seq for event in events] != list(range(1, len(events) + 1)):
        faults.append("numbers with gaps or repeats")
    ends = [event.type for event in events if event.type in TERMINAL_EVENTS]
    if len(ends) != 1 or events[-1].type not in TERMINAL_EVENTS:
        faults.append(f"ends: {ends}")
    return faults


@contextmanager
def open_cluster(folder: Path, backbone: Path, **settings: Any) -> Iterator[Cluster]:
    """A cluster without processes yet; none is left afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    cluster = Cluster(folder, backbone, **settings)
    try:
        yield cluster
    finally:
        cluster.close()


@contextmanager
def open_mode(mode: str, folder: Path, backbone: Path, **settings: Any) -> Iterator[Cluster]:
    """A cluster of one of the two modes, with servers of its own where it needs them."""
    with ExitStack() as stack:
        redis = None
        if mode == SERVERS:
            redis = stack.enter_context(open_redis(folder / "redis"))
            database_url = stack.enter_context(own_database())
            settings = {"broker_url": redis.url, "database_url": database_url} | settings
        cluster = stack.enter_context(open_cluster(folder, backbone, **settings))
        cluster.redis = redis
        yield cluster


@contextmanager
def open_redis(folder: Path) -> Iterator[Redis]:
    """A `redis-server` in a folder of its own, ended afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    server = Redis(folder)
    try:
        yield server
    finally:
        server.kill()
