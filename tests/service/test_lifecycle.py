"""Random interleavings of clients, workers, sweepers and a broker that loses and repeats.

Everything is real but time and the broker: requests go through the application, workers write
through their leases, and the sweeper is the one that workers run.
"""

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from starlette.testclient import TestClient

from service.app import create_app
from service.services import Services
from sharpzo_core.broker.queue import JobQueue
from sharpzo_core.database.engine import writing
from sharpzo_core.database.tables import job_events, job_steps, jobs, prompts, workers
from sharpzo_core.errors import LeaseLost, NotFound
from sharpzo_core.ids import Prefix, new_id
from sharpzo_core.records.jobs import (
    LEASED,
    TRANSITIONS,
    CheckpointRef,
    Job,
    JobKind,
    JobProgress,
    JobStatus,
    Lease,
    Phase,
    is_terminal,
)
from sharpzo_core.records.prompts import NewPrompt
from sharpzo_core.settings import Settings
from sharpzo_core.stores.job_leases import JobLeases, lease_of
from sharpzo_core.stores.job_store import JobStore
from worker.sweeper import Sweeper

T = TypeVar("T")

MOVES = ("pause", "resume", "cancel", "finish")
WORKERS = ("wrk_a", "wrk_b")
MAX_JOBS = 3
APPLIED = "pets"  # the prompt that jobs apply
RIVALS = 50


class Broker:
    """Messages in a list."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def notify(self, job_id: str) -> bool:
        self.messages.append(job_id)
        return True

    def close(self) -> None:
        self.messages.clear()


class AtOnce(Executor):
    """Runs what is submitted before `submit` returns."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@dataclass
class World:
    """The application and its stores, on a clock that the machine turns."""

    client: TestClient
    services: Services
    broker: Broker
    dataset_id: str
    seconds: float = 0.0
    sweepers: dict[str, Sweeper] = field(default_factory=dict)

    def clock(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)

    @property
    def leases(self) -> JobLeases:
        chosen = self.services.settings
        return JobLeases(
            self.services.database,
            lease_seconds=chosen.lease_seconds,
            max_attempts=chosen.max_attempts,
            clock=self.clock,
        )

    def sweeper(self, owner: str) -> Sweeper:
        return Sweeper(
            owner=owner,
            settings=self.services.settings,
            leases=self.leases,
            jobs=self.services.jobs,
            workers=self.services.workers,
            queue=cast("JobQueue", self.broker),
            clock=self.clock,
            ticks=lambda: self.seconds,
        )

    def clear(self) -> None:
        self.seconds = 0.0
        self.broker.messages.clear()
        self.sweepers = {owner: self.sweeper(owner) for owner in WORKERS}
        with writing(self.services.database) as connection:
            for table in (job_events, job_steps, jobs, prompts, workers):
                connection.execute(table.delete())
        self.services.prompts.publish(replace(a_prompt("none"), job_id=None, name=APPLIED))

    def submit(self, path: str = "/v1/jobs", **body: Any) -> str:
        response = self.client.post(path, json={"dataset_id": self.dataset_id, **body})
        assert response.status_code in (201, 202), response.text
        return str(response.json()["id"])

    def all_jobs(self) -> list[Job]:
        return self.services.jobs.list(100).items


@contextmanager
def a_world(folder: Path) -> Iterator[World]:
    chosen = Settings.load(data_dir=folder)
    app = create_app(chosen)
    with TestClient(app, "http://localhost") as client:
        original: Services = app.state.services
        dataset = original.datasets.create("shapes")
        counts = {"train": {"cat": 4, "dog": 4}}
        original.datasets.mark_ready(
            dataset.id, classes=["cat", "dog"], counts=counts, sha256="0" * 64
        )
        broker = Broker()
        world = World(client, original, broker, dataset.id)
        world.services = app.state.services = copy(original)
        world.services.jobs = JobStore(original.database, world.clock)
        world.services.queue = cast("JobQueue", broker)
        world.services.notifier = cast("ThreadPoolExecutor", AtOnce())
        try:
            yield world
        finally:
            app.state.services = original


