import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sharpzo_core.errors import LeaseLost, StorageUnavailable
from sharpzo_core.periodic import Periodic
from sharpzo_core.stores.job_leases import lease_of
from sharpzo_engine.errors import TuningInterrupted
from tests.helpers import Workplace, eventually
from worker.heartbeat import Heartbeat


def test_a_long_step_does_not_lose_the_lease(workplace: Workplace) -> None:
    job = workplace.leases.claim(workplace.submit(notify=False).id, "wrk_a")
    assert job is not None
    with Heartbeat(workplace.leases, lease_of(job), 0.05) as pulse:
        before = workplace.leases.held()[0].expires_at
        time.sleep(0.5)  # the step
        assert workplace.leases.held()[0].expires_at > before
        pulse.check()


def test_the_pulse_hears_of_a_cancel_and_of_a_loss(workplace: Workplace) -> None:
    job = workplace.leases.claim(workplace.submit(notify=False).id, "wrk_a")
    assert job is not None
    with Heartbeat(workplace.leases, lease_of(job), 0.02) as pulse:
        workplace.jobs.request_cancel(job.id)
        with pytest.raises(TuningInterrupted):
            check_for(pulse, 5)
        # A renewal between the look and the recovery keeps the lease.
        while workplace.leases.recover(workplace.leases.held()[0]) is None:
            pass
        with pytest.raises(LeaseLost):
            check_for(pulse, 5, ignore=TuningInterrupted)


def check_for(pulse: Heartbeat, seconds: float, ignore: type[Exception] | None = None) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            pulse.check()
        except Exception as error:
            if ignore is None or not isinstance(error, ignore):
                raise
        time.sleep(0.01)


def test_a_periodic_action_outlives_its_failures() -> None:
    done, calls = threading.Event(), []

    def action() -> None:
        calls.append(len(calls))
        if len(calls) < 3:
            raise StorageUnavailable
        done.set()

    ended: list[bool] = []
    thread = Periodic("test", 0.01, action, lambda: ended.append(True))
    thread.start()
    assert done.wait(5)
    thread.stop()
    assert ended == [True]


def test_importing_the_worker_does_not_load_torch() -> None:
    code = "import worker.main, worker.slot, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_worker_ends_with_its_parent(workplace: Workplace) -> None:
    """The parent here starts a worker, tells its PID and is killed."""
    code = (
        "import os, subprocess, sys, time\n"
        "command = [sys.executable, '-m', 'worker', '--parent-pid', str(os.getpid())]\n"
        "print(subprocess.Popen(command, start_new_session=True).pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    environment = os.environ | workplace.settings.environment()
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.stdout.close()
    try:
        eventually(lambda: bool(workplace.workers.active(60)), 60)
        parent.kill()
        parent.wait()
        eventually(lambda: has_ended(pid), 60)
    finally:
        if not has_ended(pid):
            os.killpg(pid, signal.SIGKILL)


def has_ended(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] in "ZX"
