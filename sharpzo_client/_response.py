"""Readers of answers, from JSON to models, and from problem documents to errors."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from sharpzo_client.errors import APIResponseError, FieldFault, status_error
from sharpzo_client.models import Model, Page

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import httpx

M = TypeVar("M", bound=Model)


def reads(model: type[M]) -> Callable[[httpx.Response], M]:
    """Make a reader of one object."""

    def read(response: httpx.Response) -> M:
        return _validate(model, _json(response), response)

    return read


def reads_page(item: type[M]) -> Callable[[httpx.Response], Page[M]]:
    """Make a reader of `{data, has_more, next}`."""
    return reads(Page[item])  # type: ignore[valid-type] # a model made at run time


def reads_series(item: type[M]) -> Callable[[httpx.Response], tuple[M, ...]]:
    """Make a reader of a list that is not paged, in `data`."""
    page = reads_page(item)
    return lambda response: page(response).data


def reads_object(response: httpx.Response) -> dict[str, Any]:
    answer = _json(response)
    if not isinstance(answer, dict):
        request = response.request
        raise APIResponseError(f"{request.method} {request.url} did not return a JSON object")
    return answer


@dataclass(frozen=True)
class File:
    """The bytes of a file, and their SHA-256 according to the service."""

    content: bytes
    sha256: str | None


def reads_file(response: httpx.Response) -> File:
    return File(response.content, response.headers.get("x-checksum-sha256"))


def reads_nothing(_: httpx.Response) -> None:
    """Ignore the body."""


def raise_for_status(response: httpx.Response) -> None:
    """Raise the error of an unsuccessful answer, whose body must have been read.

    Raises:
        APIStatusError: the status is 300 or more.
    """
    if response.status_code < 300:
        return
    problem = _problem(response)
    raise status_error(response.status_code)(
        response.status_code,
        detail=_text(problem, "detail") or "",
        code=_text(problem, "code"),
        title=_text(problem, "title") or response.reason_phrase,
        errors=_faults(problem),
        request_id=_text(problem, "request_id") or request_id(response),
        retry_after=_retry_after(response.headers.get("retry-after")),
    )


def request_id(response: httpx.Response) -> str | None:
    """Return the id under which the service logged the request."""
    value: str | None = response.headers.get("x-request-id")
    return value


def _json(response: httpx.Response) -> object:
    try:
        return response.json()
    except ValueError:
        raise APIResponseError(
            f"{response.request.method} {response.request.url} did not return JSON"
        ) from None


def _validate(model: type[M], data: object, response: httpx.Response) -> M:
    try:
        return model.read(data, request_id(response))
    except ValidationError as error:
        places = ", ".join(".".join(map(str, fault["loc"])) for fault in error.errors())
        raise APIResponseError(
            f"{response.request.method} {response.request.url}: unexpected answer at {places}"
        ) from error


def _problem(response: httpx.Response) -> Mapping[str, Any]:
    try:
        body = response.json()
    except ValueError:  # perhaps a proxy's page: use the status alone
        return {}
    return body if isinstance(body, dict) else {}


def _text(problem: Mapping[str, Any], key: str) -> str | None:
    value = problem.get(key)
    return value if isinstance(value, str) else None


def _faults(problem: Mapping[str, Any]) -> list[FieldFault]:
    faults = problem.get("errors")
    if not isinstance(faults, list):
        return []
    return [
        FieldFault(
            str(fault.get("pointer", "")), str(fault.get("message", fault.get("detail", "")))
        )
        for fault in faults
        if isinstance(fault, dict)
    ]


def _retry_after(value: str | None) -> float | None:
    """Seconds from a Retry-After header, which is a number or an HTTP date."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        return _seconds_until(value)


def _seconds_until(date: str) -> float | None:
    try:
        moment = parsedate_to_datetime(date)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
