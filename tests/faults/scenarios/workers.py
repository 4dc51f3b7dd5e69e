"""What can happen to a worker that holds a job, and what it costs."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import sqlalchemy as sa

from sharpzo_client.models import Job
from sharpzo_core.database.engine import writing
from sharpzo_core.database.tables import jobs
from sharpzo_core.errors import StorageUnavailable
from sharpzo_core.records.jobs import is_terminal
from tests.faults.cluster import (
    END_SECONDS,
    ENDLESS,
    LONG,
    MINUTE,
    Cluster,
    Worker,
    history_faults,
)
from tests.helpers import eventually

LONGEST_SECONDS = 600.0  # for a job of a minute on a machine that is busy

Strike = Callable[[Cluster, str], None]


def kill_group(cluster: Cluster, job_id: str) -> None:
    """`kill -9` for the worker that runs the job, and all its processes."""
    cluster.holder(job_id).kill()


def kill_child(cluster: Cluster, job_id: str) -> None:
    """`kill -9` for the process that runs the job alone, as the kernel does when memory ends."""
    os.kill(cluster.child_of(job_id), signal.SIGKILL)


def seconds_to_recover(cluster: Cluster, job_id: str, strike: Strike) -> float:
    """From the strike until the API says that another process runs the job."""
    before = cluster.client.jobs.get(job_id).attempt
    strike(cluster, job_id)
    struck = time.monotonic()
    cluster.wait(job_id, lambda job: job.status == "running" and job.attempt > before)
    return time.monotonic() - struck


def recoveries(
    cluster: Cluster, kills: int, *, jobs_at_once: int, isolated: bool, seed: int = 0
) -> list[float]:
    """Kill whole workers at random moments of endless jobs; seconds until each ran elsewhere.

    Needs twice as many workers as jobs; each that is killed is replaced.
    """

    def one_job(number: int, share: int) -> list[float]:
        rng = random.Random(f"{seed}-{number}")
        job = cluster.submit(**ENDLESS)
        times = []
        for _ in range(share):
            cluster.wait(job.id, lambda job: job.status == "running" and job.progress.step > 0)
            pause(rng.uniform(0, cluster.settings.heartbeat_seconds))
            times.append(seconds_to_recover(cluster, job.id, kill_group))
            cluster.wait_until_up(cluster.start_worker(isolated=isolated))
        cluster.cancel(job.id)
        return times

    shares = [len(range(number, kills, jobs_at_once)) for number in range(jobs_at_once)]
    with ThreadPoolExecutor(jobs_at_once) as pool:
        return [
            seconds
            for times in pool.map(one_job, *zip(*enumerate(shares), strict=True))
            for seconds in times
        ]


@dataclass(frozen=True)
class Disturbed:
    """A job that was struck, and how it ended."""

    job: Job
    sha256: str
    faults: list[str]  #: Of its history


def disturbed(cluster: Cluster, strike: Strike, moment: Callable[[str], object]) -> Disturbed:
    """Run a long job, strike at that moment of its run, and wait for its end."""
    job = cluster.submit(**LONG)
    cluster.wait_until_running(job.id)
    moment(job.id)
    strike(cluster, job.id)
    return ended_as(cluster, job.id)


def ended_as(cluster: Cluster, job_id: str) -> Disturbed:
    """The end of a job that succeeds."""
    ended = cluster.wait_until_ended(job_id)
    assert ended.status == "succeeded", f"{ended}\n{cluster.event_types(job_id)}"
    return Disturbed(ended, cluster.vectors_sha256(ended), history_faults(cluster.events(job_id)))


def identical_results(cluster: Cluster, runs: int, seed: int = 0) -> tuple[int, int]:
    """Kill the worker of `runs` jobs at random moments: how many learned the same, and how many
    were caught in stage 1."""
    undisturbed = cluster.undisturbed(**LONG)
    rng = random.Random(seed)
    same = in_stage1 = 0
    for number in range(runs):
        phases: list[str | None] = []

        def at_random_step(job_id: str, phases: list[str | None] = phases) -> None:
            step = rng.randrange(LONG["total_steps"] * 4 // 5)
            phases.append(cluster.wait_until_running(job_id, step).phase)

        struck = disturbed(cluster, (kill_group, kill_child)[number % 2], at_random_step)
        same += struck.sha256 == undisturbed and struck.job.attempt == 2 and not struck.faults
        in_stage1 += phases == ["stage1"]
        restore(cluster, 2)
    return same, in_stage1


def kill_repeatedly(cluster: Cluster, job_id: str, kills: int, seconds: float) -> int:
    """Kill the whole worker so many seconds after each start of the job; how many kills met it."""
    for number in range(1, kills + 1):

        def started(job: Job, number: int = number) -> bool:
            return job.is_terminal or (job.status == "running" and job.attempt >= number)

        cluster.wait(job_id, started)
        pause(seconds)
        if is_terminal(cluster.stores.jobs.get(job_id).status):
            return number - 1
        kill_group(cluster, job_id)
        cluster.workers = [worker for worker in cluster.workers if worker.lives]
        cluster.start_worker()
    return kills


@dataclass(frozen=True)
class Preempted:
    """A job whose workers vanished again and again."""

    job: Job
    kills: int
    same: bool  #: Whether it learned what an undisturbed job does
    seconds: float
    undisturbed_seconds: float
    faults: list[str]  #: Of its history


def preempted(cluster: Cluster, kills: int, seconds: float) -> Preempted:
    """One job of about a minute, which loses so many whole workers."""
    started = time.monotonic()
    undisturbed = cluster.undisturbed(LONGEST_SECONDS, **MINUTE)
    undisturbed_seconds = time.monotonic() - started
    job = cluster.submit(**MINUTE)
    started = time.monotonic()
    kills = kill_repeatedly(cluster, job.id, kills, seconds)
    ended = cluster.wait_until_ended(job.id, LONGEST_SECONDS)
    return Preempted(
        job=ended,
        kills=kills,
        same=ended.status == "succeeded" and cluster.vectors_sha256(ended) == undisturbed,
        seconds=time.monotonic() - started,
        undisturbed_seconds=undisturbed_seconds,
        faults=history_faults(cluster.events(job.id)),
    )


@dataclass(frozen=True)
class Drained:
    """A worker that was told to end while it ran a job."""

    seconds: float
    exit_code: int
    attempt: int  #: Of the job when it runs elsewhere
    signalled_step: int  #: Where the job was, at least, when its worker was told
    resumed_step: int  #: Where it went on


def drain(cluster: Cluster, job_id: str, signals: int = 1) -> Drained:
    """SIGTERM, perhaps several, for the worker that runs the job; another takes it on."""
    worker = cluster.holder(job_id)
    told = len(cluster.events(job_id))
    step = cluster.client.jobs.get(job_id).progress.step
    started = time.monotonic()
    for _ in range(signals):
        worker.signal(signal.SIGTERM)
    exit_code = worker.wait()
    seconds = time.monotonic() - started
    cluster.wait(job_id, lambda _: _resumed_step(cluster, job_id, told) is not None, END_SECONDS)
    return Drained(
        seconds=seconds,
        exit_code=exit_code,
        attempt=cluster.client.jobs.get(job_id).attempt,
        signalled_step=step,
        resumed_step=_resumed_step(cluster, job_id, told) or 0,
    )


def _resumed_step(cluster: Cluster, job_id: str, told: int) -> int | None:
    """At which step the job entered its search again, as its events say."""
    for event in cluster.events(job_id)[told:]:
        data = event.data or {}
        if event.type == "phase" and data["phase"] in ("stage1", "stage2"):
            return int(data["step"])
    return None


def drains(cluster: Cluster, runs: int, seed: int = 0) -> list[Drained]:
    """SIGTERM at random moments, a new worker each time; all of one endless job."""
    rng = random.Random(seed)
    job = cluster.submit(**ENDLESS)
    drained = []
    for _ in range(runs):
        step = cluster.wait_until_running(job.id).progress.step
        cluster.wait_until_running(job.id, step + 1)
        pause(rng.uniform(0, 2))
        drained.append(drain(cluster, job.id))
        restore(cluster, 2)
    cluster.cancel(job.id)
    return drained


def restore(cluster: Cluster, count: int) -> None:
    """Have so many living workers again."""
    cluster.workers = [worker for worker in cluster.workers if worker.lives]
    cluster.start_workers(count - len(cluster.workers))


def suspend(cluster: Cluster, job_id: str) -> Worker:
    """SIGSTOP for the worker that runs the job, between two transactions.

    In the middle of one it would hold a lock of the database, which nobody could take from it.
    """
    worker = cluster.holder(job_id)

    def stopped() -> bool:
        worker.signal_group(signal.SIGSTOP)
        if not _is_locked(cluster, job_id):
            return True
        worker.signal_group(signal.SIGCONT)
        return False

    eventually(stopped, END_SECONDS, "stopping between two transactions")
    return worker


def _is_locked(cluster: Cluster, job_id: str) -> bool:
    row = sa.select(jobs.c.id).where(jobs.c.id == job_id).with_for_update(nowait=True)
    try:
        with writing(cluster.stores.engine) as connection:
            connection.execute(row)
    except StorageUnavailable:
        return True
    return False


def poison(cluster: Cluster, job_id: str) -> int:
    """Kill every process that takes the job, at once, until the job has ended; how many."""
    killed: set[str] = set()

    def ended() -> bool:
        job = cluster.stores.jobs.get(job_id)
        if job.lease_process is not None and job.lease_process not in killed:
            killed.add(job.lease_process)
            os.kill(int(job.lease_process.split("/")[2]), signal.SIGKILL)
        return is_terminal(job.status)

    eventually(ended, END_SECONDS, "the end of a poisonous job")
    return len(killed)


def pause(seconds: float) -> None:
    """A random moment is one that nothing tells."""
    threading.Event().wait(seconds)
