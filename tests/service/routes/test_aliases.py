"""Aliases, pins and lineage over HTTP: every rule, and every way to break one."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from service.services import Services
from sharpzo_core.database.engine import reading, writing
from sharpzo_core.database.tables import alias_changes, jobs
from sharpzo_core.ids import Prefix, new_id
from sharpzo_core.records.prompts import NewPrompt
from tests.service.conftest import assert_problem, files_below, png, ready_dataset
from tests.service.routes.test_prompts import artifact_of, backbone, files, import_, settings

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.testclient import TestClient

    from sharpzo_engine import Backbone

__all__ = ["backbone", "settings"]  # fixtures

LIVE = "/v1/aliases/live"


def publish(services: Services, name: str = "pets", **metrics: float | None) -> str:
    """A version whose file nobody will ask for."""
    prompt = NewPrompt(
        id=new_id(Prefix.PROMPT),
        name=name,
        job_id=None,
        backbone={"name": "tiny", "pretrained": None, "fingerprint": "f"},
        classes=("cat", "dog"),
        metrics=metrics,
        sha256="1" * 64,
    )
    return services.prompts.publish(prompt).id


def put(client: TestClient, prompt_id: str, alias: str = "live", **fields: Any) -> Any:
    return client.put(f"/v1/aliases/{alias}", json={"prompt_id": prompt_id, **fields})


def test_an_alias_is_set_told_moved_and_taken_away(client: TestClient, services: Services) -> None:
    first, second = publish(services), publish(services)
    response = put(client, first, comment="the first")
    assert response.status_code == 200, response.text
    alias = response.json()
    assert alias == {
        "name": "pets",
        "alias": "live",
        "ref": "pets@live",
        "prompt_id": first,
        "version": 1,
        "seq": 1,
        "updated_at": alias["updated_at"],
    }
    moved = put(client, second, "pets@live", expected_prompt_id=first).json()
    assert client.get("/v1/aliases").json() == {"data": [moved], "has_more": False, "next": None}
    told = client.get("/v1/aliases/pets@live").json()
    assert told.items() >= moved.items()
    assert (told["has_more"], told["next"]) == (False, None)
    entry = {"version": 1, "previous_prompt_id": None, "comment": "the first", "gate": None}
    assert told["history"][1] == {
        **entry,
        "seq": 1,
        "action": "set",
        "prompt_id": first,
        "created_at": alias["updated_at"],
    }
    assert client.get("/v1/prompts/pets@live").json()["id"] == second
    assert client.get("/v1/prompts/pets:2").json()["aliases"] == ["live"]
    listed = client.get("/v1/prompts").json()["data"]
    assert [prompt["aliases"] for prompt in listed] == [["live"], []]
    assert client.delete(LIVE).status_code == 204
    assert_problem(client.delete(LIVE), 404, "not_found")
    assert_problem(client.get(LIVE), 404, "not_found")
    assert_problem(client.post(f"{LIVE}/rollback"), 404, "not_found")
    assert_problem(client.get("/v1/prompts/pets@live"), 404, "not_found")
    assert put(client, first).json()["seq"] == 4
    history = client.get(LIVE).json()["history"]
    assert [change["action"] for change in history] == ["set", "deleted", "set", "set"]
    assert (history[1]["prompt_id"], history[1]["previous_prompt_id"]) == (None, second)


def test_a_prompt_behind_an_alias_classifies_and_is_downloaded(
    client: TestClient, backbone: Backbone
) -> None:
    first = import_(client, artifact_of(backbone)).json()
    import_(client, artifact_of(backbone))
    put(client, first["id"])
    response = client.post("/v1/prompts/colors@live/classify", files=files(png()))
    assert response.json()["version"] == 1
    assert client.get("/v1/prompts/colors@live/download").status_code == 200
    assert_problem(client.delete("/v1/prompts/colors@live"), 409, "prompt_in_use")
    assert client.get("/v1/prompts/colors:1/download").status_code == 200


def test_the_same_put_again_changes_nothing(client: TestClient, services: Services) -> None:
    first, second = publish(services, a=0.5), publish(services, a=0.6)
    put(client, first)
    request = {"expected_prompt_id": first, "gate": {"metric": "a", "min_improvement": 0.05}}
    answers = [put(client, second, **request) for _ in range(3)]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    history = client.get(LIVE).json()["history"]
    assert [change["seq"] for change in history] == [2, 1]
    gate = {"metric": "a", "min": None, "min_improvement": 0.05, "found": 0.6, "current": 0.5}
    assert history[0]["gate"] == gate


def test_an_expectation_that_does_not_hold(client: TestClient, services: Services) -> None:
    first, second = publish(services), publish(services)
    assert_problem(put(client, first, expected_prompt_id=second), 409, "alias_moved")
    assert put(client, first, expected_prompt_id=None).status_code == 200
    body = assert_problem(put(client, second, expected_prompt_id=None), 409, "alias_moved")
    assert first in body["detail"]
    assert put(client, second).status_code == 200
    rollback = f"{LIVE}/rollback"
    for wrong in (first, None):
        response = client.post(rollback, json={"expected_prompt_id": wrong})
        assert_problem(response, 409, "alias_moved")
    assert client.get(LIVE).json()["seq"] == 2
    right = client.post(rollback, json={"expected_prompt_id": second, "comment": "slow"})
    assert right.json()["prompt_id"] == first
    assert client.get(LIVE).json()["history"][0]["comment"] == "slow"


def test_a_gate_that_fails_names_what_was_wanted_and_found(
    client: TestClient, services: Services
) -> None:
    good = publish(services, val_accuracy=0.8, val_loss=0.5)
    bad = publish(services, val_accuracy=0.7, val_loss=0.4)
    put(client, good)
    body = assert_problem(
        put(client, bad, gate={"metric": "val_accuracy", "min": 0.75}), 409, "gate_failed"
    )
    assert body["detail"] == "val_accuracy: wanted at least 0.75, found 0.7"
    assert_problem(
        put(client, bad, gate={"metric": "val_accuracy", "min_improvement": 0}), 409, "gate_failed"
    )
    body = assert_problem(put(client, bad, gate={"metric": "f1", "min": 0}), 409, "gate_failed")
    assert "f1 is not recorded for pets:2 (it has: val_accuracy, val_loss)" in body["detail"]
    assert client.get(LIVE).json()["seq"] == 1
    less = {"metric": "val_loss", "min": 0.45, "min_improvement": 0.1}
    assert put(client, bad, gate=less).status_code == 200


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({}, "/prompt_id"),
        ({"prompt_id": None}, "/prompt_id"),
        ({"prompt_id": 5}, "/prompt_id"),
        ({"prompt_id": "pets"}, "/prompt_id"),
        ({"prompt_id": "pets:1"}, "/prompt_id"),
        ({"prompt_id": "job_00000000000000000000000000"}, "/prompt_id"),
        ({"expected_prompt_id": "pets"}, "/expected_prompt_id"),
        ({"expected_prompt_id": 5}, "/expected_prompt_id"),
        ({"comment": "a\nb"}, "/comment"),
        ({"comment": "a" * 501}, "/comment"),
        ({"gate": {}}, "/gate/metric"),
        ({"gate": {"metric": "a"}}, "/gate"),
        ({"gate": {"metric": "", "min": 1}}, "/gate/metric"),
        ({"gate": {"metric": "a", "min": "1"}}, "/gate/min"),
        ({"gate": {"metric": "a", "min": True}}, "/gate/min"),
        ({"gate": {"metric": "a", "min": 1, "max": 2}}, "/gate/max"),
        ({"gate": []}, "/gate"),
        ({"force": True}, "/force"),
    ],
)
def test_wrong_fields_are_pointed_at(
    shared_client: TestClient, fields: dict[str, Any], pointer: str
) -> None:
    body = {"prompt_id": "prm_00000000000000000000000000", **fields}
    if not fields:
        del body["prompt_id"]
    problem = assert_problem(shared_client.put(LIVE, json=body), 422, "validation_error")
    assert [fault["pointer"] for fault in problem["errors"]] == [pointer]
    if pointer not in ("/prompt_id", "/force") and not pointer.startswith("/gate"):
        problem = assert_problem(
            shared_client.post(f"{LIVE}/rollback", json=fields), 422, "validation_error"
        )
        assert [fault["pointer"] for fault in problem["errors"]] == [pointer]


@pytest.mark.parametrize(
    ("content", "kind", "status", "code"),
    [
        (b"{", "application/json", 400, "malformed_json"),
        (b'{"comment": "a", "comment": "b"}', "application/json", 400, "malformed_json"),
        (b'{"gate": {"metric": "a", "min": NaN}}', "application/json", 422, "validation_error"),
        (b"[]", "application/json", 422, "validation_error"),
        (b"null", "application/json", 422, "validation_error"),
        (b"{}", "text/plain", 415, "unsupported_media_type"),
        (b" " * (1 << 20) + b" {}", "application/json", 413, "payload_too_large"),
    ],
)
def test_bodies_are_strict_json(
    shared_client: TestClient, content: bytes, kind: str, status: int, code: str
) -> None:
    headers = {"content-type": kind}
    for method, url in (("PUT", LIVE), ("POST", f"{LIVE}/rollback")):
        response = shared_client.request(method, url, content=content, headers=headers)
        assert_problem(response, status, code)


def test_wrong_aliases_names_and_refs(client: TestClient, services: Services) -> None:
    prompt_id = publish(services)
    for alias in ("7", "-a", "a b", "a@", "pets@7", "p ts@live", "a@b@c", "a" * 101):
        body = assert_problem(put(client, prompt_id, alias), 422, "validation_error")
        assert [fault["pointer"] for fault in body["errors"]] == ["/alias"]
        for response in (
            client.get(f"/v1/aliases/{alias}"),
            client.delete(f"/v1/aliases/{alias}"),
            client.post(f"/v1/aliases/{alias}/rollback"),
        ):
            assert_problem(response, 404, "not_found")
    body = assert_problem(put(client, prompt_id, "cars@live"), 422, "validation_error")
    assert "pets" in body["errors"][0]["message"]
    assert_problem(put(client, new_id(Prefix.PROMPT)), 404, "not_found")
    assert client.get("/v1/aliases").json()["data"] == []
    assert_problem(client.post("/v1/aliases", json={}), 405, "method_not_allowed")


def test_a_bare_alias_of_several_names_is_told(client: TestClient, services: Services) -> None:
    for name in ("pets", "cars"):
        put(client, publish(services, name))
    for response in (client.get(LIVE), client.delete(LIVE), client.post(f"{LIVE}/rollback")):
        body = assert_problem(response, 409, "alias_ambiguous")
        assert "cars@live, pets@live" in body["detail"]
    assert client.get("/v1/aliases/cars@live").json()["name"] == "cars"


def test_lists_are_paged_and_filtered(client: TestClient, services: Services) -> None:
    for name in ("pets", "cars"):
        for alias in ("live", "test"):
            put(client, publish(services, name), alias)
    first = client.get("/v1/aliases?limit=3").json()
    rest = client.get("/v1/aliases", params={"limit": 3, "after": first["next"]}).json()
    refs = [alias["ref"] for alias in first["data"] + rest["data"]]
    assert refs == ["cars@live", "cars@test", "pets@live", "pets@test"]
    assert (first["has_more"], rest["has_more"], rest["next"]) == (True, False, None)
    some = client.get("/v1/aliases?name=cars").json()["data"]
    assert [alias["ref"] for alias in some] == refs[:2]
    versions = client.get("/v1/prompts?name=cars&limit=1").json()
    assert [prompt["version"] for prompt in versions["data"]] == [2]
    url = f"/v1/prompts?name=cars&limit=1&after={versions['next']}"
    assert [prompt["version"] for prompt in client.get(url).json()["data"]] == [1]
    assert client.get("/v1/prompts?name=nonesuch").json()["data"] == []
    for url in (
        "/v1/aliases?after=x",
        "/v1/aliases?limit=0",
        "/v1/aliases?limit=101",
        "/v1/aliases?name=a%20b",
        "/v1/aliases?name=a&name=b",
        "/v1/prompts?name=",
        "/v1/aliases/cars@live?after=x",
        "/v1/aliases/cars@live?limit=0",
    ):
        assert_problem(client.get(url), 422, "validation_error")


def test_a_history_is_paged(client: TestClient, services: Services) -> None:
    one, other = publish(services), publish(services)
    for prompt_id in (one, other, one):
        put(client, prompt_id)
    page = client.get(f"{LIVE}?limit=2").json()
    assert ([change["seq"] for change in page["history"]], page["next"]) == ([3, 2], "2")
    page = client.get(f"{LIVE}?limit=2&after=2").json()
    assert ([change["seq"] for change in page["history"]], page["has_more"]) == ([1], False)
    assert (page["seq"], page["prompt_id"]) == (3, one)


def test_what_was_in_force_at_a_time(client: TestClient, services: Services) -> None:
    first, second = publish(services), publish(services)
    put(client, first)
    put(client, second)
    client.delete(LIVE)
    times = times_of_changes(services)

    def then(moment: datetime | str) -> Any:
        at = moment if isinstance(moment, str) else moment.isoformat()
        return client.get("/v1/aliases/pets@live", params={"at": at})

    for seq, prompt_id in ((1, first), (2, second)):
        answer = then(times[seq]).json()
        assert (answer["prompt_id"], answer["seq"]) == (prompt_id, seq)
        assert [change["seq"] for change in answer["history"]] == list(range(seq, 0, -1))
        zulu = times[seq].isoformat().replace("+00:00", "Z")
        assert then(zulu).json() == answer
    for moment in (times[1] - timedelta(seconds=1), times[3], "9999-01-01T00:00:00Z"):
        assert_problem(then(moment), 404, "not_found")


def times_of_changes(services: Services) -> dict[int, datetime]:
    with reading(services.database) as connection:
        return {row.seq: row.created_at for row in connection.execute(alias_changes.select())}


@pytest.mark.parametrize(
    "at",
    [
        "",
        "tuesday",
        "1700000000",
        "2026-01-01",
        "2026-01-01T00:00:00",
        "2026-01-01T00:00:00 00:00",
        "2026-W01-1T00:00:00Z",
        "20260101T000000Z",
        "2026-02-30T00:00:00Z",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00",
        "2026-01-01T00:00:00+99:00",
        "٢٠٢٦-01-01T00:00:00Z",
    ],
)
def test_a_time_is_rfc_3339(shared_client: TestClient, at: str) -> None:
    response = shared_client.get(LIVE, params={"at": at})
    body = assert_problem(response, 422, "validation_error")
    assert [fault["pointer"] for fault in body["errors"]] == ["/at"]


@pytest.mark.parametrize("at", ["2026-01-01t00:00:00z", "2026-01-01 00:00:00.123456789-05:30"])
def test_a_time_may_be_written_so(shared_client: TestClient, at: str) -> None:
    assert_problem(shared_client.get(LIVE, params={"at": at}), 404, "not_found")


def test_rollback_goes_back_step_by_step(client: TestClient, services: Services) -> None:
    prompts = [publish(services) for _ in range(3)]
    for prompt_id in prompts:
        put(client, prompt_id)
    answers = [client.post(f"{LIVE}/rollback") for _ in range(2)]
    assert [answer.json()["version"] for answer in answers] == [2, 1]
    body = assert_problem(client.post(f"{LIVE}/rollback", json={}), 409, "nothing_to_roll_back")
    assert "pets@live" in body["detail"]
    put(client, prompts[2])
    assert client.delete("/v1/prompts/pets:1").status_code == 204
    assert_problem(client.post(f"{LIVE}/rollback"), 409, "nothing_to_roll_back")


def test_a_rollback_with_a_key_is_done_once(client: TestClient, services: Services) -> None:
    for _ in range(3):
        put(client, publish(services))

    def rollback(key: str, **fields: Any) -> Any:
        headers = {"Idempotency-Key": key}
        return client.post(f"{LIVE}/rollback", json=fields, headers=headers)

    first = rollback("k")
    again = rollback("k")
    assert (again.status_code, again.content) == (200, first.content)
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert_problem(rollback("k", comment="other"), 422, "idempotency_mismatch")
    assert client.get(LIVE).json()["version"] == 2
    assert rollback("other").json()["version"] == 1
    assert_problem(rollback("third"), 409, "nothing_to_roll_back")
    put(client, publish(services))
    assert rollback("third").json()["version"] == 1  # a request that failed leaves its key free
    malformed = assert_problem(rollback("k" * 256), 422, "validation_error")
    assert malformed["errors"][0]["pointer"] == "/Idempotency-Key"


def test_racing_rollbacks_with_one_key_go_back_once(client: TestClient, services: Services) -> None:
    for _ in range(4):
        put(client, publish(services))

    def rollback(_: int) -> int:
        headers = {"Idempotency-Key": "k"}
        return int(client.post(f"{LIVE}/rollback", headers=headers).status_code)

    with ThreadPoolExecutor(8) as pool:
        statuses = set(pool.map(rollback, range(8)))
    assert 200 in statuses
    assert statuses <= {200, 409}
    assert client.get(LIVE).json()["seq"] == 5


def test_racing_puts_leave_a_chain(client: TestClient, services: Services) -> None:
    prompts = [publish(services) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda prompt_id: put(client, prompt_id), prompts * 2))
    assert {answer.status_code for answer in answers} == {200}
    history = client.get(f"{LIVE}?limit=100").json()["history"]
    assert [change["seq"] for change in history] == list(range(len(history), 0, -1))
    for later, earlier in pairwise(history):
        assert later["previous_prompt_id"] == earlier["prompt_id"]


def test_a_prompt_in_use_is_not_deleted(
    client: TestClient, services: Services, data_dir: Path, backbone: Backbone
) -> None:
    prompt_id = import_(client, artifact_of(backbone)).json()["id"]
    put(client, prompt_id)
    put(client, prompt_id, "b")
    body = assert_problem(client.delete(f"/v1/prompts/{prompt_id}"), 409, "prompt_in_use")
    assert "colors@b, colors@live" in body["detail"]
    assert any(prompt_id in path for path in files_below(data_dir / "artifacts"))
    for alias in ("live", "b"):
        assert client.delete(f"/v1/aliases/{alias}").status_code == 204
    assert client.delete(f"/v1/prompts/{prompt_id}").status_code == 204


def test_a_prompt_that_a_job_uses_is_not_deleted(client: TestClient, services: Services) -> None:
    prompt_id = publish(services)
    body = {"dataset_id": ready_dataset(client)["id"], "config": {"shots": 1}}
    job_id = client.post("/v1/jobs", json=body).json()["id"]
    with writing(services.database) as connection:
        connection.execute(sa.update(jobs).values(prompt_id=prompt_id))
    body = assert_problem(client.delete(f"/v1/prompts/{prompt_id}"), 409, "prompt_in_use")
    assert job_id in body["detail"]
    client.post(f"/v1/jobs/{job_id}/cancel")
    assert client.delete(f"/v1/prompts/{prompt_id}").status_code == 204


def test_pins(client: TestClient, services: Services) -> None:
    first = publish(services)
    publish(services)
    put(client, first)
    assert client.get("/v1/prompts/pets").json()["pinned"] is False
    for _ in range(2):
        answer = client.put("/v1/prompts/pets@live/pin")
        assert (answer.status_code, answer.json()["pinned"]) == (200, True)
    assert client.get("/v1/prompts/pets:1").json() == answer.json()
    assert [prompt.id for prompt in services.prompts.pinned()] == [first]
    for _ in range(2):
        answer = client.delete("/v1/prompts/pets:1/pin")
        assert (answer.status_code, answer.json()["pinned"]) == (200, False)
    for method in ("PUT", "DELETE"):
        assert_problem(client.request(method, "/v1/prompts/pets:9/pin"), 404, "not_found")


def test_an_imported_prompt_tells_its_lineage(client: TestClient, backbone: Backbone) -> None:
    config = {"seed": 7, "shots": 16, "prompt": {"context": "a photo of a"}}
    claims = {"config": config, "dataset": {"name": "цветы", "shots": 16}, "engine_version": "0.1"}
    prompt = import_(client, artifact_of(backbone, **claims)).json()
    assert prompt["lineage"] == {
        "source": "import",
        "job_id": None,
        "dataset_id": None,
        "dataset_name": "цветы",
        "dataset_sha256": None,
        "backbone": prompt["backbone"],
        "config": config,
        "seed": 7,
        "engine_version": "0.1",
        "from_checkpoint": None,
        "parent": None,
    }
    assert client.get("/v1/prompts").json()["data"] == [prompt]


NESTED: Any = {"a": 1}
for _ in range(20):
    NESTED = {"a": NESTED}


@pytest.mark.parametrize(
    "claims",
    [
        {"config": NESTED, "dataset": 5, "engine_version": {"a": 1}},
        {"config": {"a": "x" * 20_000}, "dataset": {"name": "x" * 201}, "engine_version": "1" * 65},
        {"config": {"a": "\u0000"}, "dataset": {"name": "a\nb"}, "engine_version": "\u001b[31m"},
        {"config": {"\ud800": 1}, "dataset": {"name": "\udfff"}, "engine_version": ""},
        {"config": {"seed": 10**400}, "dataset": {"name": ""}, "engine_version": 1.0},
        {"config": [1], "dataset": [["name", "x"]], "engine_version": None},
        {"config": {"seed": True, "a": 10**19}, "dataset": {"name": True}},
    ],
)
def test_claims_of_a_file_that_are_of_no_use_are_not_repeated(
    client: TestClient, backbone: Backbone, claims: dict[str, Any]
) -> None:
    response = import_(client, artifact_of(backbone, **claims))
    assert response.status_code == 201, response.text
    lineage = response.json()["lineage"]
    assert lineage["engine_version"] in (None, "")
    unknown = ("config", "seed", "dataset_name")
    assert {name: lineage[name] for name in unknown} == dict.fromkeys(unknown)


def test_a_file_whose_metadata_is_nested_without_end_is_refused(
    client: TestClient, backbone: Backbone
) -> None:
    from sharpzo_engine.checksummed import _digest
    from sharpzo_engine.prompts.artifact import KIND

    good = artifact_of(backbone)
    for text in ("[" * 100_000 + "]" * 100_000, "5", '"text"', "[]", "{", "9" * 5000):
        assert_problem(
            import_(client, resealed(good, text, KIND, _digest)), 422, "artifact_corrupt"
        )


def resealed(data: bytes, text: str, kind: str, digest: Any) -> bytes:
    """The file with other metadata under a seal that fits."""
    import safetensors.numpy

    arrays = safetensors.numpy.load(data)
    header = {"kind": kind, "metadata": text, "sha256": digest(arrays, text, kind)}
    return safetensors.numpy.save(arrays, {"sharpzo": json.dumps(header)})


def test_openapi_tells_of_aliases(shared_client: TestClient) -> None:
    document = shared_client.get("/openapi.json").json()
    paths = document["paths"]
    assert set(paths["/v1/aliases/{alias}"]) == {"get", "put", "delete"}
    rollback = paths["/v1/aliases/{alias}/rollback"]["post"]
    assert rollback["requestBody"]["required"] is False
    assert {"404", "409", "415", "422"} <= rollback["responses"].keys()
    assert {"404", "409"} <= paths["/v1/aliases/{alias}"]["put"]["responses"].keys()
    assert "gate" in document["components"]["schemas"]["AliasSet"]["properties"]
    assert not re.search(r'"\$ref": "#/\$defs', json.dumps(document))