class Lifecycle(RuleBasedStateMachine):
    world: World
    held: Bundle[Lease] = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.world.clear()
        self.seen: dict[str, JobStatus] = {}
        self.deleted: set[str] = set()

    # Clients

    @precondition(lambda self: len(self.world.all_jobs()) < MAX_JOBS)
    @rule()
    def submit(self) -> None:
        self.world.submit(config={"shots": 2})

    @precondition(lambda self: len(self.world.all_jobs()) < MAX_JOBS)
    @rule(what=st.sampled_from(["evaluate", "batch"]))
    def submit_one_that_applies(self, what: str) -> None:
        self.world.submit(f"/v1/prompts/{APPLIED}/{what}", split="train")

    @precondition(lambda self: self.world.all_jobs())
    @rule(which=st.integers(0, MAX_JOBS - 1), move=st.sampled_from(MOVES))
    def ask(self, which: int, move: str) -> None:
        job = self._job(which)
        response = self.world.client.post(f"/v1/jobs/{job.id}/{move}")
        assert response.status_code in (202, 409)
        if response.status_code == 202:
            assert response.json()["status"] == self.world.services.jobs.get(job.id).status

    @precondition(lambda self: self.world.all_jobs())
    @rule(which=st.integers(0, MAX_JOBS - 1))
    def delete(self, which: int) -> None:
        job = self._job(which)
        response = self.world.client.delete(f"/v1/jobs/{job.id}")
        assert response.status_code == (204 if is_terminal(job.status) else 409)
        if response.status_code == 204:
            self.deleted.add(job.id)

    def _job(self, which: int) -> Job:
        found = self.world.all_jobs()
        return found[which % len(found)]

    # The broker

    @precondition(lambda self: self.world.broker.messages)
    @rule(
        target=held,
        place=st.integers(0, 100),
        worker=st.sampled_from(WORKERS),
        again=st.booleans(),
    )
    def deliver(self, place: int, worker: str, again: bool) -> Any:
        messages = self.world.broker.messages
        place %= len(messages)
        job_id = messages[place] if again else messages.pop(place)
        job = self.world.leases.claim(job_id, worker)
        return multiple() if job is None else lease_of(job)

    @rule()
    def empty_the_broker(self) -> None:
        self.world.broker.messages.clear()

    # Workers; one that is not heard of for a while is the same as one that is dead

    @rule(lease=held, step=st.integers(1, 99))
    def report(self, lease: Lease, step: int) -> None:
        progress = JobProgress(Phase.STAGE1, step, 100, step)
        self._write(lease, lambda: self.world.leases.save_progress(lease, progress, {}))

    @rule(lease=held, step=st.integers(1, 99))
    def checkpoint(self, lease: Lease, step: int) -> None:
        reference = CheckpointRef(lease.token, step, self.world.clock())
        self._write(lease, lambda: self.world.leases.save_checkpoint(lease, reference))

    @rule(lease=held)
    def put_down(self, lease: Lease) -> None:
        job = self._write(lease, lambda: self.world.leases.release(lease))
        if job is not None and job.status is JobStatus.QUEUED:
            self.world.broker.notify(lease.job_id)

    @rule(lease=held)
    def succeed(self, lease: Lease) -> None:
        kinds = {job.id: job.kind for job in self.world.all_jobs()}
        kind = kinds.get(lease.job_id, JobKind.TUNING)
        self._write(lease, lambda: self._end(lease, kind))

    def _end(self, lease: Lease, kind: JobKind) -> Job:
        if kind is JobKind.TUNING:
            return self.world.leases.succeed(lease, a_prompt(lease.job_id), {})
        return self.world.leases.complete(lease, lease.token, {})

    @rule(lease=held)
    def fail(self, lease: Lease) -> None:
        self._write(lease, lambda: self.world.leases.fail(lease, "code", "message"))

    def _write(self, lease: Lease, write: Callable[[], T]) -> T | None:
        """A write succeeds if and only if the lease is the job's present one."""
        tokens = [job.lease_token for job in self.world.all_jobs() if job.id == lease.job_id]
        try:
            written = write()
        except LeaseLost:
            assert lease.token not in tokens
            return None
        assert lease.token in tokens
        return written

    @rule(owner=st.sampled_from(WORKERS), seconds=st.sampled_from([1, 6, 25]))
    def sweep(self, owner: str, seconds: int) -> None:
        self.world.sweepers[owner].sweep()
        self.world.seconds += seconds
        self.world.sweepers[owner].sweep()

    # What must hold at every moment

    @invariant()
    def moves_are_those_of_the_table(self) -> None:
        now = {job.id: job for job in self.world.all_jobs()}
        assert set(self.seen) - set(now) == self.deleted
        for job in now.values():
            before = self.seen.get(job.id, JobStatus.QUEUED)
            assert job.status is before or job.status in TRANSITIONS[before]
            assert (job.lease_token is not None) is (job.status in LEASED)
            assert (job.finished_at is not None) is is_terminal(job.status)
            assert job.attempt >= 0
        self.seen = {job.id: job.status for job in now.values()}
        self.deleted.clear()

    @invariant()
    def nothing_is_doubled(self) -> None:
        published = [prompt.job_id for prompt in self.world.services.prompts.list(100).items]
        assert len(published) == len(set(published))
        for job in self.world.all_jobs():
            left = job.id in published if job.kind is JobKind.TUNING else job.result_folder
            assert bool(left) is (job.status is JobStatus.SUCCEEDED)
            assert job.kind is JobKind.TUNING or job.id not in published
            events = self.world.services.jobs.events(job.id, limit=1000)
            assert [event.seq for event in events] == list(range(1, job.last_event + 1))
            named = [event.data["status"] for event in events if "status" in event.data]
            assert named[-1] == job.status
            assert_is_a_path(named)

    def teardown(self) -> None:
        """Whatever has happened, jobs that wait or run come to an end by themselves."""
        self.world.broker.messages.clear()
        for _ in range(20):
            self.world.seconds += 35
            for sweeper in self.world.sweepers.values():
                sweeper.sweep()
            while self.world.broker.messages:
                job = self.world.leases.claim(self.world.broker.messages.pop(), WORKERS[0])
                if job is not None:
                    self._end(lease_of(job), job.kind)
        assert {job.status for job in self.world.all_jobs()} <= {
            JobStatus.PAUSED,
            JobStatus.SUCCEEDED,
            JobStatus.FAILED,
            JobStatus.CANCELLED,
        }


