"""Real signals to real worker processes that hold a real job."""

import os
import resource
import signal
import time
from pathlib import Path

import pytest

from tests.faults.cluster import ENDLESS, LONG, Cluster
from tests.faults.conftest import MODES
from tests.faults.scenarios.workers import (
    Strike,
    drain,
    ended_as,
    kill_child,
    kill_group,
    kill_repeatedly,
    pause,
    poison,
    seconds_to_recover,
    suspend,
)
from tests.helpers import eventually

RECOVERY_SECONDS = 15  # with quick timings, on a machine that is busy
DRAIN_SECONDS = 10
ZOMBIE_SECONDS = 5
MORE_BYTES = 128 << 20  # than a process has already; the greedy job needs several times that
SETTLED_SECONDS, LOOKS = 2.0, 10

pytestmark = pytest.mark.timeout(600)


@pytest.mark.parametrize("strike", [kill_group, kill_child])
def test_a_killed_worker_costs_one_attempt_and_changes_nothing(
    cluster: Cluster, strike: Strike, sha256: str
) -> None:
    job = cluster.submit(**LONG)
    cluster.wait_until_saved(job.id)
    cluster.wait_until_running(job.id, 30)
    worker = cluster.holder(job.id)

    recovery = seconds_to_recover(cluster, job.id, strike)
    ended = ended_as(cluster, job.id)

    assert recovery < RECOVERY_SECONDS
    assert worker.lives == (strike is kill_child)
    assert (ended.job.attempt, ended.sha256, ended.faults) == (2, sha256, [])
    assert cluster.event_types(job.id).count("worker_lost") == 1
    steps = [record.step for record in cluster.client.jobs.metrics(job.id, resolution=10_000)]
    assert steps == list(range(1, LONG["total_steps"] + 1))


@pytest.mark.parametrize("strike", [kill_group, kill_child])
def test_a_job_that_was_to_finish_is_finished_by_the_next_worker(
    cluster: Cluster, strike: Strike
) -> None:
    job = cluster.submit(**ENDLESS)
    cluster.wait_until_saved(job.id)
    cluster.wait_until_running(job.id, 30)

    asked = cluster.client.jobs.finish(job.id)
    strike(cluster, job.id)  # before it notices, or while it does
    ended = cluster.wait_until_ended(job.id)

    assert (asked.status, asked.finishing) == ("running", True)
    assert (ended.status, ended.stopped_by, ended.attempt) == ("succeeded", "finished", 2)
    assert cluster.prompts_of(job.id) == 1
    (resumed,) = [e for e in cluster.events(job.id) if e.type == "resumed"]
    assert ended.progress.step == resumed.data["step"]  # no step more than the checkpoint has
    steps = [record.step for record in cluster.client.jobs.metrics(job.id, resolution=10_000)]
    assert steps == list(range(1, ended.progress.step + 1))
    types = cluster.event_types(job.id)
    assert types.index("finishing") < types.index("worker_lost") < types.index("succeeded")


def test_sigterm_puts_the_job_down_and_the_attempt_does_not_count(cluster: Cluster) -> None:
    job = cluster.submit(**ENDLESS)
    cluster.wait_until_running(job.id, 30)

    drained = drain(cluster, job.id, signals=3)

    assert (drained.exit_code, drained.attempt) == (0, 1)
    assert drained.seconds < DRAIN_SECONDS
    assert drained.resumed_step >= drained.signalled_step >= 30
    resumed = cluster.wait_until_running(job.id, drained.resumed_step + 1)
    records = cluster.client.jobs.metrics(job.id, resolution=10_000)
    assert [record.step for record in records][:30] == list(range(1, 31))
    assert resumed.progress.step > drained.signalled_step
    assert cluster.cancel(job.id).status == "cancelled"


