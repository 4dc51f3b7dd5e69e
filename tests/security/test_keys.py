"""Keys: what opens, what does not, and that nothing is open by itself."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi import APIRouter

from service import server
from service.app import create_app
from service.auth import authorization, key_cache
from service.auth.authorization import PUBLIC, declared
from sharpzo_core.clock import utc_now
from sharpzo_core.database.tables import api_keys, metadata
from sharpzo_core.errors import SettingsError, StorageUnavailable
from sharpzo_core.records.keys import (
    CHECKSUM_LENGTH,
    MAX_KEY,
    Scope,
    _checksum,
    is_key,
    make_key,
    prefix_of,
)
from sharpzo_core.settings import Settings
from sharpzo_core.stores.key_store import keys_exist
from tests.helpers import eventually
from tests.security.conftest import Door, OpenDoor, bearer, changed, problem_of, scopes_text
from tests.security.raw import connect, read
from tests.service.conftest import dataset_members, settle, upload, zip_of
from tests.service.servers import server_thread

pytestmark = pytest.mark.usefixtures("decode_in_process")

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
DOCS = Path(__file__).parents[2] / "docs" / "keys.md"


def filled(path: str) -> str:
    return re.sub(r"\{[^}]+\}", "x", path)


# The form of a key


def test_a_key_has_a_checksum_that_tells_typing_errors_without_a_database() -> None:
    text = make_key()
    assert len(text) == MAX_KEY
    assert is_key(text)
    assert text.startswith(prefix_of(text) + "_")
    for place in range(len(prefix_of(text)) + 1, len(text)):
        other = "0" if text[place] != "0" else "1"
        assert not is_key(text[:place] + other + text[place + 1 :]), place
    for wrong in ("", text[:-1], text + "0", text.upper(), text.replace("szo", "sk"), f" {text}"):
        assert not is_key(wrong)


def test_keys_differ_everywhere_but_in_their_brand() -> None:
    texts = [make_key() for _ in range(200)]
    secrets = {text.split("_")[2][:-CHECKSUM_LENGTH] for text in texts}
    assert len(secrets) == len(texts)
    assert {len(secret) * 5 for secret in secrets} == {260}  # bits


def test_only_the_hash_is_kept(door: Door) -> None:
    made = door.key()
    assert made.text not in repr(made)
    with door.services.database.connect() as connection:
        row = connection.execute(sa.select(api_keys).where(api_keys.c.id == made.record.id)).one()
    assert made.text not in str(row)
    assert row.sha256 == made.record.sha256
    assert row.prefix == made.text[:12]


# Nothing is open


@pytest.mark.bad_input("P1")
def test_every_route_and_method_wants_a_key(
    door: Door, record_property: Callable[[str, object], None]
) -> None:
    """The figure is 0: what was answered without one, of everything but the public paths."""
    paths = {path for _, path, _ in declared(door.client.app)} | {  # type: ignore[arg-type]
        "/nothing",
        "/v1",
        "/v1/jobs/",
        "/docs/oauth2-redirect",
        "/redoc",
        "/livez/",
        "/livez/../v1/jobs",
        "/v1/jobs?api_key=x",
    }
    open_ones, asked = [], 0
    for path in sorted(paths):
        for method in METHODS:
            if path in PUBLIC and method in ("GET", "HEAD"):
                continue
            asked += 1
            response = door.ask(method, filled(path))
            if path in PUBLIC and response.status_code in (404, 405):
                continue  # there is nothing but reading
            headers = response.headers
            if response.status_code != 401 or headers["www-authenticate"] != "Bearer":
                open_ones.append((method, path, response.status_code))
    record_property("asked", asked)
    record_property("wrong", len(open_ones))
    assert len(paths) > 30
    assert open_ones == []


def test_the_public_paths_are_these(door: Door) -> None:
    assert {"/", "/assets/{name}", "/docs", "/livez", "/openapi.json", "/readyz"} == PUBLIC
    for path in ("/docs", "/livez", "/openapi.json"):
        assert door.ask("GET", path).status_code == 200
    assert door.ask("GET", "/readyz").status_code in (200, 503)
    assert door.ask("GET", "/").status_code in (200, 404)


def test_every_route_declares_its_scope_and_is_public_only_by_name(settings: Settings) -> None:
    undeclared = {path for _, path, scopes in declared(create_app(settings)) if not scopes}
    assert undeclared <= PUBLIC


def test_a_route_that_somebody_adds_is_closed(door: Door) -> None:
    router = APIRouter()

    @router.post("/v1/new")
    def new(body: dict[str, Any]) -> dict[str, Any]:
        return body

    door.client.app.include_router(router)  # type: ignore[attr-defined]
    problem_of(door.ask("POST", "/v1/new", json={}), 401, "auth_required")
    problem_of(door.ask("POST", "/v1/new", door.key(), json={}), 403, "scope_forbidden")


def test_a_public_path_is_public_for_reading_alone(door: Door) -> None:
    router = APIRouter()

    @router.post("/readyz")
    def change() -> str:
        return "changed"

    door.client.app.include_router(router)  # type: ignore[attr-defined]
    problem_of(door.ask("POST", "/readyz"), 401, "auth_required")


def test_404_and_405_are_as_ever_for_whoever_has_a_key(door: Door) -> None:
    key = door.key("default", Scope.INFER)
    problem_of(door.ask("GET", "/nothing", key), 404, "not_found")
    wrong = door.ask("PATCH", "/v1/jobs", key)
    problem_of(wrong, 405, "method_not_allowed")
    assert wrong.headers["allow"]
    problem_of(door.ask("POST", "/livez", key), 405, "method_not_allowed")


# Wrong keys


@pytest.mark.bad_input("P1")
def test_all_wrong_keys_get_the_same_answer(door: Door) -> None:
    expired = door.key(expires_at=utc_now() - timedelta(seconds=1))
    revoked = door.key()
    door.keys.revoke(revoked.record.id)
    valid = door.key()
    unknown, swapped = make_key(), make_key()
    wrong: list[dict[str, str] | list[tuple[str, str]]] = [
        bearer(expired),
        bearer(revoked),
        bearer(unknown),
        bearer(valid.text[:-1]),
        bearer("x" * 10_000),
        bearer(valid.text + "x" * 10_000),
        bearer("%s%s"),
        bearer("é"),
        bearer(prefix_of(valid.text) + swapped[len(prefix_of(swapped)) :]),
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": f"Basic {valid.text}"},
        {"Authorization": valid.text},
        [("Authorization", f"Bearer {valid.text}"), ("Authorization", f"Bearer {valid.text}")],
    ]
    answers = set()
    for headers in wrong:
        encoded = [
            (name, value.encode())
            for name, value in (headers.items() if isinstance(headers, dict) else headers)
        ]
        response = door.client.get("/v1/jobs", headers=encoded)
        body = problem_of(response, 401, "auth_invalid")
        body.pop("request_id")
        answers.add((json.dumps(body), response.headers["www-authenticate"]))
    assert len(answers) == 1
    assert door.ask("GET", "/v1/jobs", valid).status_code == 200


@pytest.mark.bad_input("P1")
def test_a_key_in_the_address_opens_nothing(door: Door) -> None:
    key = door.key().text
    for name in ("api_key", "key", "token", "access_token", "authorization"):
        problem_of(door.ask("GET", f"/v1/jobs?{name}={key}"), 401, "auth_required")
    problem_of(door.ask("GET", "/v1/jobs", headers={"Cookie": key}), 401, "auth_required")


def test_an_unknown_key_takes_no_less_time_than_a_known_prefix(door: Door) -> None:
    """Both ask the database once and compare once: told apart by nothing but noise."""
    known = door.key().text
    asked: list[str] = []

    def note(_c: Any, _u: Any, statement: str, *_: Any) -> None:
        if "api_keys" in statement:
            asked.append(statement)

    sa.event.listen(door.services.database, "before_cursor_execute", note)
    other = make_key()
    forged = prefix_of(known) + other[len(prefix_of(known)) : -CHECKSUM_LENGTH]
    forged += _checksum(forged)
    assert is_key(forged)
    for text in (make_key(), forged):
        asked.clear()
        problem_of(door.ask("GET", "/v1/jobs", text), 401, "auth_invalid")
        assert len(asked) == 1


def test_mistyped_keys_are_refused_without_the_database(door: Door) -> None:
    door.ask("GET", "/v1/jobs", door.key())  # whether keys are needed is known
    asked: list[str] = []
    sa.event.listen(
        door.services.database,
        "before_cursor_execute",
        lambda _c, _u, statement, *_: asked.append(statement),
    )
    for text in ("x", "szo_" + "0" * 68, make_key()[:-1] + "u"):
        problem_of(door.ask("GET", "/v1/jobs", text), 401, "auth_invalid")
    assert [statement for statement in asked if "api_keys.prefix" in statement] == []


def test_rights_are_asked_before_a_body_is_read(door: Door) -> None:
    """What cannot be parsed would be told first otherwise."""
    infer = door.key("default", Scope.INFER)
    for path in ("/v1/jobs", "/v1/datasets", "/v1/prompts", "/v1/keys", "/v1/prompts/x/evaluate"):
        headers = {"Content-Type": "application/json"}
        kinds = ((None, 401, "auth_required"), (infer, 403, "scope_forbidden"))
        for key, status, code in kinds:
            response = door.ask("POST", path, key, content=b"{not json", headers=headers)
            problem_of(response, status, code)


# Scopes


def test_the_documented_scopes_are_those_of_the_routes(settings: Settings) -> None:
    rows = re.findall(r"^\| `([A-Z]+) (/\S*)` \| (.+?) \|$", DOCS.read_text(), re.MULTILINE)
    documented = {(method, path): scopes for method, path, scopes in rows}
    found = {
        (method, path): "any" if set(scopes) == set(Scope) else scopes_text(scopes)
        for method, path, scopes in declared(create_app(settings))
        if path not in PUBLIC
    }
    assert documented == found


@pytest.mark.bad_input("P2")
def test_a_key_opens_the_routes_of_its_scope_and_no_others(door: Door) -> None:
    keys = {scope: door.key("default", scope) for scope in Scope}
    for method, path, scopes in declared(door.client.app):  # type: ignore[arg-type]
        if path in PUBLIC:
            continue
        for scope, key in keys.items():
            status = door.ask(method, filled(path), key).status_code
            may = scope in scopes or scope is Scope.ADMIN
            assert (status == 403) is not may, (method, path, scope, status)
            assert status != 401


def test_an_admin_sees_and_ends_keys_of_its_own_tenant_alone(door: Door) -> None:
    admin, other = door.key("a", Scope.ADMIN), door.key("b", Scope.INFER)
    made = door.ask("POST", "/v1/keys", admin, json={"name": "n", "scopes": ["infer"]}).json()
    assert made["tenant"] == "a"
    assert is_key(made["key"])
    listed = door.ask("GET", "/v1/keys", admin).json()["data"]
    assert {key["id"] for key in listed} == {admin.record.id, made["id"]}
    assert all("key" not in key and "sha256" not in key for key in listed)
    for ref in (other.record.id, other.record.prefix):
        problem_of(door.ask("DELETE", f"/v1/keys/{ref}", admin), 404, "not_found")
        problem_of(door.ask("POST", f"/v1/keys/{ref}/rotate", admin), 404, "not_found")
    assert door.ask("DELETE", f"/v1/keys/{made['id']}", admin).status_code == 204
    problem_of(door.ask("DELETE", f"/v1/keys/{made['id']}", admin), 404, "not_found")
    problem_of(door.ask("POST", f"/v1/keys/{made['id']}/rotate", admin), 404, "not_found")
    problem_of(door.ask("GET", "/v1/prompts", made["key"]), 401, "auth_invalid")


@pytest.mark.bad_input("P3")
@pytest.mark.parametrize(
    "body",
    [
        {"name": "n"},
        {"name": "n", "scopes": []},
        {"name": "n", "scopes": ["root"]},
        {"name": "n", "scopes": ["infer"], "tenant": "b"},
        {"name": "a\nb", "scopes": ["infer"]},
        {"name": "n", "scopes": ["infer"], "expires_in_seconds": 0},
        {"name": "n", "scopes": ["infer"], "expires_in_seconds": "60"},
        {"name": "n", "scopes": ["infer"], "rate_limit": "fast"},
        {"name": "n", "scopes": ["infer"], "rate_limit": "0/minute"},
    ],
)
def test_a_key_that_makes_no_sense_is_not_made(door: Door, body: dict[str, Any]) -> None:
    response = door.ask("POST", "/v1/keys", door.key("a"), json=body)
    assert problem_of(response, 422, "validation_error")["errors"]


def test_a_repeated_request_makes_one_key_and_tells_it_once(door: Door) -> None:
    admin = door.key("a")
    headers = {"Idempotency-Key": "one"}
    body = {"name": "n", "scopes": ["infer"], "rate_limit": "60"}
    first = door.ask("POST", "/v1/keys", admin, json=body, headers=headers)
    again = door.ask("POST", "/v1/keys", admin, json=body, headers=headers)
    assert first.headers["cache-control"] == "no-store"
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json() == first.json() | {"key": None}
    assert first.json()["rate_limit"] == "60/minute"
    assert len(door.ask("GET", "/v1/keys", admin).json()["data"]) == 2


# Time


def test_a_key_expires(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    key = door.key(expires_at=utc_now() + timedelta(seconds=0.5))
    assert door.ask("GET", "/v1/jobs", key).status_code == 200
    time.sleep(0.6)  # still remembered, and refused all the same
    problem_of(door.ask("GET", "/v1/jobs", key), 401, "auth_invalid")


def test_a_rotated_key_works_until_its_grace_ends(door: Door) -> None:
    admin = door.key("a", Scope.ADMIN)
    lifetime = timedelta(days=30)
    old = door.key("a", Scope.JOBS, expires_at=utc_now() + lifetime, rate_limit="50/minute")
    path = f"/v1/keys/{old.record.id}/rotate"
    new = door.ask("POST", path, admin, json={"grace_seconds": 60}).json()
    for key in (old.text, new["key"]):
        assert door.ask("GET", "/v1/jobs", key).status_code == 200
    assert new["scopes"] == ["jobs"]
    assert new["rate_limit"] == "50/minute"
    record = door.keys.for_tenant("a").get(new["id"])
    assert record.expires_at is not None
    assert abs(record.expires_at - record.created_at - lifetime) < timedelta(seconds=5)
    left = door.keys.for_tenant("a").get(old.record.id).expires_at
    assert left is not None
    assert timedelta(seconds=50) < left - utc_now() <= timedelta(seconds=60)
    door.keys.for_tenant("a").rotate(new["id"])
    time.sleep(key_cache.FRESH_SECONDS)
    problem_of(door.ask("GET", "/v1/jobs", new["key"]), 401, "auth_invalid")
    problem_of(door.ask("POST", f"/v1/keys/{new['id']}/rotate", admin), 409, "state_conflict")


def test_a_revoked_key_is_refused_within_two_seconds(door: Door) -> None:
    key = door.key()
    assert door.ask("GET", "/v1/jobs", key).status_code == 200
    door.keys.revoke(key.record.prefix)
    began = time.monotonic()
    eventually(lambda: door.ask("GET", "/v1/jobs", key).status_code == 401, 10)
    assert time.monotonic() - began <= key_cache.FRESH_SECONDS + 0.5


def test_a_key_that_is_revoked_under_a_body_opens_nothing(door: Door, settings: Settings) -> None:
    admin = door.key()
    body = b'{"name": "another", "scopes": ["admin"]}'
    head = (
        f"POST /v1/keys HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {admin.text}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    with server_thread(settings) as url, connect(url) as connection:
        connection.sendall(head.encode() + body[:9])
        time.sleep(0.5)
        door.keys.revoke(admin.record.id)
        time.sleep(key_cache.FRESH_SECONDS)
        before = len(door.keys.list().items)
        connection.sendall(body[9:])
        answer = read(connection)
    assert answer.status == 401
    assert answer.problem["code"] == "auth_invalid"
    assert len(door.keys.list().items) == before


def test_the_last_use_of_a_key_is_noted_off_the_request(door: Door) -> None:
    key = door.key()
    door.ask("GET", "/v1/jobs", key)
    assert door.keys.get(key.record.id).last_used_at is None
    door.services.key_cache._record_used()
    used = door.keys.get(key.record.id).last_used_at
    assert used is not None
    assert utc_now() - used < timedelta(seconds=30)


def test_requests_of_one_key_ask_the_database_for_it_once_in_a_while(door: Door) -> None:
    key = door.key()
    asked: list[str] = []

    def note(_c: Any, _u: Any, statement: str, *_: Any) -> None:
        if "api_keys" in statement:
            asked.append(statement)

    sa.event.listen(door.services.database, "before_cursor_execute", note)
    for _ in range(20):
        assert door.ask("GET", "/v1/jobs", key).status_code == 200
    assert 1 <= len(asked) <= 3


# Without keys


def test_a_service_without_keys_is_open_and_closes_with_the_first_one(
    open_door: OpenDoor, settings: Settings
) -> None:
    door = open_door(settings, keyed=False)
    assert door.ask("GET", "/v1/jobs").status_code == 200
    assert door.ask("GET", "/metrics").status_code == 200
    made = door.ask("POST", "/v1/keys", json={"name": "first", "scopes": ["admin"]}).json()
    began = time.monotonic()
    eventually(lambda: door.ask("GET", "/v1/jobs").status_code == 401, 10)
    assert time.monotonic() - began <= key_cache.FRESH_SECONDS + 0.5
    assert door.ask("GET", "/v1/jobs", made["key"]).status_code == 200
    assert door.ask("DELETE", f"/v1/keys/{made['id']}", made["key"]).status_code == 204
    time.sleep(key_cache.FRESH_SECONDS)
    problem_of(door.ask("GET", "/v1/jobs"), 401, "auth_required")  # revoked keys count as well


@pytest.mark.parametrize(
    "host", ["evil", "evil.example.org", "a/livez?x=", "localhost@evil", "local host", "", "a,b"]
)
def test_another_host_name_is_refused_while_everybody_is_let_in(
    open_door: OpenDoor, settings: Settings, host: str
) -> None:
    door = open_door(settings, keyed=False)
    for path in ("/livez", "/v1/jobs", "/nothing"):
        response = door.ask("GET", path, headers={"Host": host})
        problem_of(response, 400, "host_not_allowed")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:80"])
def test_the_names_of_this_machine_are_fine(
    open_door: OpenDoor, settings: Settings, host: str
) -> None:
    door = open_door(changed(settings, host="10.0.0.7"), keyed=False)
    assert door.ask("GET", "/v1/jobs", headers={"Host": host}).status_code == 200
    assert door.ask("GET", "/v1/jobs", headers={"Host": "10.0.0.7:80"}).status_code == 200


def test_with_keys_any_host_name_will_do_unless_some_are_listed(
    open_door: OpenDoor, settings: Settings
) -> None:
    door = open_door(settings)
    key = door.key()
    assert door.ask("GET", "/v1/jobs", key, headers={"Host": "a.example.org"}).status_code == 200
    problem_of(
        door.ask("GET", "/v1/jobs", key, headers={"Host": "a/livez?x="}), 400, "host_not_allowed"
    )
    door = open_door(changed(settings, allowed_hosts="api.example.org, *.test.org"))
    for host, status in (
        ("api.example.org", 200),
        ("API.example.org:443", 200),
        ("a.test.org", 200),
        ("a.b.test.org", 400),
        ("test.org", 400),
        ("localhost", 400),
    ):
        assert door.ask("GET", "/v1/jobs", key, headers={"Host": host}).status_code == status, host


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example.org"},
        {"Origin": "http://localhost:3000"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Origin": "localhost"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_other_sites_pages_change_nothing_while_everybody_is_let_in(
    open_door: OpenDoor, settings: Settings, headers: dict[str, str]
) -> None:
    door = open_door(settings, keyed=False)
    body = {"name": "n", "scopes": ["admin"]}
    problem_of(door.ask("POST", "/v1/keys", json=body, headers=headers), 403, "origin_not_allowed")
    assert door.keys.any() is False
    assert door.ask("GET", "/v1/jobs", headers=headers).status_code == 200


def test_the_own_page_may_change_things(open_door: OpenDoor, settings: Settings) -> None:
    door = open_door(settings, keyed=False)
    headers = {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}
    response = door.ask("POST", "/v1/jobs", json={}, headers=headers)
    problem_of(response, 422, "validation_error")


def test_elsewhere_than_on_loopback_keys_are_a_must(door: Door, settings: Settings) -> None:
    assert keys_exist(settings)
    server.check_exposure(settings, "0.0.0.0", keyed=True)
    with pytest.raises(SettingsError, match="sharpzo keys create"):
        server.check_exposure(settings, "0.0.0.0", keyed=False)


def test_a_service_with_keys_listens_elsewhere(
    open_door: OpenDoor, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to the socket, which is not opened for the sake of this test's machine."""
    settings = changed(settings, data_dir=settings.data_dir / "new")
    listened: list[str] = []

    def listen(host: str, port: int) -> None:
        listened.append(host)
        raise SettingsError("far enough")

    monkeypatch.setattr(server, "listen", listen)
    with pytest.raises(SettingsError, match="without authentication"):
        server.main(settings, "0.0.0.0", 0)
    assert not settings.data_dir.exists()  # nothing was made for it
    open_door(settings).key()
    with pytest.raises(SettingsError, match="far enough"):
        server.main(settings, "0.0.0.0", 0)
    assert listened == ["0.0.0.0"]


