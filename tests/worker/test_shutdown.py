"""Real workers told to end, as different service managers do it."""

import os
import signal
import subprocess
from collections.abc import Callable

import pytest

from sharpzo_core.jobs import JobStatus
from tests.helpers import Workplace

ENDLESS = {"total_steps": 1_000_000, "change_point": 1_000_000}
SECONDS = 30  # far more than a worker needs


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
    place = make_workplace(checkpoint_seconds=0.2, gpus="7,9")
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


def test_an_idle_worker_ends_although_all_its_processes_are_told_to(
    make_workplace: Callable[..., Workplace],
) -> None:
    place = make_workplace(gpus="7,9")
    worker = place.start_worker()
    ended = place.submit(total_steps=1)
    place.wait_until_ended(ended.id)  # so both slots are up
    to_all(worker)
    assert worker.wait(SECONDS) == 0
