"""Several API processes on one database and one data folder."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from starlette.testclient import TestClient

from service.services import Services
from sharpzo_core.database.engine import writing
from sharpzo_core.errors import StorageBusy
from sharpzo_core.ids import Prefix, new_id
from sharpzo_core.records.datasets import DatasetRecord, manifest_key, stored_key
from sharpzo_core.settings import Settings
from tests.helpers import eventually
from tests.service.conftest import (
    MakeClient,
    dataset_members,
    files_below,
    settle,
    upload,
    zip_of,
)
from tests.service.servers import ServerProcess, server_process

#: Lets a process wait before its first image until a file appears.
WAITS = """
import os, time
from service.ingest.archive_reader import ArchiveReader
take = ArchiveReader._store_images
def wait_and_take(*args, **options):
    while not os.path.exists({gate!r}):
        time.sleep(0.02)
    take(*args, **options)
ArchiveReader._store_images = wait_and_take
"""


@pytest.fixture
def settings(data_dir: Path) -> Settings:
    """Leases of two seconds, renewed ten times a second."""
    return Settings(
        data_dir=data_dir,
        device="cpu",
        lease_seconds=2.0,
        heartbeat_seconds=0.1,
        sweep_seconds=0.1,
    )


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    return tmp_path / "gate"


@pytest.fixture
def other(settings: Settings, gate: Path) -> Iterator[ServerProcess]:
    """Another API process, which stops at the first image of a dataset."""
    with server_process(settings, before=WAITS.format(gate=str(gate))) as server:
        yield server


def upload_to(server: ServerProcess) -> str:
    files = {"file": ("a.zip", zip_of(dataset_members()))}
    response = httpx2.post(f"{server.url()}/v1/datasets", data={"name": "a"}, files=files)
    assert response.status_code == 202
    return str(response.json()["id"])


def wait_for_renewals(services: Services, dataset_id: str, count: int) -> DatasetRecord:
    """Return when the lease has been renewed so often, by whoever holds it."""
    seen = set()

    def enough() -> bool:
        seen.add(services.datasets.get(dataset_id).lease_expires_at)
        return len(seen) > count

    eventually(enough)
    return services.datasets.get(dataset_id)


def test_a_living_process_keeps_its_dataset_and_a_dead_one_loses_it(
    other: ServerProcess, client: TestClient, services: Services, data_dir: Path
) -> None:
    dataset_id = upload_to(other)
    owner = services.datasets.get(dataset_id).lease_owner
    # Longer than a lease, and many sweeps of ours.
    assert wait_for_renewals(services, dataset_id, 25).lease_owner == owner
    other.process.send_signal(signal.SIGKILL)
    dataset = settle(client, dataset_id)
    assert dataset["status"] == "ready"
    assert_complete(services, dataset_id)
    assert files_below(data_dir / "uploads") == []


def test_a_process_that_was_overtaken_spoils_nothing(
    other: ServerProcess, client: TestClient, services: Services, gate: Path
) -> None:
    dataset_id = upload_to(other)
    wait_for_renewals(services, dataset_id, 1)
    stop_between_transactions(other, services)
    ready = settle(client, dataset_id)
    assert ready["status"] == "ready"
    gate.touch()
    os.kill(other.process.pid, signal.SIGCONT)
    eventually(lambda: any("no longer processed here" in line for line in other.log))
    assert client.get(f"/v1/datasets/{dataset_id}").json() == ready
    assert_complete(services, dataset_id)


def stop_between_transactions(server: ServerProcess, services: Services) -> None:
    """In the middle of one it would hold the database's lock, which nobody can take from it."""

    def stopped() -> bool:
        server.process.send_signal(signal.SIGSTOP)
        eventually(lambda: all_stopped(server.process.pid))  # a thread may still take the lock
        try:
            with writing(services.database):
                return True
        except StorageBusy:
            server.process.send_signal(signal.SIGCONT)
            return False

    eventually(stopped, 60)  # each try may wait for the lock


def all_stopped(pid: int) -> bool:
    """Whether the signal has reached every thread of the process."""
    stats = [file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(stat.rpartition(") ")[2].startswith("T") for stat in stats)


def assert_complete(services: Services, dataset_id: str) -> None:
    manifest = json.loads(services.artifacts.get_bytes(manifest_key(dataset_id)))
    images = [entry["image"] for entries in manifest["splits"].values() for entry in entries]
    assert len(images) == 18
    record = services.datasets.get(dataset_id)
    assert all(services.artifacts.exists(stored_key(record, image)) for image in images)


def test_a_half_received_upload_stays_as_long_as_its_process_lives(
    other: ServerProcess, client: TestClient, services: Services, data_dir: Path
) -> None:
    uploads = data_dir / "uploads"
    with begin_upload(other.url()):
        eventually(lambda: files_below(uploads))
        (name,) = files_below(uploads)
        seen: set[int] = set()
        # Nothing more is sent, but it is touched for longer than the patience with strays.
        patience = services.uploads._stray_seconds

        def long_enough() -> bool:
            seen.add((uploads / name).stat().st_mtime_ns)
            return max(seen) - min(seen) > 1.5 * patience * 1e9

        eventually(long_enough)
        other.process.send_signal(signal.SIGKILL)
        eventually(lambda: files_below(uploads) == [])


def begin_upload(url: str) -> socket.socket:
    """Send the head and the beginning of a form, and keep the connection."""
    address = httpx2.URL(url)
    assert address.port is not None
    connection = socket.create_connection((address.host, address.port))
    head = (
        "POST /v1/datasets HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
        '--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nPK\x03\x04'
    )
    connection.sendall(head.encode())
    return connection


def test_an_archive_in_the_folder_of_another_machine_is_not_lost(
    make_client: MakeClient, settings: Settings, tmp_path: Path
) -> None:
    first: Services = make_client(settings).app.state.services  # type: ignore[attr-defined]
    apart = settings.model_copy(
        update={"data_dir": tmp_path / "apart", "database_url": settings.db_url}
    )
    second: Services = make_client(apart).app.state.services  # type: ignore[attr-defined]
    # The older one is looked at first.
    unknown = second.datasets.create("unknown", {"folder": "of a machine that is away"})
    eventually(lambda: new_id(Prefix.DATASET)[:13] > unknown.id[:13])
    theirs = second.datasets.create("theirs", {"folder": second.uploads.identity})
    eventually(lambda: second.datasets.get(theirs.id).error_code == "upload_lost")
    assert first.uploads.identity != second.uploads.identity
    assert second.datasets.get(unknown.id).lease_owner is None


def test_a_process_that_ends_well_hands_its_datasets_on(
    client: TestClient, services: Services, make_client: MakeClient, settings: Settings
) -> None:
    begun, stopping = threading.Event(), services.ingest._stopping

    check = services.ingest.check_running

    def wait(dataset_id: str) -> None:
        begun.set()
        assert stopping.wait(20)
        check(dataset_id)

    services.ingest.check_running = wait  # type: ignore[method-assign]
    dataset_id = str(upload(client, zip_of(dataset_members())).json()["id"])
    assert begun.wait(20)
    services.ingest.close()
    patient = settings.model_copy(update={"lease_seconds": 600.0})
    assert settle(make_client(patient), dataset_id)["status"] == "ready"
