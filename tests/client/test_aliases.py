from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from sharpzo_client import Alias, ConflictError, InputError

ALIAS = {
    "name": "clothes",
    "alias": "live",
    "ref": "clothes@live",
    "prompt_id": "prm_2",
    "version": 2,
    "seq": 3,
    "updated_at": "2026-01-02T00:00:00Z",
}
CHANGES = [
    {"seq": seq, "action": "set", "prompt_id": f"prm_{seq}", "created_at": "2026-01-01T00:00:00Z"}
    for seq in (3, 2, 1)
]


class Registry:
    """Answers with two entries of the history at a time."""

    def __init__(self, *first: httpx.Response) -> None:
        self.first = list(first)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        if self.first:
            return self.first.pop(0)
        if request.method == "DELETE":
            return httpx.Response(204)
        if request.url.path == "/v1/aliases":
            return httpx.Response(200, json={"data": [ALIAS], "has_more": False, "next": None})
        if request.method == "GET":
            after = int(request.url.params.get("after", 4))
            page = [change for change in CHANGES if int(str(change["seq"])) < after]
            more = {"has_more": len(page) > 2, "next": page[1]["seq"] if len(page) > 2 else None}
            return httpx.Response(200, json=ALIAS | {"history": page[:2]} | more)
        return httpx.Response(200, json=ALIAS)

    @property
    def last(self) -> httpx.Request:
        return self.requests[-1]

    @property
    def body(self) -> Any:
        return json.loads(self.last.content)


def test_an_alias_is_set_with_what_was_given_and_nothing_else(harness: Any) -> None:
    registry = Registry()
    client = harness.client(registry)
    alias = harness.run(lambda: client.aliases.set("clothes@live", "prm_2"))
    assert isinstance(alias, Alias)
    assert (alias.ref, alias.version, alias.history) == ("clothes@live", 2, ())
    assert (registry.last.method, registry.last.url.path) == ("PUT", "/v1/aliases/clothes@live")
    assert registry.body == {"prompt_id": "prm_2"}
    gate = {"metric": "val_accuracy", "min": 0.9}
    harness.run(
        lambda: client.aliases.set(
            "live", "prm_2", gate=gate, expected_prompt_id="prm_1", comment="better"
        )
    )
    assert registry.body == {
        "prompt_id": "prm_2",
        "gate": gate,
        "expected_prompt_id": "prm_1",
        "comment": "better",
    }
    harness.run(lambda: client.aliases.set("live", "prm_2", expected_prompt_id=None))
    assert registry.body == {"prompt_id": "prm_2", "expected_prompt_id": None}


def test_a_rollback_that_is_repeated_carries_the_same_key(harness: Any) -> None:
    registry = Registry(httpx.Response(503))
    client = harness.client(registry)
    harness.run(lambda: client.aliases.rollback("live", comment="slow"))
    first, again = (request.headers["idempotency-key"] for request in registry.requests)
    assert first == again
    assert registry.last.url.path == "/v1/aliases/live/rollback"
    assert registry.body == {"comment": "slow"}
    harness.run(
        lambda: client.aliases.rollback("live", expected_prompt_id="prm_2", idempotency_key="k")
    )
    assert registry.last.headers["idempotency-key"] == "k"
    assert registry.body == {"expected_prompt_id": "prm_2"}
    harness.run(lambda: client.aliases.rollback("live"))
    assert registry.body == {}


@pytest.mark.parametrize(
    "code", ["alias_moved", "gate_failed", "alias_ambiguous", "nothing_to_roll_back"]
)
def test_conflicts_carry_their_code_and_are_not_repeated(harness: Any, code: str) -> None:
    problem = httpx.Response(409, json={"code": code, "detail": "why"})
    registry = Registry(problem)
    client = harness.client(registry)
    with pytest.raises(ConflictError, match="why") as caught:
        harness.run(lambda: client.aliases.set("live", "prm_2"))
    assert caught.value.code == code
    assert len(registry.requests) == 1


def test_a_history_is_read_to_its_end(harness: Any) -> None:
    registry = Registry()
    client = harness.client(registry)
    alias = harness.run(lambda: client.aliases.get("live"))
    assert [change.seq for change in alias.history] == [3, 2]
    assert alias.has_more
    found = harness.run(lambda: client.aliases.history("live", page_size=2))
    assert [change.seq for change in found] == [3, 2, 1]
    assert registry.last.url.params["after"] == "2"


def test_a_moment_has_its_time_zone(harness: Any) -> None:
    registry = Registry()
    client = harness.client(registry)
    moment = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
    for at in (moment, "2026-01-02T03:04:00+00:00"):
        harness.run(lambda at=at: client.aliases.get("live", at=at))
        assert registry.last.url.params["at"] == "2026-01-02T03:04:00+00:00"
    assert b"%2B" in registry.last.url.query  # a bare + would arrive as a blank
    sent = len(registry.requests)
    with pytest.raises(InputError, match="no time zone"):
        harness.run(lambda: client.aliases.get("live", at=moment.replace(tzinfo=None)))
    assert len(registry.requests) == sent


def test_lists_pins_and_deletions(harness: Any) -> None:
    registry = Registry()
    client = harness.client(registry)
    assert [alias.ref for alias in harness.run(lambda: client.aliases.list(name="clothes"))] == [
        "clothes@live"
    ]
    assert registry.last.url.params["name"] == "clothes"
    harness.run(client.aliases.list)
    assert "name" not in registry.last.url.params
    harness.run(lambda: client.aliases.delete("live"))
    assert (registry.last.method, registry.last.url.path) == ("DELETE", "/v1/aliases/live")
    for pinned, method in ((True, "PUT"), (False, "DELETE")):
        prompt = httpx.Response(200, json={"id": "prm_1", "pinned": pinned})
        pinning = Registry(prompt)
        prompts = harness.client(pinning).prompts
        call = prompts.pin if pinned else prompts.unpin
        assert harness.run(lambda call=call: call("clothes@live")).pinned is pinned
        assert (pinning.last.method, pinning.last.url.path) == (
            method,
            "/v1/prompts/clothes@live/pin",
        )