def test_no_proxy_is_believed_by_default(settings: Settings) -> None:
    assert settings.trusted_proxies == ""
    assert changed(settings, trusted_proxies="10.0.0.1, 10.1.0.0/16").trusted_proxies
    with pytest.raises(SettingsError, match="SHARPZO_TRUSTED_PROXIES"):
        changed(settings, trusted_proxies="proxy.example.org")


# What is known while the database is away


def test_keys_that_were_seen_open_for_a_while_without_the_database(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, other = door.key("default", Scope.ADMIN), door.key()
    assert door.ask("GET", "/metrics", key).status_code == 200

    def away(*_: object) -> None:
        raise StorageUnavailable

    monkeypatch.setattr(door.services.key_cache._store, "find", away)
    monkeypatch.setattr(key_cache, "FRESH_SECONDS", 0.0)
    assert door.ask("GET", "/metrics", key).status_code == 200
    problem_of(door.ask("GET", "/metrics", other), 503, "storage_unavailable")
    monkeypatch.setattr(key_cache, "STALE_SECONDS", 0.0)
    problem_of(door.ask("GET", "/metrics", key), 503, "storage_unavailable")
    assert door.ask("GET", "/livez").status_code == 200


# Secrets


def test_a_key_is_found_nowhere_but_in_the_answer_that_tells_it(
    open_door: OpenDoor, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    door = open_door(settings)
    canary, infer = door.key("canary").text, door.key("canary", Scope.INFER)
    made = door.ask(
        "POST",
        "/v1/keys",
        canary,
        json={"name": "n", "scopes": list(Scope)},
        headers={"Idempotency-Key": "k"},
    )
    secrets = [canary, made.json()["key"], make_key()]
    texts: list[str] = []
    for secret in secrets:
        client = door.client
        answers = (
            client.get("/v1/jobs", headers=bearer(secret)),
            client.get("/v1/jobs", headers=bearer(secret + "x")),
            client.get(f"/v1/jobs/{secret}", headers=bearer(secret)),
            client.get(f"/v1/prompts/{secret}", headers=bearer(secret)),
            client.post("/v1/jobs", headers=bearer(secret), content=b"{"),
            client.post("/v1/jobs", headers=bearer(secret), json={"dataset_id": "x"}),
            client.get("/metrics", headers=bearer(secret)),
            client.get("/v1/audit", headers=bearer(secret)),
            client.get("/v1/keys", headers=bearer(secret)),
            client.delete(f"/v1/keys/{secret}", headers=bearer(infer)),
        )
        texts += [answer.text + str(answer.headers) for answer in answers]
    door.client.__exit__(None, None, None)  # the audit log is written
    with door.keys._engine.connect() as connection:
        for table in metadata.sorted_tables:
            texts += [str(row) for row in connection.execute(sa.select(table))]
    ours = [record for record in caplog.records if not record.name.startswith("httpx")]
    texts += [record.getMessage() + str(vars(record)) for record in ours]
    kept = [p for p in settings.data_dir.rglob("*") if p.is_file()]
    found = [secret[:20] for secret in secrets for text in texts if secret[13:40] in text]
    assert found == []
    assert [p for p in kept for s in secrets if s[13:40].encode() in p.read_bytes()] == []
    assert len(texts) > 30
    door.client.__enter__()


def test_the_document_says_what_needs_a_key(door: Door) -> None:
    document = door.ask("GET", "/openapi.json").json()
    (scheme,) = document["components"]["securitySchemes"].values()
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    for path, operations in document["paths"].items():
        for operation in operations.values():
            if path in PUBLIC:
                assert "security" not in operation
                continue
            assert operation["security"]
            assert {"401", "403", "429"} <= operation["responses"].keys()


def test_the_document_of_an_open_service_says_so(open_door: OpenDoor, settings: Settings) -> None:
    door = open_door(settings, keyed=False)
    document = door.ask("GET", "/openapi.json").json()
    assert document["paths"]["/v1/jobs"]["get"]["security"][0] == {}


def test_event_streams_of_a_revoked_key_end(door: Door) -> None:
    key = door.key("a")
    client = door.as_(key)
    dataset = settle(client, upload(client, zip_of(dataset_members())).json()["id"])
    body = {"dataset_id": dataset["id"], "config": {"shots": 3}}
    other = door.key("a")  # whose job goes on
    job = door.ask("POST", "/v1/jobs", other, json=body).json()

    began = time.monotonic()
    threading.Timer(0.5, door.keys.for_tenant("a").revoke, [key.record.id]).start()
    text = client.get(f"/v1/jobs/{job['id']}/events", headers={"Accept": "text/event-stream"}).text
    assert time.monotonic() - began < 5
    assert "event: queued" in text
    assert "event: cancelled" not in text
    assert door.ask("GET", f"/v1/jobs/{job['id']}", other).json()["status"] == "queued"


def test_needs_that_stand_with_a_route_go_before_its_routers() -> None:
    router = APIRouter(dependencies=[authorization.Needs(Scope.JOBS)])

    @router.get("/x", dependencies=[authorization.Needs(Scope.INFER)])
    def x() -> None: ...

    assert authorization.scopes_of(router.routes[0]) == (Scope.INFER,)
