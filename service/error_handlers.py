"""Maps errors to problem responses; routes raise and never format."""

from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from service.errors import RateLimited, RequestTimeout, TooManyBytesAtOnce
from service.http.problems import problem
from sharpzo_core.errors import AuthInvalid, AuthRequired, CoreError, ValidationFailed
from sharpzo_core.json_safety import json_pointer
from sharpzo_engine.errors import BackboneMismatch, ConfigError, EncoderAway, EngineError

_INVALID = 422
#: Statuses of the engine's errors that are not about the request's content.
_STATUSES: dict[type[EngineError], int] = {BackboneMismatch: 409, EncoderAway: 503}
_METHOD_NOT_ALLOWED = 405
_MAX_FAULTS = 50  # listed in one response


def install(app: FastAPI) -> None:
    app.add_exception_handler(CoreError, problem_response)
    app.add_exception_handler(EngineError, _engine_error)
    app.add_exception_handler(RequestValidationError, _request_invalid)
    # Starlette's class, not FastAPI's: unknown routes and wrong methods raise that one.
    app.add_exception_handler(HTTPException, _http_error)


def problem_response(request: Request, error: Exception) -> Response:
    assert isinstance(error, CoreError)  # noqa: S101 - how the handler is registered
    return problem(
        request.scope,
        error.status,
        code=error.code,
        title=error.title,
        detail=error.detail,
        errors=error.errors[:_MAX_FAULTS] if isinstance(error, ValidationFailed) else (),
        headers=_headers(error),
    )


def _headers(error: CoreError) -> dict[str, str]:
    headers = {}
    if retry_after := getattr(error, "retry_after", None):
        headers["Retry-After"] = str(retry_after)
    if isinstance(error, AuthRequired | AuthInvalid):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, RateLimited):
        headers |= error.headers
    if isinstance(error, RequestTimeout | TooManyBytesAtOnce):
        headers["Connection"] = "close"  # the rest of the body is not read
    return headers


def _engine_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, EngineError)  # noqa: S101 - how the handler is registered
    if isinstance(error, ConfigError):
        return problem_response(request, ValidationFailed(config_faults(error)))
    status = _STATUSES.get(type(error), _INVALID)
    headers = {"Retry-After": "5"} if isinstance(error, EncoderAway) else {}
    return problem(request.scope, status, code=error.code, detail=str(error), headers=headers)


def config_faults(error: ConfigError) -> list[tuple[str, str]]:
    """The faults of a configuration as pointers into the request's body."""
    return [
        ("/preset" if path == ("preset",) else json_pointer(("config", *path)), message)
        for path, message in error.errors
    ]


def _request_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - how the handler is registered
    faults = [_fault(item) for item in error.errors()]
    return problem_response(request, ValidationFailed(faults))


def _fault(item: dict[str, Any]) -> tuple[str, str]:
    # The first part (body, query, path) is left out; names are unique across them.
    return json_pointer(item["loc"][1:]), item["msg"]


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - how the handler is registered
    headers = dict(error.headers or {})
    if error.status_code == _METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(allowed_methods(request))
    return problem(request.scope, error.status_code, headers=headers)


def allowed_methods(request: Request) -> list[str]:
    """Every method of the path; the framework lists only those of the first matching route."""
    methods: set[str] = set()
    for route in iter_route_contexts(request.app.routes):
        match, _ = route.matches(request.scope)
        if match is not Match.NONE:
            methods |= set(route.methods or ())
    return sorted(methods)
