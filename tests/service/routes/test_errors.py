from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.services import Services
from tests.service.conftest import assert_problem

JOBS = "/v1/jobs"


@pytest.fixture
def client(shared_client: TestClient) -> TestClient:
    return shared_client


def post_raw(client: TestClient, body: bytes, content_type: str = "application/json") -> Any:
    return client.post(JOBS, content=body, headers={"content-type": content_type})


def test_unknown_routes_and_methods(client: TestClient) -> None:
    assert_problem(client.get("/v1/nonesuch"), 404, "not_found")
    assert_problem(client.get("/nonesuch"), 404, "not_found")
    response = client.put("/v1/jobs")
    assert_problem(response, 405, "method_not_allowed")
    assert set(response.headers["allow"].replace(" ", "").split(",")) <= {"GET", "POST"}
    assert_problem(client.request("TRACE", "/v1/jobs/x"), 405, "method_not_allowed")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"  ",
        b"{",
        b'{"a": 1, "a": 2}',
        b'{"config": {"seed": 1, "seed": 2}}',
        b'{"a": "\xff"}',
        '{"a": 1}'.encode("utf-16"),
        b"\xef\xbb\xbf{}",
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100 + b"1" + b"}" * 100,
        b"[" + b"1," * 20_000 + b"1]",
        b"[" + b"[[[]]]," * 7_000 + b"1]",
    ],
    ids=[
        "empty",
        "blank",
        "open",
        "duplicate",
        "deep duplicate",
        "no UTF-8",
        "UTF-16",
        "BOM",
        "100000 deep",
        "100 deep",
        "20001 numbers",
        "28000 lists",
    ],
)
def test_malformed_json(client: TestClient, body: bytes) -> None:
    assert_problem(post_raw(client, body), 400, "malformed_json")


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        (b'{"dataset_id": "x", "config": {"seed": NaN}}', "/config/seed"),
        (b'{"dataset_id": "x", "config": {"seed": Infinity}}', "/config/seed"),
        (b'{"dataset_id": "x", "config": {"a/b": [1, -Infinity]}}', "/config/a~1b/1"),
        (b'{"dataset_id": "x", "config": {"cma": {"sigma": 1e999}}}', "/config/cma/sigma"),
        (b'{"dataset_id": "x", "config": {"seed": 9223372036854775808}}', "/config/seed"),
        (b'{"dataset_id": "x", "config": {"seed": ' + b"9" * 5000 + b"}}", "/config/seed"),
        (b'{"dataset_id": "\\ud800"}', "/dataset_id"),
        (b'{"dataset_id": "a\\u0000b"}', "/dataset_id"),
        (b'{"dataset_id": "a\\r\\nb"}', "/dataset_id"),
        (b'{"dataset_id": "x", "metadata": {"\\ud800": "1"}}', "/metadata"),
        (b'{"dataset_id": 5}', "/dataset_id"),
        (b'{"dataset_id": null}', "/dataset_id"),
        (b"[]", ""),
        (b"{}", "/dataset_id"),
    ],
)
def test_values_that_no_field_can_hold(client: TestClient, body: bytes, pointer: str) -> None:
    problem = assert_problem(post_raw(client, body), 422, "validation_error")
    assert problem["errors"][0]["pointer"] == pointer


def test_no_more_faults_are_told_than_anybody_reads(client: TestClient) -> None:
    body = json.dumps({f"unknown {i}": 1 for i in range(2000)}).encode()
    for url in (JOBS, "/v1/classify"):
        response = client.post(url, content=body, headers={"content-type": "application/json"})
        assert len(assert_problem(response, 422, "validation_error")["errors"]) == 50


def test_the_input_is_never_repeated(client: TestClient) -> None:
    body = json.dumps({"dataset_id": "SECRET\u0001", "nonesuch": "SECRET", "name": "SECRET !"})
    response = post_raw(client, body.encode())
    assert_problem(response, 422, "validation_error")
    assert "SECRET" not in response.text
    assert "SECRET" not in client.get("/v1/prompts/SECRET").text


@pytest.mark.parametrize("content_type", ["text/plain", "application/xml", "", "garbage"])
def test_other_content_types(client: TestClient, content_type: str) -> None:
    response = post_raw(client, b'{"dataset_id": "x"}', content_type)
    assert_problem(response, 415, "unsupported_media_type")


def test_bodies_over_the_limit(client: TestClient) -> None:
    big = b'{"dataset_id": "' + b"x" * (2 << 20) + b'"}'
    assert_problem(post_raw(client, big), 413, "payload_too_large")
    chunks = (big[i : i + 65536] for i in range(0, len(big), 65536))
    response = client.post(JOBS, content=chunks, headers={"content-type": "application/json"})
    assert_problem(response, 413, "payload_too_large")
    headers = {"content-type": "application/json", "content-length": "10000000000"}
    assert_problem(client.post(JOBS, content=b"{}", headers=headers), 413, "payload_too_large")


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=101",
        "limit=-1",
        f"limit={10**30}",
        "limit=x",
        "limit=1&limit=2",
        "after=x",
    ],
)
def test_bad_pages(client: TestClient, query: str) -> None:
    for path in ("datasets", "jobs", "prompts"):
        assert_problem(client.get(f"/v1/{path}?{query}"), 422, "validation_error")


def test_a_cursor_of_another_list(client: TestClient) -> None:
    response = client.get("/v1/jobs?after=ds_00000000000000000000000000")
    assert_problem(response, 422, "validation_error")


def test_unexpected_errors_are_logged_and_not_shown(
    client: TestClient,
    services: Services,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the secret of the database")

    monkeypatch.setattr(services.jobs, "list", fail)
    with caplog.at_level(logging.ERROR):
        response = client.get("/v1/jobs", headers={"x-request-id": "abc-1"})
    body = assert_problem(response, 500, "internal_error")
    assert body["request_id"] == "abc-1"
    assert "secret" not in response.text
    assert "abc-1" in caplog.text
    assert "the secret of the database" in caplog.text


def test_request_ids(client: TestClient) -> None:
    assert client.get("/livez").headers["x-request-id"].startswith("req_")
    given = client.get("/livez", headers={"x-request-id": "mine.1"})
    assert given.headers["x-request-id"] == "mine.1"
    for harmful in ("a b", "x" * 200, "<script>"):
        made = client.get("/livez", headers={"x-request-id": harmful})
        assert made.headers["x-request-id"].startswith("req_")


def test_the_document_declares_problems_as_they_are(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    assert "Problem" in schemas
    assert "HTTPValidationError" not in schemas
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            failures = {k: v for k, v in operation["responses"].items() if k >= "400"}
            assert "500" in failures, (method, path)
            for failure in failures.values():
                assert list(failure["content"]) == ["application/problem+json"], (method, path)
            if path.startswith("/v1"):
                assert "422" in failures
            if "{" in path:
                assert "404" in failures
    upload = document["paths"]["/v1/datasets"]["post"]["requestBody"]["content"]
    assert set(upload) == {"multipart/form-data", "application/json"}
    assert client.get("/docs").status_code == 200
