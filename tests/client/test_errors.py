from __future__ import annotations

import inspect
from typing import Any

import httpx
import pytest

from sharpzo_client import errors

PROBLEM = {
    "type": "about:blank",
    "title": "Unprocessable",
    "status": 422,
    "detail": "the request is not valid",
    "code": "validation_error",
    "request_id": "req_1",
    "errors": [{"pointer": "/config/shots", "message": "must be at least 1"}],
}


@pytest.mark.parametrize(("status", "kind"), errors.STATUS_ERRORS.items())
def test_each_status_has_its_class(harness: Any, status: int, kind: type[Exception]) -> None:
    client = harness.client(lambda _: httpx.Response(status, json=PROBLEM), max_retries=0)
    with pytest.raises(kind) as caught:
        harness.run(lambda: client.jobs.get("job_1"))
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("status", "kind"),
    [(418, errors.APIStatusError), (500, errors.ServerError), (302, errors.APIStatusError)],
)
def test_other_statuses_have_their_family(harness: Any, status: int, kind: type[Exception]) -> None:
    client = harness.client(lambda _: httpx.Response(status), max_retries=0)
    with pytest.raises(kind):
        harness.run(lambda: client.jobs.get("job_1"))


def test_an_error_carries_the_whole_problem(harness: Any) -> None:
    client = harness.client(
        lambda _: httpx.Response(422, json=PROBLEM, headers={"retry-after": "7"}), max_retries=0
    )
    with pytest.raises(errors.UnprocessableEntityError) as caught:
        harness.run(lambda: client.jobs.create("ds_1", config={"shots": 0}))
    error = caught.value
    assert (error.status, error.code, error.request_id) == (422, "validation_error", "req_1")
    assert error.errors == (errors.FieldFault("/config/shots", "must be at least 1"),)
    assert error.retry_after == 7
    assert "/config/shots: must be at least 1" in str(error)


@pytest.mark.parametrize("body", [b"<html>bad gateway</html>", b"[1]", b'{"errors": 3}', b""])
def test_a_foreign_error_page_is_still_a_status_error(harness: Any, body: bytes) -> None:
    answer = httpx.Response(502, content=body, headers={"x-request-id": "req_2"})
    client = harness.client(lambda _: answer, max_retries=0)
    with pytest.raises(errors.ServerError) as caught:
        harness.run(lambda: client.jobs.get("job_1"))
    assert caught.value.request_id == "req_2"


@pytest.mark.parametrize(
    "body", [b"<html>hello</html>", b"{}", b'{"id": 3, "status": []}', b"null"]
)
def test_an_unexpected_answer_is_named(harness: Any, body: bytes) -> None:
    client = harness.client(lambda _: httpx.Response(200, content=body))
    with pytest.raises(errors.APIResponseError):
        harness.run(lambda: client.jobs.get("job_1"))


def _foreign_errors() -> list[type[Exception]]:
    """Every error class that httpx exports, beside those that only its own caller can cause."""
    kinds = [item for item in vars(httpx).values() if inspect.isclass(item)]
    caused_by_caller = (httpx.CookieConflict,)
    return [
        kind
        for kind in kinds
        if issubclass(kind, Exception)
        and not issubclass(kind, Warning)
        and kind not in caused_by_caller
    ]


def _make(kind: type[Exception]) -> Exception:
    required = [
        parameter
        for parameter in inspect.signature(kind).parameters.values()
        if parameter.default is parameter.empty
    ]
    return kind(
        *["broken" for parameter in required if parameter.kind != parameter.KEYWORD_ONLY],
        **{
            parameter.name: httpx.Response(500) if parameter.name == "response" else None
            for parameter in required
            if parameter.kind == parameter.KEYWORD_ONLY
        },
    )


@pytest.mark.parametrize("kind", _foreign_errors())
def test_no_foreign_error_escapes(harness: Any, kind: type[Exception]) -> None:
    def handler(_: httpx.Request) -> httpx.Response:
        raise _make(kind) if inspect.signature(kind).parameters else kind()

    client = harness.client(handler, max_retries=0)
    with pytest.raises(errors.SharpzoError):
        harness.run(lambda: client.jobs.get("job_1"))
    with pytest.raises(errors.SharpzoError):
        harness.run(client.jobs.list)


def test_timeouts_are_connection_errors(harness: Any) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("slow", request=request)

    client = harness.client(handler, max_retries=0)
    with pytest.raises(errors.APITimeoutError, match="http://service: slow") as caught:
        harness.run(lambda: client.jobs.get("job_1"))
    assert isinstance(caught.value, errors.APIConnectionError)


@pytest.mark.parametrize("address", ["localhost:8000", "ftp://somewhere", "http://local:port"])
def test_an_unusable_address_is_named(address: str) -> None:
    from sharpzo_client import Client

    with pytest.raises(errors.InputError, match="address"):
        Client(address).health.livez()
