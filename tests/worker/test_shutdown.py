"""Real workers told to end, as different service managers do it."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable

import pytest

from sharpzo_core.records.jobs import JobStatus
from tests.helpers import Workplace
from worker import slot

ENDLESS = {"total_steps": 1_000_000, "change_point": 1_000_000, "max_forward_passes": 10**9}
SECONDS = 30  # far more than a worker needs
MOMENT = 2  # seconds in which a process that does nothing has surely begun to wait


def to_parent(worker: subprocess.Popen[bytes]) -> None:
    worker.send_signal(signal.SIGTERM)


def to_all(worker: subprocess.Popen[bytes]) -> None:
    os.killpg(worker.pid, signal.SIGTERM)


@pytest.mark.parametrize("tell", [to_parent, to_all])
def test_a_busy_worker_with_two_slots_puts_both_jobs_down(
    make_workplace: Callable[..., Workplace],
    capfd: pytest.CaptureFixture[str],
    tell: Callable[[subprocess.Popen[bytes]], None],
) -> None:
    place = make_workplace(checkpoint_seconds=0.2, gpus="7,9", sweep_seconds=60)
    jobs = [place.submit(**ENDLESS) for _ in range(2)]
    worker = place.start_worker()
    for job in jobs:
        place.wait_for_checkpoint(job.id)
    held = place.leases.held()
    assert len({lease.owner for lease in held}) == 1
    assert len({lease.process for lease in held}) == 2

    tell(worker)
    assert worker.wait(SECONDS) == 0
    for job in map(place.jobs.get, [job.id for job in jobs]):
        assert (job.status, job.attempt, job.losses) == (JobStatus.QUEUED, 0, 0)
        assert job.checkpoint is not None
        assert job.checkpoint.step == job.step
    assert place.queue.depth() == 2
    log = capfd.readouterr().err
    assert "slot 0 has GPU 7" in log
    assert "slot 1 has GPU 9" in log


@pytest.mark.fast
def test_an_idle_worker_ends_although_all_its_processes_are_told_to(
    make_workplace: Callable[..., Workplace],
) -> None:
    place = make_workplace(gpus="7,9")
    worker = place.start_worker()
    ended = place.submit(total_steps=1)
    place.wait_until_ended(ended.id)  # so both slots are up
    to_all(worker)
    assert worker.wait(SECONDS) == 0


@pytest.mark.fast
def test_only_the_first_of_several_signals_is_handled() -> None:
    """Celery's handler holds a lock that a second one, in the middle of it, would wait for."""
    lock, handled = threading.Lock(), []

    def handler(number: int, _: object) -> None:
        with lock:
            handled.append(number)
            for again in (signal.SIGTERM, signal.SIGINT):
                os.kill(os.getpid(), again)

    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, handler) for number in numbers]
    try:
        slot._end_once()
        os.kill(os.getpid(), signal.SIGTERM)
        assert handled == [signal.SIGTERM]
    finally:
        for number, previous in zip(numbers, before, strict=True):
            signal.signal(number, previous)


def idle_child(place: Workplace) -> int:
    """The process id of the worker's child, which has run a job and waits for another."""
    job = place.submit(**ENDLESS)
    place.wait(job.id, lambda job: job.lease_process is not None)
    (lease,) = place.leases.held()
    place.jobs.request_cancel(job.id)
    place.wait_until_ended(job.id)
    time.sleep(MOMENT)
    return int((lease.process or "").split("/")[2])


@pytest.mark.parametrize("tell", [to_parent, to_all])
def test_an_idle_worker_ends_although_its_child_gets_no_processor_for_a_while(
    make_workplace: Callable[..., Workplace],
    tell: Callable[[subprocess.Popen[bytes]], None],
) -> None:
    place = make_workplace(sweep_seconds=0.5)
    worker = place.start_worker()
    child = idle_child(place)
    os.kill(child, signal.SIGSTOP)
    tell(worker)
    time.sleep(MOMENT)
    os.kill(child, signal.SIGCONT)
    assert worker.wait(SECONDS) == 0


def test_a_child_that_is_killed_while_idle_takes_nothing_along(
    make_workplace: Callable[..., Workplace],
) -> None:
    place = make_workplace(sweep_seconds=0.5)
    worker = place.start_worker()
    os.kill(idle_child(place), signal.SIGKILL)
    following = place.submit(total_steps=1)
    assert place.wait_until_ended(following.id).status is JobStatus.SUCCEEDED
    to_parent(worker)
    assert worker.wait(SECONDS) == 0
