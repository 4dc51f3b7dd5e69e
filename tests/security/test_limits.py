"""Rates, quotas, the audit log, and keys that are revoked under running jobs."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from service.auth import audit, rate_limits
from service.auth.audit import MAX_BUFFERED, AuditLog
from service.streams import job_events
from sharpzo_core.clock import utc_now
from sharpzo_core.database.engine import make_engine
from sharpzo_core.database.tables import audit_log
from sharpzo_core.errors import SettingsError, StorageUnavailable
from sharpzo_core.rates import parse_rate, write_rate
from sharpzo_core.records.jobs import JobProgress, Phase
from sharpzo_core.records.keys import NewKey, Scope, make_key
from sharpzo_core.settings import Settings
from sharpzo_core.stores.audit import AuditEntry, AuditStore
from sharpzo_core.stores.job_leases import JobLeases, lease_of
from sharpzo_core.stores.key_store import KeyStore
from sharpzo_engine import Backbone, load_backbone
from tests.core.stores.test_tenants import entry
from tests.helpers import CONFIG, Workplace, eventually
from tests.security.conftest import Door, OpenDoor, bearer, changed, problem_of
from tests.service.conftest import dataset_members, png, settle, upload, zip_of
from tests.service.servers import server_process
from tests.service.toys import artifact_of, files, import_

pytestmark = pytest.mark.usefixtures("decode_in_process")

HOUR = "5/hour"


def dataset_of(door: Door, key: NewKey) -> str:
    client = door.as_(key)
    response = upload(client, zip_of(dataset_members()))
    assert response.status_code == 202, response.text
    return str(settle(client, response.json()["id"])["id"])


# Rates


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("600/minute", "600/minute"),
        ("600", "600/minute"),
        ("10/second", "10/second"),
        ("9/day", "9/day"),
    ],
)
def test_rates_are_written_in_one_form(text: str, written: str) -> None:
    assert write_rate(text) == written
    assert parse_rate(written) == parse_rate(text)


@pytest.mark.parametrize(
    "text",
    ["", "fast", "0", "0/minute", "-1/minute", "5/minute; 9/hour", "5/minute\n", "1/eon", "9" * 50],
)
def test_what_is_no_rate_is_refused(settings: Settings, text: str) -> None:
    with pytest.raises(ValueError, match="give"):
        write_rate(text)
    with pytest.raises(SettingsError, match="SHARPZO_RATE_LIMIT"):
        changed(settings, rate_limit=text)


@pytest.mark.bad_input("P11")
def test_a_key_may_send_so_many_requests_and_no_more(
    open_door: OpenDoor, settings: Settings
) -> None:
    door = open_door(changed(settings, rate_limit=HOUR))
    one, other = door.key("a"), door.key("b")
    left = []
    for _ in range(5):
        response = door.ask("GET", "/v1/jobs", one)
        assert response.status_code == 200
        assert response.headers["ratelimit-policy"] == '"key";q=5;w=3600'
        left.append(response.headers["ratelimit"].split(";")[1])
    assert left == ["r=4", "r=3", "r=2", "r=1", "r=0"]
    for path in ("/v1/jobs", "/v1/prompts", "/nothing"):
        response = door.ask("GET", path, one)
        problem_of(response, 429, "rate_limited")
        assert 1 <= int(response.headers["retry-after"]) <= 3600
        assert response.headers["ratelimit"].startswith('"key";r=0;')
    assert door.ask("GET", "/v1/jobs", other).status_code == 200  # others are not affected
    assert door.ask("GET", "/livez").status_code == 200


def test_a_keys_own_limit_goes_before_the_services(open_door: OpenDoor, settings: Settings) -> None:
    door = open_door(changed(settings, rate_limit=HOUR))
    generous, strict = door.key("a", rate_limit="50/hour"), door.key("a", rate_limit="1/hour")
    codes = [door.ask("GET", "/v1/jobs", generous).status_code for _ in range(20)]
    assert set(codes) == {200}
    codes = [door.ask("GET", "/v1/jobs", strict).status_code for _ in range(3)]
    assert codes == [200, 429, 429]
    door = open_door(changed(settings, rate_limit="none"))
    assert "ratelimit" not in door.ask("GET", "/v1/jobs", door.key("a")).headers


def test_a_limited_request_is_refused_before_its_body_is_read(door: Door) -> None:
    key = door.key("a", rate_limit="1/hour")
    door.ask("GET", "/v1/jobs", key)
    headers = {"Content-Type": "application/json"}
    response = door.ask("POST", "/v1/jobs", key, content=b"{not json", headers=headers)
    problem_of(response, 429, "rate_limited")


def test_wrong_keys_from_one_address_are_limited_and_right_ones_are_not(
    open_door: OpenDoor, settings: Settings
) -> None:
    door = open_door(changed(settings, auth_failure_limit=HOUR))
    codes = [door.ask("GET", "/v1/jobs", make_key()).status_code for _ in range(7)]
    assert codes == [401] * 5 + [429] * 2
    assert door.ask("GET", "/v1/jobs", door.key()).status_code == 200
    problem_of(door.ask("GET", "/v1/jobs"), 401, "auth_required")  # no key is no guess


def test_open_services_limit_nobody(open_door: OpenDoor, settings: Settings) -> None:
    door = open_door(changed(settings, rate_limit="1/hour"), keyed=False)
    assert {door.ask("GET", "/v1/jobs").status_code for _ in range(5)} == {200}


@pytest.mark.needs("redis")
def test_processes_on_one_redis_count_together(
    open_door: OpenDoor, settings: Settings, redis_url: str
) -> None:
    shared = changed(settings, rate_limit="6/hour", broker_url=redis_url)
    doors = [open_door(shared), open_door(shared)]
    key = doors[0].key("a")
    codes = Counter(doors[n % 2].ask("GET", "/v1/jobs", key).status_code for n in range(10))
    assert codes == {200: 6, 429: 4}


def test_a_redis_that_does_not_answer_stops_nobody(open_door: OpenDoor, settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never says a word
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        door = open_door(changed(settings, rate_limit=HOUR, broker_url=url))
        key = door.key("a")
        began = time.monotonic()
        codes = [door.ask("GET", "/v1/jobs", key).status_code for _ in range(7)]
        assert codes == [200] * 5 + [429] * 2  # counted here
        assert time.monotonic() - began < rate_limits.RETRY_SECONDS


@pytest.mark.slow
def test_forwarded_addresses_count_only_from_listed_proxies(settings: Settings) -> None:
    migrated = Workplace(settings)
    migrated.close()
    engine = make_engine(settings)
    admin = KeyStore(engine).create("ops", [Scope.ADMIN])
    engine.dispose()
    addresses: dict[str, Any] = {}
    for proxies in ("", "127.0.0.1"):
        with server_process(changed(settings, trusted_proxies=proxies)) as server:
            url, request_id = server.url(), f"from-{proxies or 'nobody'}"
            forged = {"X-Forwarded-For": "203.0.113.9", "X-Request-ID": request_id}
            wrong = httpx.get(f"{url}/v1/jobs", headers=forged | bearer(make_key()))
            assert wrong.status_code == 401

            def told(url: str = url, request_id: str = request_id) -> list[str]:
                listed = httpx.get(f"{url}/v1/audit", headers=bearer(admin)).json()["data"]
                return [e["address"] for e in listed if e["request_id"] == request_id]

            (addresses[proxies],) = eventually(told, 10)
    assert addresses == {"": "127.0.0.1", "127.0.0.1": "203.0.113.9"}


def test_any_number_of_event_streams_ask_the_database_no_more_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(job_events, "MAX_POLLS", 10.0)
    looks: list[str] = []
    jobs: Any = None
    stopping = threading.Event()

    def look(_jobs: object, job_id: str, _after: int) -> tuple[list[Any], bool]:
        looks.append(job_id)
        return [], False

    async def admitted() -> bool:
        return True

    async def follow(job_id: str) -> None:
        async for _ in job_events.stream_events(jobs, job_id, 0, stopping, admitted):
            pass

    async def follow_many() -> None:
        streams = [asyncio.create_task(follow(str(i))) for i in range(20)]
        await asyncio.sleep(3)
        stopping.set()
        await asyncio.gather(*streams)

    monkeypatch.setattr(job_events, "_read", look)
    asyncio.run(follow_many())
    assert len(looks) <= 20 + 20
    assert not job_events._open


# Quotas


@pytest.mark.bad_input("P11")
def test_a_tenant_has_no_more_active_jobs_than_it_may(
    open_door: OpenDoor, settings: Settings
) -> None:
    door = open_door(changed(settings, tenant_max_active_jobs=2))
    a, b = door.key("a"), door.key("b")
    datasets = {key.record.tenant: dataset_of(door, key) for key in (a, b)}
    prompt = import_(door.as_(a), artifact_of(load(settings))).json()["id"]

    def submit(key: NewKey) -> Any:
        body = {"dataset_id": datasets[key.record.tenant], "config": {"shots": 3}}
        return door.ask("POST", "/v1/jobs", key, json=body)

    first = submit(a).json()["id"]
    batch = door.ask("POST", f"/v1/prompts/{prompt}/batch", a, json={"dataset_id": datasets["a"]})
    assert batch.status_code == 202
    response = submit(a)
    body = problem_of(response, 429, "quota_exceeded")
    assert "2 of 2" in body["detail"]
    assert response.headers["retry-after"] == "60"
    again = door.ask("POST", f"/v1/prompts/{prompt}/batch", a, json={"dataset_id": datasets["a"]})
    problem_of(again, 429, "quota_exceeded")
    assert submit(b).status_code == 201
    assert door.ask("POST", f"/v1/jobs/{first}/cancel", a).status_code == 202
    assert submit(a).status_code == 201
    usage = door.ask("GET", "/v1/usage", a).json()
    assert usage["active_jobs"] == {"used": 2, "limit": 2}
    problem_of(door.ask("POST", f"/v1/jobs/{first}/resume", a), 429, "quota_exceeded")


def load(settings: Settings) -> Backbone:
    return load_backbone(settings.backbone("toy").model, device="cpu")


@pytest.mark.bad_input("P11")
def test_a_tenant_stores_no_more_than_it_may(open_door: OpenDoor, settings: Settings) -> None:
    archive = zip_of(dataset_members())
    limit = 2 * len(archive)
    door = open_door(changed(settings, tenant_max_storage_bytes=limit))
    a, b = door.key("a"), door.key("b")
    client = door.as_(a)
    headers = {"Idempotency-Key": "first"}

    def send(**more: Any) -> Any:
        form = {"data": {"name": "pets"}, "files": {"file": ("a.zip", archive)}}
        return client.post("/v1/datasets", **form, **more)

    first = send(headers=headers)
    settle(client, first.json()["id"])
    while (response := send()).status_code == 202:
        settle(client, response.json()["id"])
    body = problem_of(response, 429, "quota_exceeded")
    assert f"of {limit} bytes" in body["detail"]
    assert "retry-after" not in response.headers  # waiting does not help
    assert "delete datasets" in body["detail"]
    assert send(headers=headers).json() == first.json()  # was answered before
    artifact, imported = artifact_of(load(settings)), 0
    while (response := import_(client, artifact)).status_code == 201:
        imported += 1
    problem_of(response, 429, "quota_exceeded")
    assert len(list(door.services.settings.data_dir.glob("artifacts/prompts/*"))) == imported
    assert upload(door.as_(b), archive).status_code == 202
    used = client.get("/v1/usage").json()["storage_bytes"]
    assert 0 < used["used"] <= used["limit"] == limit
    for dataset in client.get("/v1/datasets").json()["data"]:
        assert client.delete(f"/v1/datasets/{dataset['id']}").status_code == 204
    for prompt in client.get("/v1/prompts").json()["data"]:
        assert client.delete(f"/v1/prompts/{prompt['id']}").status_code == 204
    assert client.get("/v1/usage").json()["storage_bytes"]["used"] == 0
    assert send().status_code == 202


def test_an_upload_that_announces_too_much_is_refused_before_it_is_sent(
    open_door: OpenDoor, settings: Settings
) -> None:
    door = open_door(changed(settings, tenant_max_storage_bytes=1000))
    key = door.key("a")
    sent = 0

    def body() -> Any:
        nonlocal sent
        while sent < 50:
            sent += 1
            yield b"x" * (1 << 20)

    headers = {
        "Content-Type": "multipart/form-data; boundary=b",
        "Content-Length": str(50 << 20),
    }
    response = door.ask("POST", "/v1/datasets", key, content=body(), headers=headers)
    problem_of(response, 429, "quota_exceeded")
    assert list(door.services.settings.data_dir.glob("uploads/*")) == []


def test_a_tenant_takes_no_more_forward_passes_than_it_may(
    open_door: OpenDoor, settings: Settings
) -> None:
    limited = changed(settings, tenant_max_forward_passes=100)
    door = open_door(limited)
    key = door.key("a")
    dataset = dataset_of(door, key)

    def submit(**config: Any) -> Any:
        body = {"dataset_id": dataset, "config": {"shots": 3, **config}}
        return door.ask("POST", "/v1/jobs", key, json=body)

    body = problem_of(submit(max_forward_passes=101), 429, "quota_exceeded")
    assert "max_forward_passes" in body["detail"]
    leases = JobLeases.from_settings(door.services.database, limited)
    job = leases.claim(submit(max_forward_passes=100).json()["id"], "worker")
    assert job is not None
    leases.save_progress(lease_of(job), JobProgress(Phase.STAGE1, 1, 10, 100), {})
    assert door.ask("GET", f"/v1/jobs/{job.id}", key).json()["status"] == "pausing"
    response = submit(max_forward_passes=50)
    problem_of(response, 429, "quota_exceeded")
    assert 0 < int(response.headers["retry-after"]) <= 31 * 86_400 + 1
    usage = door.ask("GET", "/v1/usage", key).json()
    assert usage["forward_passes"] == {"used": 100, "limit": 100}


# Revocation under a running job


@pytest.mark.slow
def test_a_revoked_keys_running_job_is_stopped_by_its_worker(
    open_door: OpenDoor, tmp_path: Path, small_backbone: Path
) -> None:
    settings = Settings(
        data_dir=tmp_path / "data",
        device="cpu",
        backbones=f"tiny=local-dir:{small_backbone}",
        lease_seconds=4,
        heartbeat_seconds=1,
        sweep_seconds=1,
    )
    door = open_door(settings)
    key, other = door.key("a"), door.key("a")
    place = Workplace(settings)
    try:
        dataset = dataset_of(door, key)
        config = CONFIG | {
            "shots": 3,
            "total_steps": 100_000,
            "change_point": 100_000,
            "max_forward_passes": 10**9,
        }
        body = {"dataset_id": dataset, "config": config}
        running = door.ask("POST", "/v1/jobs", key, json=body).json()["id"]
        place.start_worker()

        def status(job_id: str) -> str:
            return str(door.ask("GET", f"/v1/jobs/{job_id}", other).json()["status"])

        eventually(lambda: status(running) == "running", 120)
        waiting = door.ask("POST", "/v1/jobs", key, json=body).json()["id"]
        began = time.monotonic()
        door.keys.for_tenant("a").revoke(key.record.id)
        assert status(waiting) == "cancelled"
        eventually(lambda: status(running) == "cancelled", 30)
        assert time.monotonic() - began < 15  # a heartbeat, and the step under way
    finally:
        place.close()


# The audit log


def noted(door: Door) -> list[AuditEntry]:
    """Everything, once it is written."""
    eventually(lambda: not door.services.audit_log._waiting, 10)
    time.sleep(0.05)
    return AuditStore(door.services.database).for_all_tenants().list(1000).items[::-1]


def test_refusals_and_changes_leave_one_entry_each(door: Door) -> None:
    key, infer = door.key("a"), door.key("a", Scope.INFER)
    limited = door.key("a", rate_limit="1/hour")
    dataset = dataset_of(door, key)
    before = len(noted(door))
    body = {"dataset_id": dataset, "config": {"shots": 3}}
    headers = {"Idempotency-Key": "k", "X-Request-ID": "mine"}
    job = door.ask("POST", "/v1/jobs", key, json=body, headers=headers).json()["id"]
    asked: list[tuple[Callable[[], Any], tuple[Any, ...] | None]] = [
        (lambda: door.ask("POST", "/v1/jobs", key, json=body, headers=headers), None),  # replayed
        (lambda: door.ask("GET", f"/v1/jobs/{job}", key), None),
        (lambda: door.ask("POST", "/v1/jobs", key, json={}), None),  # 422 changes nothing
        (
            lambda: door.ask("POST", f"/v1/jobs/{job}/cancel", key),
            ("a", key.record.id, "POST", "/v1/jobs/{job_id}/cancel", job, 202, None),
        ),
        (
            lambda: door.ask("DELETE", f"/v1/jobs/{job}", key),
            ("a", key.record.id, "DELETE", "/v1/jobs/{job_id}", job, 204, None),
        ),
        (lambda: door.ask("DELETE", f"/v1/jobs/{job}", key), None),  # 404
        (
            lambda: door.ask("GET", "/v1/jobs"),
            ("default", None, "GET", "/v1/jobs", None, 401, "auth_required"),
        ),
        (
            lambda: door.ask("DELETE", f"/v1/jobs/{job}", make_key()),
            ("default", None, "DELETE", "/v1/jobs/{job_id}", None, 401, "auth_invalid"),
        ),
        (
            lambda: door.ask("GET", "/nothing<script>"),
            ("default", None, "?", None, None, 401, "auth_required"),
        ),
        (
            lambda: door.ask("GET", f"/v1/datasets/{dataset}", infer),
            (
                "a",
                infer.record.id,
                "GET",
                "/v1/datasets/{dataset_id}",
                dataset,
                403,
                "scope_forbidden",
            ),
        ),
        (lambda: door.ask("GET", "/v1/jobs", limited), None),
        (
            lambda: door.ask("GET", "/v1/jobs", limited),
            ("a", limited.record.id, "GET", "/v1/jobs", None, 429, "rate_limited"),
        ),
        (lambda: door.ask("POST", "/v1/prompts/x/classify", infer, files=files(png())), None),
    ]
    expected = [("a", key.record.id, "POST", "/v1/jobs", job, 201, None)]
    for ask, wanted in asked:
        ask()
        time.sleep(0.002)  # entries of one millisecond have no order
        expected += [] if wanted is None else [wanted]
    entries = noted(door)[before:]
    found = [
        (e.tenant, e.key_id, e.method, e.route, e.object_id, e.status, e.code) for e in entries
    ]
    assert found == expected
    assert entries[0].request_id == "mine"
    assert {e.address for e in entries} == {"testclient"}


def test_what_fits_no_column_is_not_noted(door: Door) -> None:
    door.ask("X" * 5000, "/v1/jobs", headers={"X-Request-ID": "y" * 5000})
    (made,) = noted(door)
    assert (made.method, made.route, made.code) == ("?", "/v1/jobs", "auth_required")
    for column in audit_log.c:
        if isinstance(column.type, sa.String) and column.type.length is not None:
            assert len(getattr(made, column.name) or "") <= column.type.length


def test_a_flood_of_refusals_is_noted_and_fills_nothing(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(audit.FLOODS, "auth_required", 3)
    keys = [door.key("a", rate_limit="1/hour") for _ in range(2)]
    before = len(noted(door))
    for key in (*keys, None):
        for _ in range(6):
            door.ask("GET", "/v1/jobs", key)
    found = Counter((e.key_id, e.code) for e in noted(door)[before:])
    assert [found[key.record.id, "rate_limited"] for key in keys] == [1, 1]
    assert found.total() == 2 + 3
    monkeypatch.setattr(audit, "FLOOD_SECONDS", 0.0)
    door.ask("GET", "/v1/jobs", keys[0])
    assert noted(door)[-1].code == "rate_limited"


def test_an_admin_reads_the_log_of_its_tenant(door: Door) -> None:
    a, b = door.key("a"), door.key("b")
    made = door.ask("POST", "/v1/keys", a, json={"name": "n", "scopes": ["infer"]}).json()
    noted(door)
    listed = door.ask("GET", "/v1/audit", a).json()["data"]
    assert [(item["route"], item["object_id"]) for item in listed] == [("/v1/keys", made["id"])]
    assert door.ask("GET", "/v1/audit", b).json()["data"] == []
    query = f"/v1/audit?key_id={a.record.id}"
    assert door.ask("GET", query, a).json()["data"] == listed
    problem_of(door.ask("GET", "/v1/audit?key_id=x", a), 422, "validation_error")


def test_an_orderly_stop_writes_everything(open_door: OpenDoor, settings: Settings) -> None:
    door = open_door(settings)
    for _ in range(50):
        door.ask("GET", "/v1/jobs")
    door.client.__exit__(None, None, None)
    with door.keys._engine.connect() as connection:
        count = connection.execute(sa.select(sa.func.count()).select_from(audit_log)).scalar_one()
    door.client.__enter__()
    assert count == 50


class SlowStore:
    """A store that is away for a while."""

    def __init__(self) -> None:
        self.away = True
        self.kept: list[AuditEntry] = []

    def append(self, entries: list[AuditEntry]) -> None:
        if self.away:
            raise StorageUnavailable
        self.kept += entries

    def delete_before(self, _moment: object) -> int:
        return 0


def test_entries_wait_for_a_database_that_is_away(caplog: pytest.LogCaptureFixture) -> None:
    store = SlowStore()
    log = AuditLog(store, days=1)  # type: ignore[arg-type]
    log.start()
    entries = [entry("a", utc_now()) for _ in range(1200)]
    for one in entries:
        log.add(one)
    time.sleep(0.5)
    assert store.kept == []
    store.away = False
    log.close()
    assert store.kept == entries
    assert "audit_lost" not in {getattr(record, "action", "") for record in caplog.records}


def test_what_is_lost_is_told(caplog: pytest.LogCaptureFixture) -> None:
    log = AuditLog(SlowStore(), days=1)  # type: ignore[arg-type]
    one = entry("a", utc_now())
    for _ in range(MAX_BUFFERED + 7):
        log.add(one)
    assert len(log._waiting) == MAX_BUFFERED
    log._log_lost(log._lost)
    (record,) = (r for r in caplog.records if getattr(r, "action", "") == "audit_lost")
    assert record.getMessage() == "7 audit entries were lost"


def test_nobody_waits_for_the_log(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = threading.Event()
    monkeypatch.setattr(door.services.audit_log._store, "append", lambda _: stuck.wait(10))
    began = time.monotonic()
    for _ in range(20):
        assert door.ask("GET", "/v1/jobs").status_code == 401
    assert time.monotonic() - began < 5
    stuck.set()
