"""`application/problem+json` (RFC 9457): the format of every error response."""

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from starlette.responses import Response
from starlette.types import Scope

MEDIA_TYPE = "application/problem+json"
REQUEST_ID_HEADER = "X-Request-ID"
REQUEST_ID_KEY = "sharpzo.request_id"  # in the ASGI scope
_CODE_KEY = "sharpzo.code"  # in the ASGI scope
_TYPE_PREFIX = "urn:sharpzo:problem:"

#: Status -> code, for errors raised by the framework.
CODES: Mapping[int, str] = {
    400: "malformed_request",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "payload_too_large",
    415: "unsupported_media_type",
    422: "validation_error",
    429: "too_many_requests",
    500: "internal_error",
    503: "unavailable",
}


def problem(
    scope: Scope,
    status: int,
    *,
    code: str | None = None,
    title: str | None = None,
    detail: str | None = None,
    errors: Sequence[tuple[str, str]] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Build a problem response; `errors` lists `(JSON pointer, message)`."""
    request_id = scope.get(REQUEST_ID_KEY, "")
    content = problem_content(
        status, request_id, code=code, title=title, detail=detail, errors=errors
    )
    scope[_CODE_KEY] = content["code"]
    # json.dumps escapes to ASCII, so any message can be encoded.
    return Response(
        json.dumps(content),
        status,
        headers={
            **(headers or {}),
            REQUEST_ID_HEADER: request_id,
            "X-Content-Type-Options": "nosniff",
        },
        media_type=MEDIA_TYPE,
    )


def problem_content(
    status: int,
    request_id: str,
    *,
    code: str | None = None,
    title: str | None = None,
    detail: str | None = None,
    errors: Sequence[tuple[str, str]] = (),
) -> dict[str, Any]:
    code = code or CODES.get(status, f"http_{status}")
    title = title or HTTPStatus(status).phrase
    content: dict[str, Any] = {
        "type": f"{_TYPE_PREFIX}{code}",
        "title": title,
        "status": status,
        "detail": detail or title,
        "code": code,
        "request_id": request_id,
    }
    if errors:
        content["errors"] = [{"pointer": pointer, "message": text} for pointer, text in errors]
    return content


def problem_code(scope: Scope) -> str | None:
    return scope.get(_CODE_KEY)
