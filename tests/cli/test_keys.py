"""`sharpzo keys`, on a database of its own."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.app import create_app
from sharpzo_core.database.engine import make_engine
from sharpzo_core.records.keys import is_key
from sharpzo_core.settings import Settings
from sharpzo_core.stores.audit import AuditStore


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


def made(sharpzo: Any, data_dir: Path, *options: object) -> dict[str, Any]:
    ran = sharpzo("keys", "create", "--name", "n", *options, "--data-dir", data_dir, "--json")
    assert ran.code == 0, ran.err
    assert ran.err == ""
    found: dict[str, Any] = json.loads(ran.out)
    return found


def listed(sharpzo: Any, data_dir: Path, *options: str) -> list[dict[str, Any]]:
    ran = sharpzo("keys", "list", "--json", "--data-dir", data_dir, *options)
    found: list[dict[str, Any]] = json.loads(ran.out)["keys"]
    return found


def test_a_key_is_all_that_is_written_to_standard_output(sharpzo: Any, data_dir: Path) -> None:
    ran = sharpzo("keys", "create", "--name", "laptop", "--data-dir", data_dir)
    assert ran.code == 0
    assert is_key(ran.out.strip())
    assert ran.out.strip() not in ran.err
    assert "tenant default, for infer, jobs, prompts, until it is revoked" in ran.error


def test_a_key_is_made_as_asked_for(sharpzo: Any, data_dir: Path) -> None:
    options = ("--tenant", "acme", "--scopes", "infer, admin", "--expires", "90d")
    key = made(sharpzo, data_dir, *options, "--rate-limit", "600")
    assert (key["tenant"], key["scopes"]) == ("acme", ["admin", "infer"])
    assert key["rate_limit"] == "600/minute"
    times = [datetime.fromisoformat(key[name]) for name in ("created_at", "expires_at")]
    assert timedelta(days=89) < times[1] - times[0] <= timedelta(days=91)
    plain = {name: value for name, value in key.items() if name != "key"}
    assert listed(sharpzo, data_dir) == [plain]
    assert "sha256" not in key


def test_what_is_made_here_opens_the_service(sharpzo: Any, data_dir: Path) -> None:
    key = made(sharpzo, data_dir, "--scopes", "jobs")["key"]
    settings = Settings(data_dir=data_dir, device="cpu")
    with TestClient(create_app(settings), "http://localhost") as client:
        assert client.get("/v1/jobs").status_code == 401
        headers = {"Authorization": f"Bearer {key}"}
        assert client.get("/v1/jobs", headers=headers).status_code == 200


def test_keys_are_listed_whole_and_by_tenant(
    sharpzo: Any, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    keys = [made(sharpzo, data_dir, "--tenant", tenant) for tenant in ("a", "b")]
    sharpzo("keys", "revoke", keys[0]["prefix"], "--data-dir", data_dir)
    lines = sharpzo("keys", "list", "--data-dir", data_dir).out.splitlines()
    assert len(lines) == 3
    assert lines[0].split()[:3] == ["PREFIX", "TENANT", "SCOPES"]
    assert lines[1].startswith(f"{keys[1]['prefix']}  b ")
    assert "valid" in lines[1]
    assert lines[2].startswith(f"{keys[0]['prefix']}  a ")
    assert "revoked" in lines[2]
    assert [key["id"] for key in listed(sharpzo, data_dir, "--tenant", "a")] == [keys[0]["id"]]


def test_a_key_is_replaced(sharpzo: Any, data_dir: Path) -> None:
    old = made(sharpzo, data_dir, "--tenant", "a", "--scopes", "infer")
    ran = sharpzo("keys", "rotate", old["id"], "--grace", "1h", "--data-dir", data_dir, "--json")
    new = json.loads(ran.out)
    assert is_key(new["key"])
    assert (new["tenant"], new["scopes"]) == ("a", ["infer"])
    left = {key["id"]: key for key in listed(sharpzo, data_dir)}[old["id"]]
    grace = datetime.fromisoformat(left["expires_at"]) - datetime.fromisoformat(new["created_at"])
    assert timedelta(minutes=59) < grace <= timedelta(hours=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("create", "--name", "n", "--scopes", "root"),
            "'root' is not a scope (choose from: jobs,",
        ),
        (("create", "--name", "n", "--scopes", ","), "needs a scope"),
        (("create", "--name", "a\nb"), "without control characters"),
        (("create", "--name", ""), "name of the key is not valid"),
        (("create", "--name", "n", "--tenant", "a b"), "'a b' is not a valid name of a tenant"),
        (("create", "--name", "n", "--tenant", "x" * 65), "at most 64"),
        (
            ("create", "--name", "n", "--expires", "soon"),
            "not a duration (write 45s, 30m, 12h or 90d",
        ),
        (("create", "--name", "n", "--expires", "0s"), "not a duration"),
        (("create", "--name", "n", "--expires", "99999d"), "not a duration"),
        (("create", "--name", "n", "--rate-limit", "fast"), "give a rate such as 600/minute"),
        (("revoke", "szo_00000000"), "no such key (see `sharpzo keys list`)"),
        (("rotate", "key_x"), "no such key"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_exit_2(
    sharpzo: Any, data_dir: Path, arguments: tuple[str, ...], message: str
) -> None:
    ran = sharpzo("keys", *arguments, "--data-dir", data_dir)
    assert ran.code == 2
    assert ran.out == ""
    assert ran.error.startswith("error: ")
    assert message in ran.error


def test_commands_are_in_the_audit_log_of_the_keys_tenant(sharpzo: Any, data_dir: Path) -> None:
    key = made(sharpzo, data_dir, "--tenant", "a")
    sharpzo("keys", "revoke", key["id"], "--data-dir", data_dir)
    engine = make_engine(Settings(data_dir=data_dir))
    noted = AuditStore(engine, tenant="a").list().items
    engine.dispose()
    actions = ("sharpzo keys revoke", "sharpzo keys create")
    assert [(e.method, e.route, e.object_id) for e in noted] == [
        ("CLI", action, key["id"]) for action in actions
    ]


def test_a_key_that_has_ended_is_not_replaced(sharpzo: Any, data_dir: Path) -> None:
    key = made(sharpzo, data_dir)
    for _ in range(2):  # again changes nothing
        ran = sharpzo("keys", "revoke", key["id"], "--data-dir", data_dir)
        assert (ran.code, ran.out) == (0, f"{key['prefix']} (n) is revoked\n")
    assert sharpzo("keys", "rotate", key["id"], "--data-dir", data_dir).code == 2


def test_names_of_keys_do_nothing_to_the_terminal(sharpzo: Any, data_dir: Path) -> None:
    made(sharpzo, data_dir, "--name", "\u202e[red]x")
    shown = sharpzo("keys", "list", "--data-dir", data_dir).out
    assert "\\u202e[red]x" in shown
    assert "\u202e" not in shown
