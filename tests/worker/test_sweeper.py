import subprocess
import sys
from datetime import UTC, datetime, timedelta

import psutil
import pytest

from sharpzo_core.records.jobs import JobStatus, Lease
from sharpzo_core.stores.job_leases import HeldLease, JobLeases, lease_of
from sharpzo_core.stores.job_store import JobStore
from tests.helpers import Workplace
from worker.processes import is_gone, lease_process, process_identity
from worker.sweeper import LeaseWatch, Sweeper

START = datetime(2026, 1, 1, tzinfo=UTC)
LEASE, HEARTBEAT = 20.0, 5.0


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def lease(expires: float) -> HeldLease:
    return HeldLease(Lease("job_1", 1, "t"), "wrk_a", None, at(expires))


@pytest.fixture
def watch() -> LeaseWatch:
    return LeaseWatch(LEASE, HEARTBEAT)


def test_a_lease_that_is_renewed_lives_whatever_the_clock_does(watch: LeaseWatch) -> None:
    for ticks in range(0, 100, 5):
        for jump in (0, 3600, -3600):  # the sweeper's clock against the worker's
            held = [lease(ticks + LEASE)]
            assert watch.dead(held, at(ticks + jump), float(ticks)) == []


def test_a_silent_worker_is_noticed_when_its_lease_has_run_out(watch: LeaseWatch) -> None:
    held = [lease(LEASE)]
    deaths = [t for t in range(0, 40, 5) if watch.dead(held, at(t), float(t))]
    assert deaths[0] == LEASE


def test_a_clock_set_back_does_not_keep_a_dead_worker_alive(watch: LeaseWatch) -> None:
    held = [lease(3600)]
    deaths = [t for t in range(0, 40, 5) if watch.dead(held, at(t), float(t))]
    assert deaths[0] == LEASE


def test_a_new_sweeper_waits_for_a_heartbeat_before_it_takes_an_expired_lease(
    watch: LeaseWatch,
) -> None:
    held = [lease(-100)]
    deaths = [t for t in range(0, 40, 5) if watch.dead(held, at(t), float(t))]
    assert deaths[0] == 10


class Hands:
    """A sweeper with time in its hands."""

    def __init__(self, place: Workplace) -> None:
        self.seconds = 0.0
        self.place = place
        settings, clock = place.settings, self.now
        self.leases = JobLeases(
            place.engine,
            lease_seconds=settings.lease_seconds,
            max_attempts=settings.max_attempts,
            clock=clock,
        )
        self.sweeper = Sweeper(
            owner="wrk_me",
            settings=settings,
            leases=self.leases,
            jobs=JobStore(place.engine, clock),
            workers=place.workers,
            queue=place.queue,
            clock=clock,
            ticks=lambda: self.seconds,
        )

    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=self.seconds)

    def sweep_at(self, seconds: float) -> int:
        """Sweep, and say how many messages wait."""
        self.seconds = seconds
        self.sweeper.sweep()
        return self.place.queue.depth() or 0


def test_a_job_whose_message_was_never_sent_is_rung_for(workplace: Workplace) -> None:
    workplace.submit(notify=False)
    hands = Hands(workplace)
    assert hands.sweep_at(0) == 0
    assert hands.sweep_at(5.1) == 1


def test_messages_do_not_pile_up(workplace: Workplace) -> None:
    workplace.submit()
    hands = Hands(workplace)
    counts = [hands.sweep_at(float(t)) for t in range(0, 60, 5)]
    assert counts[-1] <= 5  # 12 sweeps


def test_a_job_that_was_just_put_down_is_not_rung_for_twice(workplace: Workplace) -> None:
    job = workplace.leases.claim(workplace.submit(notify=False).id, "wrk_me")
    assert job is not None
    hands = Hands(workplace)
    hands.leases.release(lease_of(job))
    assert hands.sweep_at(1) == 0
    assert hands.sweep_at(11) == 1


def test_a_busy_worker_rings_for_nobody(workplace: Workplace) -> None:
    running, waiting = workplace.submit(notify=False), workplace.submit(notify=False)
    workplace.leases.claim(running.id, "wrk_me")
    hands = Hands(workplace)
    assert hands.sweep_at(19) == 0
    assert workplace.jobs.get(waiting.id).rings == 0


def test_a_lost_job_is_queued_and_rung_for_at_once(workplace: Workplace) -> None:
    job = workplace.submit(notify=False)
    workplace.leases.claim(job.id, "wrk_gone")
    hands = Hands(workplace)
    assert hands.sweep_at(0) == 0
    assert hands.sweep_at(21) == 1
    assert workplace.jobs.get(job.id).status is JobStatus.QUEUED


@pytest.fixture
def ended() -> str:
    """The identity of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        identity = process_identity(child.pid)
        child.communicate()
    if identity is None:
        pytest.skip("this system does not tell processes apart")
    assert is_gone(identity)
    return identity


def crashes_after(place: Workplace, owner: str, process: str, seconds: float = 0) -> int | None:
    """Sweep once; how many crashes the job then counts, None if it is still running."""
    job = place.submit(notify=False)
    place.leases.claim(job.id, owner, process)
    hands = Hands(place)
    hands.sweep_at(0)
    if seconds:
        hands.sweep_at(seconds)
    found = place.jobs.get(job.id)
    return found.crashes if found.status is JobStatus.QUEUED else None


def test_a_worker_that_is_gone_as_a_whole_is_not_waited_for(
    workplace: Workplace, ended: str
) -> None:
    assert crashes_after(workplace, "wrk_gone", f"{ended} {ended}") == 0


def test_a_slot_that_ended_while_its_supervisor_lives_counts_against_the_job(
    workplace: Workplace, ended: str
) -> None:
    assert crashes_after(workplace, "wrk_me", f"{ended} {process_identity()}") == 1


def test_a_slot_of_another_living_supervisor_is_left_to_that_one(
    workplace: Workplace, ended: str
) -> None:
    assert crashes_after(workplace, "wrk_other", f"{ended} {process_identity()}") is None


def test_a_lease_that_expires_does_not_count_against_the_job(workplace: Workplace) -> None:
    process = lease_process()
    assert process is not None
    assert crashes_after(workplace, "wrk_other", process, seconds=21) == 0


def test_the_identity_of_a_process_does_not_depend_on_the_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = process_identity()
    boot = psutil.boot_time()
    monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: boot + 3600)
    monkeypatch.setattr(psutil, "boot_time", lambda: boot + 3600)
    assert process_identity() == before


@pytest.mark.parametrize("identity", ["", "x", "a/b/c", "boot/1/2/3", "other/space/1/5"])
def test_what_cannot_be_told_is_not_called_gone(identity: str) -> None:
    assert not is_gone(identity)


def test_a_slow_broker_does_not_keep_the_sweeper_from_looking_at_leases(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [workplace.submit(notify=False) for _ in range(4)]
    hands = Hands(workplace)
    hands.seconds = workplace.settings.sweep_seconds + 1
    ring = workplace.queue.notify

    def slowly(job_id: str) -> bool:
        hands.seconds += 3
        return ring(job_id)

    monkeypatch.setattr(workplace.queue, "notify", slowly)
    hands.sweeper.sweep()
    assert workplace.queue.depth() == 2  # in five seconds
    hands.sweeper.sweep()
    assert workplace.queue.depth() == len(jobs)