def test_a_worker_that_wakes_too_late_may_not_write(cluster: Cluster, sha256: str) -> None:
    job = cluster.submit(**LONG)
    cluster.wait_until_running(job.id, 30)

    zombie = suspend(cluster, job.id)
    recovered = cluster.wait(job.id, lambda job: job.attempt == 2 and job.status == "running")
    zombie.signal_group(signal.SIGCONT)
    woken = time.monotonic()
    eventually(lambda: zombie.logged("lease_lost"), 60, "letting go")
    let_go = time.monotonic() - woken
    ended = ended_as(cluster, job.id)

    assert recovered.attempt == 2
    assert let_go < ZOMBIE_SECONDS
    assert (ended.job.attempt, ended.sha256, ended.faults) == (2, sha256, [])
    assert cluster.prompts_of(job.id) == 1


@pytest.mark.parametrize("shared_cluster", MODES[1:], indirect=True)
def test_workers_that_vanish_before_the_first_checkpoint_do_not_fail_the_job(
    cluster: Cluster, sha256: str
) -> None:
    kills = cluster.settings.max_attempts + 1
    job = cluster.submit(**LONG)

    assert kill_repeatedly(cluster, job.id, kills, seconds=0) == kills
    ended = ended_as(cluster, job.id)

    assert ended.job.attempt > kills  # a worker that starves loses its lease as well
    assert (ended.sha256, ended.faults) == (sha256, [])


@pytest.mark.parametrize("shared_cluster", MODES[1:], indirect=True)
def test_a_job_that_kills_its_workers_fails_alone(cluster: Cluster) -> None:
    job = cluster.submit(**ENDLESS)

    killed = poison(cluster, job.id)
    neighbour = cluster.wait_until_ended(cluster.submit().id)

    failed = cluster.client.jobs.get(job.id)
    assert failed.error is not None
    assert (failed.status, failed.error.code, killed) == ("failed", "worker_lost", 3)
    assert (neighbour.status, neighbour.attempt) == ("succeeded", 1)


def test_a_job_that_needs_too_much_memory_fails_and_its_worker_serves_on(
    cluster: Cluster,
) -> None:
    # A lone worker, warm from a job: a cold one would have all that warmth as its allowance.
    cluster.workers.pop().stop()
    cluster.wait_until_ended(cluster.submit().id)
    (worker,) = cluster.workers
    children = children_of(worker.pid)
    allowed = {child: settled_memory_of(child) + MORE_BYTES for child in children}
    # What a parent may use, the children that it starts later may use as well.
    allowed[worker.pid] = max(allowed.values())
    try:
        for pid, most in allowed.items():
            limit_memory(pid, most)
        greedy = cluster.submit(
            prompt={"intrinsic_dim": 4096}, cma={"covariance": "full", "population_size": 6}
        )
        failed = cluster.wait_until_ended(greedy.id)
        following = cluster.wait_until_ended(cluster.submit().id)
    finally:
        for pid in allowed:
            limit_memory(pid, resource.RLIM_INFINITY)

    assert failed.error is not None
    assert (failed.status, failed.error.code) == ("failed", "out_of_memory")
    assert (following.status, following.attempt) == ("succeeded", 1)
    assert all(Path(f"/proc/{child}").exists() for child in children)


def children_of(pid: int) -> list[int]:
    """Those of all its threads: a child that replaces a killed one is not the main thread's."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for children in lists for child in children.read_text().split()]


def memory_of(pid: int) -> int:
    """Bytes of address space."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    return pages * os.sysconf("SC_PAGE_SIZE")


def settled_memory_of(pid: int) -> int:
    """The same once it has not changed for a while: a job ends before all of it is given back."""
    seen = [memory_of(pid)]

    def settled() -> bool:
        pause(SETTLED_SECONDS / LOOKS)
        seen.append(memory_of(pid))
        return len(seen) > LOOKS and len(set(seen[-LOOKS:])) == 1

    eventually(settled, RECOVERY_SECONDS, "its memory")
    return seen[-1]


def limit_memory(pid: int, soft: int) -> None:
    hard = resource.prlimit(pid, resource.RLIMIT_AS)[1]
    resource.prlimit(pid, resource.RLIMIT_AS, (soft, hard))
