from __future__ import annotations

import os
import re
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

from service import server
from sharpzo_core.database.engine import make_engine
from sharpzo_core.errors import SettingsError
from sharpzo_core.records.jobs import NewJob
from sharpzo_core.settings import Settings
from sharpzo_core.stores.dataset_store import DatasetStore
from sharpzo_core.stores.job_leases import JobLeases
from sharpzo_core.stores.job_store import JobStore
from tests.helpers import eventually
from tests.service.conftest import dataset_members, zip_of
from tests.service.servers import SCRIPT, server_process


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.org"])
def test_other_than_loopback_is_refused(settings: Settings, host: str) -> None:
    with pytest.raises(SettingsError, match="without authentication"):
        server.main(settings, host, 0)
    allowed = settings.model_copy(update={"allow_unauthenticated": True})
    server.check_exposure(allowed, host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_is_fine(settings: Settings, host: str) -> None:
    server.check_exposure(settings, host)


def test_the_service_begins_with_addresses_to_click(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    server._greet(settings, "http://0.0.0.0:8000")
    lines = capsys.readouterr().out.splitlines()
    places = [line.split()[-1] for line in lines]
    base = "http://localhost:8000"
    assert places == [base, f"{base}/", f"{base}/docs", str(settings.data_dir.resolve())]
    server._greet(settings.model_copy(update={"log_format": "json"}), base)
    assert not capsys.readouterr().out


def test_a_taken_port_is_named(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"port {port}"):
            server.main(settings, "127.0.0.1", port)


@pytest.mark.slow
def test_a_real_server_ends_at_once_although_a_stream_is_open(data_dir: Path) -> None:
    script = (
        "from service.server import main; from sharpzo_core.settings import Settings;"
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


@pytest.mark.slow
def test_an_idle_service_with_its_worker_ends_within_three_seconds(data_dir: Path) -> None:
    settings = Settings(data_dir=data_dir, device="cpu", lease_seconds=600)
    job_id = job_of_another_worker(settings)
    with server_process(settings, with_worker=True) as server:
        url = server.url()
        with httpx2.Client(base_url=url) as kept, httpx2.Client(base_url=url) as streaming:
            eventually(lambda: kept.get("/readyz").is_success, seconds=60)
            with follow(streaming, job_id) as events:
                assert "queued" in next(events)
                started = time.monotonic()
                server.process.send_signal(signal.SIGTERM)
                assert server.process.wait(30) == 0
                assert time.monotonic() - started < 3 * crowding()
    assert "Traceback" not in "".join(server.log)


SLOW_MODELS = """
import atexit, sys, time
import sharpzo_engine
def slow(*_, **__):
    sys.stderr.write("a model loads\\n")
    time.sleep(600)
sharpzo_engine.load_backbone = slow
atexit.register(sys.stderr.write, "the interpreter takes itself apart\\n")
"""


def test_a_service_that_is_ended_while_a_model_loads_leaves_past_the_interpreter(
    data_dir: Path,
) -> None:
    """Torch's own end may abort, or never come, while a thread is within torch."""
    settings = Settings(data_dir=data_dir, device="cpu")
    with server_process(settings, before=SLOW_MODELS) as server:
        server.url()
        eventually(lambda: any("a model loads" in line for line in server.log), 60)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
    assert not any("takes itself apart" in line for line in server.log)
    assert any("shutting down" in line for line in server.log)


def test_header_fields_without_end_are_cut_off(data_dir: Path) -> None:
    with server_process(Settings(data_dir=data_dir, device="cpu")) as server:
        host, port = server.url().removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: ")
            with pytest.raises(ConnectionError):
                send_megabytes(connection, 16)
        assert httpx2.get(f"http://{host}:{port}/livez").is_success


def send_megabytes(connection: socket.socket, count: int) -> None:
    for _ in range(16 * count):
        connection.sendall(b"a" * (64 << 10))


def crowding() -> float:
    """How much longer things take because the machine is busy with something else."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def job_of_another_worker(settings: Settings) -> str:
    """A job that is running elsewhere, so that its events do not end here."""
    engine = make_engine(settings)
    dataset = DatasetStore(engine).create("pets")
    DatasetStore(engine).mark_ready(dataset.id, classes=["a"], counts={}, sha256="0" * 64)
    job = JobStore(engine).create(NewJob(dataset_id=dataset.id, backbone="tiny", config={}))
    assert JobLeases.from_settings(engine, settings).claim(job.id, "wrk_elsewhere", None)
    engine.dispose()
    return job.id


def test_nothing_waits_for_a_log_that_nobody_reads(data_dir: Path) -> None:
    script = SCRIPT.format(with_worker=False, before=CHATTY)
    environment = {"SHARPZO_DATA_DIR": str(data_dir), "SHARPZO_DEVICE": "cpu"}
    with subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()  # standard error is never read
            with httpx2.Client(base_url=url, timeout=20) as client:
                eventually(lambda: dropped(client) > 1000)
                assert client.post("/v1/jobs", json={"dataset_id": "ds_1"}).status_code == 404
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()


#: Tells the address on standard output, and then logs more than is kept.
CHATTY = """
import logging, threading
from service import server
listen = server.listen
def chat():
    for number in range(40_000):
        logging.getLogger("chatty").info("line %d", number)
def listen_and_chat(host, port):
    listener = listen(host, port)
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    threading.Thread(target=chat, daemon=True).start()
    return listener
server.listen = listen_and_chat
"""


def dropped(client: httpx2.Client) -> float:
    text = client.get("/metrics").text
    (line,) = re.findall(r"^sharpzo_log_records_dropped_total (.+)$", text, re.MULTILINE)
    return float(line)


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
