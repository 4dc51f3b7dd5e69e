from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from service import serve
from service.supervisor import Supervisor
from sharpzo_core.errors import SettingsError
from sharpzo_core.settings import Settings
from tests.service.conftest import dataset_members, zip_of
from tests.service.servers import eventually


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state != "Z"


def pids(file: Path) -> list[int]:
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def supervise(tmp_path: Path, script: str, grace: float = 5) -> tuple[Supervisor, Path]:
    """Run a shell script that writes process ids to a file."""
    file = tmp_path / "pids"
    command = ["/bin/sh", "-c", f"echo $$ >> {file}; {script}"]
    return Supervisor(command, {}, grace_seconds=grace, first_pause=0.05), file


def test_a_worker_that_dies_is_started_again(tmp_path: Path) -> None:
    supervisor, file = supervise(tmp_path, "exec sleep 100")
    supervisor.start()
    eventually(lambda: len(pids(file)) == 1)
    os.kill(pids(file)[0], signal.SIGKILL)
    eventually(lambda: len(pids(file)) == 2)
    supervisor.stop()
    assert not any(alive(pid) for pid in pids(file))


def test_nothing_of_a_worker_is_left(tmp_path: Path) -> None:
    script = f"sleep 100 & echo $! >> {tmp_path}/pids; trap '' TERM; wait; wait"
    supervisor, file = supervise(tmp_path, script, grace=0.3)
    supervisor.start()
    eventually(lambda: len(pids(file)) == 2)
    supervisor.stop()
    eventually(lambda: not any(alive(pid) for pid in pids(file)))


def test_a_worker_that_cannot_start_is_tried_ever_less_often(tmp_path: Path) -> None:
    supervisor, file = supervise(tmp_path, "exit 3")
    supervisor.start()
    time.sleep(1)
    supervisor.stop()
    assert 2 <= len(pids(file)) <= 6  # pauses of 0.05, 0.1, 0.2, 0.4 and 0.8 s


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.org"])
def test_other_than_loopback_is_refused(settings: Settings, host: str) -> None:
    with pytest.raises(SettingsError, match="without authentication"):
        serve.main(settings, host, 0)
    allowed = settings.model_copy(update={"allow_unauthenticated": True})
    serve.check_exposure(allowed, host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_is_fine(settings: Settings, host: str) -> None:
    serve.check_exposure(settings, host)


def test_a_taken_port_is_named(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"port {port}"):
            serve.main(settings, "127.0.0.1", port)


@pytest.mark.slow
def test_a_real_server_ends_at_once_although_a_stream_is_open(data_dir: Path) -> None:
    script = (
        "from service.serve import main; from sharpzo_core.settings import Settings;"
        "main(Settings.load(), '127.0.0.1', 0, with_worker=False)"
    )
    environment = {"SHARPZO_DATA_DIR": str(data_dir), "SHARPZO_DEVICE": "cpu"}
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        lines = (line for line in process.stderr if "listening on " in line)
        url = next(lines).split("listening on ")[1].strip()
        with httpx2.Client(base_url=url, timeout=60) as client:
            job_id = submit_job(client)
            with follow(client, job_id) as events:
                assert "queued" in next(events)
                process.send_signal(signal.SIGTERM)
                assert not [line for line in events if line.startswith("event")]
        _, log = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, log
    assert "Traceback" not in log


def submit_job(client: httpx2.Client) -> str:
    files = {"file": ("a.zip", zip_of(dataset_members()))}
    dataset = client.post("/v1/datasets", data={"name": "a"}, files=files).json()
    url = f"/v1/datasets/{dataset['id']}"
    eventually(lambda: client.get(url).json()["status"] == "ready")
    body = {"dataset_id": dataset["id"], "config": {"shots": 1}}
    return str(client.post("/v1/jobs", json=body).json()["id"])


@contextmanager
def follow(client: httpx2.Client, job_id: str) -> Iterator[Iterator[str]]:
    headers = {"accept": "text/event-stream"}
    with client.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as response:
        yield response.iter_lines()
