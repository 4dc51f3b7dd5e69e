"""`client.keys`, and the key that a client sends by itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from sharpzo_client import AuthenticationError, Client, InputError, RateLimitError
from tests.client.conftest import Harness

KEY: dict[str, Any] = {
    "id": "key_1",
    "name": "n",
    "tenant": "a",
    "prefix": "szo_12345678",
    "scopes": ["infer"],
    "rate_limit": "60/minute",
    "created_at": "2026-01-01T00:00:00Z",
    "expires_at": None,
    "revoked_at": None,
    "last_used_at": None,
}


def page(*items: dict[str, Any]) -> dict[str, Any]:
    return {"data": items, "has_more": False, "next": None}


@pytest.fixture
def seen() -> list[httpx.Request]:
    return []


def answering(
    seen: list[httpx.Request], status: int, body: object
) -> Callable[[httpx.Request], httpx.Response]:
    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(status, json=body) if body is not None else httpx.Response(status)

    return handle


def test_a_key_is_made_and_shown_once(harness: Harness, seen: list[httpx.Request]) -> None:
    client = harness.client(answering(seen, 201, KEY | {"key": "szo_secret"}))
    made = harness.run(lambda: client.keys.create("n", ["infer"], expires_in=60, rate_limit="60"))
    (request,) = seen
    assert (request.method, request.url.path) == ("POST", "/v1/keys")
    asked = {"name": "n", "scopes": ["infer"], "expires_in_seconds": 60, "rate_limit": "60"}
    assert json.loads(request.content) == asked
    assert request.headers["idempotency-key"]
    assert made.key == "szo_secret"
    assert "szo_secret" not in repr(made)
    assert made.scopes == ("infer",)


def test_keys_are_listed_replaced_and_revoked(harness: Harness, seen: list[httpx.Request]) -> None:
    client = harness.client(answering(seen, 200, page(KEY)))
    assert [key.prefix for key in harness.run(client.keys.list)] == ["szo_12345678"]
    client = harness.client(answering(seen, 204, None))
    assert harness.run(lambda: client.keys.revoke("key_1")) is None
    client = harness.client(answering(seen, 201, KEY | {"key": None}))
    assert harness.run(lambda: client.keys.rotate("key_1", grace=5)).key is None
    assert [(r.method, r.url.path) for r in seen] == [
        ("GET", "/v1/keys"),
        ("DELETE", "/v1/keys/key_1"),
        ("POST", "/v1/keys/key_1/rotate"),
    ]
    assert json.loads(seen[-1].content) == {"grace_seconds": 5}


def test_the_log_and_the_usage_are_read(harness: Harness, seen: list[httpx.Request]) -> None:
    entry = {"id": "aud_1", "at": "2026-01-01T00:00:00Z", "method": "POST", "status": 201}
    client = harness.client(answering(seen, 200, page(entry)))
    (found,) = harness.run(lambda: client.keys.audit(key_id="key_1"))
    assert found.status == 201
    assert seen[0].url.params["key_id"] == "key_1"
    quota = {"used": 1, "limit": None}
    counts = dict.fromkeys(("active_jobs", "storage_bytes", "forward_passes"), quota)
    client = harness.client(answering(seen, 200, {"tenant": "a", "month": "2026-01", **counts}))
    usage = harness.run(client.usage)
    assert (usage.tenant, usage.active_jobs.used, usage.active_jobs.limit) == ("a", 1, None)


@pytest.mark.parametrize(
    ("given", "variable", "sent"),
    [
        ("szo_a", "szo_b", "Bearer szo_a"),
        (None, "szo_b", "Bearer szo_b"),
        (None, " szo_b\n", "Bearer szo_b"),  # as read from a file
        ("", "szo_b", None),
        (None, None, None),
        (None, "", None),
    ],
)
def test_the_key_is_the_one_given_or_that_of_the_environment(
    harness: Harness,
    seen: list[httpx.Request],
    monkeypatch: pytest.MonkeyPatch,
    given: str | None,
    variable: str | None,
    sent: str | None,
) -> None:
    monkeypatch.delenv("SHARPZO_API_KEY", raising=False)
    if variable is not None:
        monkeypatch.setenv("SHARPZO_API_KEY", variable)
    client = harness.client(answering(seen, 200, page()), api_key=given)
    harness.run(client.jobs.list)
    assert seen[0].headers.get("authorization") == sent


@pytest.mark.parametrize("key", ["szo_a\r\nX-Evil: 1", "szo_\x00", "szö"])
def test_a_key_that_cannot_be_sent_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(InputError) as caught:
        Client("http://service", api_key=key)
    assert key not in str(caught.value)


def test_refusals_have_their_classes(harness: Harness, seen: list[httpx.Request]) -> None:
    body = {"status": 401, "code": "auth_invalid", "detail": "no", "title": "no"}
    client = harness.client(answering(seen, 401, body))
    with pytest.raises(AuthenticationError, match="auth_invalid"):
        harness.run(client.jobs.list)
    assert len(seen) == 1  # not sent again
    client = harness.client(
        answering(seen, 429, body | {"status": 429, "code": "quota_exceeded"}), max_retries=0
    )
    with pytest.raises(RateLimitError, match="quota_exceeded"):
        harness.run(client.jobs.list)
