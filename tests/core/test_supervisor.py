from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil

from sharpzo_core import supervisor as supervisor_module
from sharpzo_core.supervisor import Supervisor
from tests.helpers import eventually


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def pids(file: Path) -> list[int]:
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def supervise(tmp_path: Path, script: str, grace: float = 5) -> tuple[Supervisor, Path]:
    """Run a shell script that writes process ids to a file."""
    file = tmp_path / "pids"
    command = ["/bin/sh", "-c", f"echo $$ >> {file}; {script}"]
    return (
        Supervisor(
            "the child", command, {}, own_session=True, grace_seconds=grace, first_pause=0.05
        ),
        file,
    )


def test_a_worker_that_dies_is_started_again(tmp_path: Path) -> None:
    supervisor, file = supervise(tmp_path, "exec sleep 100")
    supervisor.start()
    eventually(lambda: len(pids(file)) == 1, 20)
    os.kill(pids(file)[0], signal.SIGKILL)
    eventually(lambda: len(pids(file)) == 2, 20)
    supervisor.stop()
    assert not any(alive(pid) for pid in pids(file))


def test_nothing_of_a_worker_is_left(tmp_path: Path) -> None:
    script = f"sleep 100 & echo $! >> {tmp_path}/pids; trap '' TERM; wait; wait"
    supervisor, file = supervise(tmp_path, script, grace=0.3)
    supervisor.start()
    eventually(lambda: len(pids(file)) == 2, 20)
    supervisor.stop()
    eventually(lambda: not any(alive(pid) for pid in pids(file)), 20)


def test_a_worker_that_cannot_start_is_tried_ever_less_often(tmp_path: Path) -> None:
    supervisor, file = supervise(tmp_path, "exit 3")
    supervisor.start()
    time.sleep(1)
    supervisor.stop()
    assert 2 <= len(pids(file)) <= 6  # pauses of 0.05, 0.1, 0.2, 0.4 and 0.8 s


def test_processes_that_nobody_collects_are_not_waited_for() -> None:
    """As in a container, whose first process may not care for the children of others."""
    with subprocess.Popen(["sleep", "100"], start_new_session=True) as process:
        assert supervisor_module._is_alive(process.pid)
        process.send_signal(signal.SIGKILL)
        eventually(lambda: not alive(process.pid), 20)
        os.killpg(process.pid, 0)  # there is still something to be signalled
        assert not supervisor_module._is_alive(process.pid)


def test_a_child_without_a_session_of_its_own_is_in_the_group_of_its_parent(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    command = ["/bin/sh", "-c", f"echo $$ >> {file}; exec sleep 100"]
    supervisor = Supervisor("a slot", command, {})
    supervisor.start()
    eventually(lambda: len(pids(file)) == 1, 20)
    (pid,) = pids(file)
    assert os.getpgid(pid) == os.getpgrp()
    supervisor.stop()
    assert not alive(pid)