def assert_is_a_path(statuses: list[str]) -> None:
    assert statuses[0] == JobStatus.QUEUED
    for before, after in pairwise(statuses):
        assert after in TRANSITIONS[JobStatus(before)], statuses


def a_prompt(job_id: str) -> NewPrompt:
    return NewPrompt(
        id=new_id(Prefix.PROMPT),
        name=job_id,
        job_id=job_id,
        backbone={"name": "tiny", "pretrained": None, "fingerprint": "f"},
        classes=("cat", "dog"),
        metrics={},
        sha256="1" * 64,
    )


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with a_world(tmp_path) as world:
        yield world


def test_no_interleaving_loses_doubles_or_sticks_a_job(world: World) -> None:
    machine = type("Machine", (Lifecycle,), {"world": world})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_many_clients_racing_for_one_job_give_a_legal_history(world: World) -> None:
    world.clear()
    job_id = world.submit(config={"shots": 2})
    done = threading.Event()
    together = threading.Barrier(RIVALS)
    codes: list[int] = []

    def client(seed: int) -> None:
        rng = random.Random(seed)
        for move in rng.choices(MOVES, k=5):
            response = world.client.post(f"/v1/jobs/{job_id}/{move}")
            codes.append(response.status_code)
        together.wait()
        world.client.post(f"/v1/jobs/{job_id}/cancel")
        while codes[-1] != 404:
            codes.append(world.client.delete(f"/v1/jobs/{job_id}").status_code)

    histories: list[list[str]] = []

    def worker() -> None:
        while not done.is_set():
            with suppress(NotFound):
                histories.append(history(world, job_id))
            job = world.leases.claim(job_id, "wrk_a")
            with suppress(LeaseLost):
                if job is not None:
                    world.leases.release(lease_of(job))

    working = threading.Thread(target=worker)
    working.start()
    with ThreadPoolExecutor(RIVALS) as pool:
        list(pool.map(client, range(RIVALS)))
    done.set()
    working.join()
    assert set(codes) <= {202, 204, 404, 409}
    assert codes.count(204) == 1
    assert max(map(len, histories)) > 20
    for statuses in histories:
        assert_is_a_path(statuses)


def history(world: World, job_id: str) -> list[str]:
    events = world.services.jobs.events(job_id, limit=1000)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    return [event.data["status"] for event in events if "status" in event.data]
