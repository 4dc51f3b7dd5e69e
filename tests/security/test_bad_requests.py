"""Requests that no honest client sends: each has its status and code, and changes nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from sharpzo_core.settings import Settings
from tests.service.conftest import (
    assert_problem,
    files_below,
    open_client,
    png,
    ready_dataset,
    zip_of,
)

JOBS = "/v1/jobs"
JSON = {"content-type": "application/json"}
SMALL = {"shots": 2, "total_steps": 20}
CPU_SECONDS = 2.0  # that a bad request may cost


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bad-requests")


@pytest.fixture(scope="module")
def client(data_dir: Path) -> Iterator[TestClient]:
    with open_client(Settings(data_dir=data_dir, device="cpu")) as client:
        client.get("/v1/backbones")  # loads open_clip, which costs seconds once
        yield client


@pytest.fixture(scope="module")
def dataset_id(client: TestClient) -> str:
    return str(ready_dataset(client)["id"])


@pytest.fixture(autouse=True)
def nothing_changes(client: TestClient, dataset_id: str, data_dir: Path) -> Iterator[None]:
    """Every request costs little, stores nothing and leaves no file."""
    before, started = _everything(client, data_dir), time.process_time()
    yield
    assert time.process_time() - started < CPU_SECONDS
    assert _everything(client, data_dir) == before


def _everything(client: TestClient, data_dir: Path) -> object:
    lists = [client.get(f"/v1/{name}").json()["data"] for name in ("datasets", "jobs", "prompts")]
    return lists, files_below(data_dir / "uploads"), files_below(data_dir / "artifacts")


def post_job(client: TestClient, dataset_id: str, **changes: object) -> Any:
    return client.post(JOBS, json={"dataset_id": dataset_id, "config": SMALL, **changes})


def post_config(client: TestClient, dataset_id: str, text: str) -> Any:
    """A job whose configuration is JSON that no encoder would write."""
    body = f'{{"dataset_id": "{dataset_id}", "config": {{{text}}}}}'
    return client.post(JOBS, content=body.encode(), headers=JSON)


@pytest.mark.bad_input("H1")
@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_numbers_that_are_none(client: TestClient, dataset_id: str, number: str) -> None:
    response = post_config(client, dataset_id, f'"zo": {{"learning_rate": {number}}}')
    body = assert_problem(response, 422, "validation_error")
    assert body["errors"][0]["pointer"] == "/config/zo/learning_rate"


@pytest.mark.bad_input("H2")
@pytest.mark.parametrize(
    ("config", "pointer"),
    [
        ({"zo": {"learning_rate": 0}}, "/config/zo/learning_rate"),
        ({"zo": {"learning_rate": -1}}, "/config/zo/learning_rate"),
        ({"cma": {"population_size": 0}}, "/config/cma/population_size"),
        ({"cma": {"population_size": 10**6}}, "/config/cma/population_size"),
        ({"total_steps": 10**9}, "/config/total_steps"),
        ({"total_steps": 0}, "/config/total_steps"),
        ({"prompt": {"context": "a " * 10**5}}, "/config/prompt/context"),
        ({"prompt": {"intrinsic_dim": 10**9}}, "/config/prompt/intrinsic_dim"),
        ({"max_seconds": -1}, "/config/max_seconds"),
    ],
    ids=str,
)
def test_what_would_never_end_or_begin(
    client: TestClient, dataset_id: str, config: dict[str, Any], pointer: str
) -> None:
    body = assert_problem(post_job(client, dataset_id, config=config), 422, "validation_error")
    assert pointer in [fault["pointer"] for fault in body["errors"]]


@pytest.mark.bad_input("H3")
@pytest.mark.parametrize("seed", ["-1", str(2**31), str(2**63), str(2**64), "9" * 5000])
def test_seeds_out_of_range(client: TestClient, dataset_id: str, seed: str) -> None:
    body = assert_problem(
        post_config(client, dataset_id, f'"seed": {seed}'), 422, "validation_error"
    )
    assert body["errors"][0]["pointer"] == "/config/seed"


@pytest.mark.bad_input("H4")
@pytest.mark.parametrize("value", ['"5"', "true", "1e3", "5.0", "null", "[]", "{}"])
def test_what_is_no_integer(client: TestClient, dataset_id: str, value: str) -> None:
    body = assert_problem(
        post_config(client, dataset_id, f'"shots": {value}'), 422, "validation_error"
    )
    assert body["errors"][0]["pointer"] == "/config/shots"


@pytest.mark.bad_input("H5")
@pytest.mark.parametrize(
    "field",
    ["tenant", "tenant_id", "status", "state", "is_admin", "id", "attempt", "prompt_id", "x"],
)
def test_fields_that_are_not_the_callers(client: TestClient, dataset_id: str, field: str) -> None:
    body = assert_problem(post_job(client, dataset_id, **{field: "other"}), 422, "validation_error")
    assert body["errors"][0]["pointer"] == f"/{field}"


@pytest.mark.bad_input("H6")
@pytest.mark.parametrize(
    "backbone",
    [
        "local-dir:/etc",
        "hf-hub:evil/x",
        "../../m.pt",
        "/etc/passwd",
        "https://example.org/m.pt",
        "ViT-B-16:/tmp/evil.pt",
        "ViT-B-16:../../evil.pt",
        "tiny:local-dir:/etc",
        "ViT-B-16:no-such-tag",
        "no-such-model:openai",
        "",
        "x" * 10_000,
    ],
)
def test_backbones_that_the_operator_does_not_offer(
    client: TestClient, dataset_id: str, backbone: str
) -> None:
    body = assert_problem(post_job(client, dataset_id, backbone=backbone), 422, "validation_error")
    assert [fault["pointer"] for fault in body["errors"]] == ["/backbone"]
    assert "evil" not in json.dumps(body)


@pytest.mark.bad_input("H7")
@pytest.mark.parametrize(
    "names",
    [
        {"cat": "", "dog": "dog"},
        {"cat": "same", "dog": "same"},
        {"cat": "c\u0000t", "dog": "dog"},
        {"cat": "c\nt", "dog": "dog"},
        {"cat": "x" * 1_000_000, "dog": "dog"},
        {"cat": ["cat"], "dog": "dog"},
    ],
    ids=["empty", "equal", "NUL", "line break", "megabyte", "no text"],
)
def test_class_names_that_cannot_be(client: TestClient, names: dict[str, Any]) -> None:
    dataset = rejected(client, {"classnames.json": json.dumps(names).encode()})
    assert dataset["error"]["code"] == "dataset_layout_invalid"


@pytest.mark.bad_input("H7")
def test_more_classes_than_anybody_has(client: TestClient) -> None:
    rows = [[f"images/{label % 2}.png", label, f"class {label}"] for label in range(10_001)]
    split = {"train": rows, "val": [], "test": []}
    members = {"images/0.png": png(), "images/1.png": png((1, 2, 3))}
    dataset = rejected(client, {**members, "split_zhou_X.json": json.dumps(split).encode()})
    assert dataset["error"]["code"] == "dataset_layout_invalid"


def rejected(client: TestClient, members: dict[str, bytes]) -> dict[str, Any]:
    """Upload, wait for the failure, and delete."""
    archive = zip_of(
        {"cat/1.png": png(), "dog/1.png": png((1, 2, 3)), **members}
        if "split_zhou_X.json" not in members
        else members
    )
    response = client.post("/v1/datasets", data={"name": "x"}, files={"file": ("a", archive)})
    assert response.status_code == 202, response.text
    url = f"/v1/datasets/{response.json()['id']}"
    dataset: dict[str, Any] = client.get(url).json()
    while dataset["status"] == "processing":
        time.sleep(0.01)
        dataset = client.get(url).json()
    assert dataset["status"] == "failed"
    assert client.delete(url).status_code == 204
    while files_below(client.app.state.services.settings.data_dir / "uploads"):  # type: ignore[attr-defined]
        time.sleep(0.01)
    return dataset


@pytest.mark.bad_input("H7")
@pytest.mark.parametrize("context", ["", " ", "a\u0000b", "a\nb"])
def test_contexts_that_say_nothing(client: TestClient, dataset_id: str, context: str) -> None:
    response = post_job(client, dataset_id, config={"prompt": {"context": context}})
    assert_problem(response, 422, "validation_error")


@pytest.mark.bad_input("H8")
@pytest.mark.parametrize(
    ("config", "pointer"),
    [
        ({**SMALL, "cma": {"population_size": 64}, "max_forward_passes": 10}, "/config"),
        ({**SMALL, "zo": {"optimizer": "gauss-newton", "mask": "gradient"}}, "/config"),
        ({"shots": 1000}, "/config/shots"),
    ],
    ids=str,
)
def test_fields_that_contradict_each_other(
    client: TestClient, dataset_id: str, config: dict[str, Any], pointer: str
) -> None:
    body = assert_problem(post_job(client, dataset_id, config=config), 422, "validation_error")
    assert body["errors"][0]["pointer"] == pointer


IDS = ["' OR 1=1--", "%00", "%ff", "..%2f..%2f", "x" * 10_000, "job_", "JOB_0", "%0d%0aX: y", "é"]


@pytest.mark.bad_input("D2")
@pytest.mark.parametrize("bad", IDS)
@pytest.mark.parametrize("kind", ["datasets", "jobs", "prompts", "aliases"])
def test_ids_that_are_none(client: TestClient, kind: str, bad: str) -> None:
    assert_problem(client.get(f"/v1/{kind}/{bad}"), 404, "not_found")
    assert_problem(client.delete(f"/v1/{kind}/{bad}"), 404, "not_found")


@pytest.mark.bad_input("D3")
@pytest.mark.parametrize(
    "query",
    [
        "limit=-1",
        "limit=0",
        f"limit={10**30}",
        "limit=1.5",
        "limit=",
        "limit=1&limit=2",
        "after=nonesuch",
        "after=job_zzzz",
        "after=" + "x" * 5000,
        "after=%00",
    ],
)
def test_pages_that_are_none(client: TestClient, query: str) -> None:
    for kind in ("datasets", "jobs", "prompts"):
        assert_problem(client.get(f"/v1/{kind}?{query}"), 422, "validation_error")


@pytest.mark.bad_input("P4")
@pytest.mark.parametrize(
    ("method", "url"), [("POST", JOBS), ("POST", "/v1/datasets"), ("PUT", "/v1/aliases/x")]
)
def test_more_bytes_than_allowed(client: TestClient, method: str, url: str) -> None:
    chunks = (b" " * (1 << 16) for _ in range(100))
    response = client.request(method, url, content=chunks, headers=JSON)
    assert_problem(response, 413, "payload_too_large")
    if url != "/v1/datasets":  # where archives may be that long, only what comes counts
        told = {**JSON, "content-length": str(10**10)}
        response = client.request(method, url, content=b"{}", headers=told)
        assert_problem(response, 413, "payload_too_large")


def part(name: str, data: bytes = b"x", more: str = "") -> bytes:
    head = f'--b\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'
    return head.encode() + data + b"\r\n"


FORM = {"content-type": "multipart/form-data; boundary=b"}
FILE = part("file", b"PK", '; filename="a"')
BROKEN_FORMS = {
    "no boundary": ("multipart/form-data", FILE + b"--b--\r\n"),
    "empty boundary": ("multipart/form-data; boundary=", FILE + b"--b--\r\n"),
    "long boundary": ("multipart/form-data; boundary=" + "b" * 300, FILE),
    "nine headers": (FORM["content-type"], b"--b\r\n" + b"X: y\r\n" * 9 + FILE[5:] + b"--b--\r\n"),
    "long header": (FORM["content-type"], b"--b\r\nX: " + b"y" * 10_000 + b"\r\n\r\n\r\n--b--\r\n"),
    "cut in the file": (FORM["content-type"], FILE),
    "cut in a header": (FORM["content-type"], FILE[:20]),
    "no part": (FORM["content-type"], b"x"),
    "empty": (FORM["content-type"], b""),
}


@pytest.mark.bad_input("P6")
@pytest.mark.parametrize("kind", BROKEN_FORMS)
@pytest.mark.parametrize("url", ["/v1/datasets", "/v1/prompts", "/v1/classify"])
def test_broken_forms(client: TestClient, url: str, kind: str) -> None:
    content_type, body = BROKEN_FORMS[kind]
    body = body.replace(b'"file"', b'"images"') if url == "/v1/classify" else body
    response = client.post(url, content=body, headers={"content-type": content_type})
    assert_problem(response, 400, "malformed_multipart")


@pytest.mark.bad_input("P6")
def test_a_thousand_parts(client: TestClient) -> None:
    body = b"".join(part(f"p{i}") for i in range(1001)) + b"--b--\r\n"
    response = client.post("/v1/datasets", content=body, headers=FORM)
    assert_problem(response, 422, "validation_error")


@pytest.mark.bad_input("P7")
def test_a_text_field_of_two_megabytes(client: TestClient) -> None:
    body = part("name", b"x" * (2 << 20)) + FILE + b"--b--\r\n"
    assert_problem(
        client.post("/v1/datasets", content=body, headers=FORM), 413, "payload_too_large"
    )


@pytest.mark.bad_input("P7")
@pytest.mark.parametrize("url", ["/v1/datasets", "/v1/prompts", "/v1/classify", JOBS])
def test_other_kinds_of_forms(client: TestClient, url: str) -> None:
    response = client.post(url, data={"name": "x", "file": "y"})
    assert_problem(response, 415, "unsupported_media_type")


@pytest.mark.bad_input("P9")
def test_a_thousand_ranges(client: TestClient) -> None:
    """Ranges are not offered, so they cost nothing."""
    ranges = ",".join(f"{i}-{i + 1}" for i in range(0, 2000, 2))
    response = client.get("/openapi.json", headers={"range": f"bytes={ranges}"})
    assert response.status_code == 200
    assert len(response.content) > 10_000


@pytest.mark.bad_input("P12")
@pytest.mark.parametrize(
    ("method", "url", "allowed"),
    [
        ("TRACE", "/v1/jobs", {"GET", "POST"}),
        ("PUT", "/v1/jobs", {"GET", "POST"}),
        ("PATCH", "/v1/datasets", {"GET", "POST"}),
        ("DELETE", "/v1/prompts", {"GET", "POST"}),
        ("POST", "/livez", {"GET"}),
        ("PROPFIND", "/v1/jobs", {"GET", "POST"}),
    ],
)
def test_methods_that_are_not_there(
    client: TestClient, method: str, url: str, allowed: set[str]
) -> None:
    response = client.request(method, url)
    assert_problem(response, 405, "method_not_allowed")
    assert {name.strip() for name in response.headers["allow"].split(",")} <= allowed | {"HEAD"}


@pytest.mark.bad_input("J1")
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"dataset_id": "a", "dataset_id": "b"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"dataset_id": "\xff"}',
        '{"dataset_id": "x"}'.encode("utf-16"),
        '{"dataset_id": "x"}'.encode("utf-32-le"),
        b'\xef\xbb\xbf{"dataset_id": "x"}',
        b"{'dataset_id': 'x'}",
        b'{"dataset_id": "x"} x',
        b'{"dataset_id": "x",}',
    ],
    ids=lambda body: repr(body[:20]),
)
@pytest.mark.parametrize("url", [JOBS, "/v1/datasets", "/v1/classify"])
def test_what_is_no_json(client: TestClient, url: str, body: bytes) -> None:
    assert_problem(client.post(url, content=body, headers=JSON), 400, "malformed_json")


@pytest.mark.bad_input("J2")
@pytest.mark.parametrize("text", ["\\ud800", "\\u0000", "a\\r\\nb", "\\u001b[31m", "\\u0085"])
@pytest.mark.parametrize("field", ["dataset_id", "name", "backbone"])
def test_texts_that_no_field_can_hold(
    client: TestClient, dataset_id: str, field: str, text: str
) -> None:
    body = json.dumps({"dataset_id": dataset_id} | {field: "@"}).replace('"@"', f'"{text}"')
    response = client.post(JOBS, content=body.encode(), headers=JSON)
    faults = assert_problem(response, 422, "validation_error")["errors"]
    assert f"/{field}" in [fault["pointer"] for fault in faults]


@pytest.mark.bad_input("J3")
@pytest.mark.parametrize(
    "url", ["http://169.254.169.254/", "file:///etc/passwd", "http://0x7f000001/", "data:,x"]
)
def test_addresses_are_never_fetched(client: TestClient, url: str) -> None:
    """An image is its bytes; nothing takes an address of one."""
    for body in ({"image_url": url}, {"images": [{"url": url}]}, {"prompts": ["x"], "url": url}):
        assert_problem(client.post("/v1/classify", json=body), 422, "validation_error")
    dataset = client.post("/v1/datasets", json={"name": "x", "uri": url})
    assert_problem(dataset, 403, "path_not_allowed")
    assert_problem(
        client.post("/v1/datasets", json={"name": "x", "image_url": url}), 422, "validation_error"
    )
