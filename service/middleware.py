"""The outermost middleware: request ids, metrics, and a problem document for every error."""

import asyncio
import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.auth.authorization import METHODS
from service.http.body_limits import Body, BodyMemory
from service.http.problems import (
    MEDIA_TYPE,
    REQUEST_ID_HEADER,
    REQUEST_ID_KEY,
    problem,
    problem_code,
)
from service.metrics import Metrics
from sharpzo_core.logging import log_context
from sharpzo_core.settings import MIB, Settings

logger = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_UNMATCHED = "unmatched"  # label of requests without a route
_FIRST_ERROR = 400
_FIRST_FAILURE = 500
_EXPECTED_503 = frozenset({"/readyz"})  # routes that return 503 by design
_CLIENT_CLOSED = 499  # for metrics only: the client has disconnected
_SHUTTING_DOWN = "the service is shutting down and did not finish the request (send it again)"
_TWO_LENGTHS = "the request has both Content-Length and Transfer-Encoding (send one of them)"
_RETRY_HEADERS = {"Retry-After": "1", "Connection": "close"}


class RequestLayer:
    """Gives every request an id, measures it, and responds where nothing else did.

    It rejects a body that stops for too long or does not fit into memory.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, settings: Settings) -> None:
        self._app = app
        self._metrics = metrics
        self._idle_seconds = settings.upload_idle_seconds
        self._memory = BodyMemory(settings.request_memory_mb * MIB)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope[REQUEST_ID_KEY] = _request_id(scope)
        with log_context(request_id=scope[REQUEST_ID_KEY]):
            await self._handle(scope, receive, send)

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = _ProblemSend(scope, send)
        body = Body(scope, receive, self._memory, self._idle_seconds)
        started = time.perf_counter()
        try:
            if _has_two_lengths(scope):
                await problem(scope, 400, detail=_TWO_LENGTHS, headers={"Connection": "close"})(
                    scope, receive, response.send
                )
            else:
                await self._app(scope, body.receive, response.send)
        except ClientDisconnect:
            response.status = _CLIENT_CLOSED
        except asyncio.CancelledError:  # the grace period of the shutdown is over
            if response.started:
                raise
            await problem(
                scope, 503, code="shutting_down", detail=_SHUTTING_DOWN, headers=_RETRY_HEADERS
            )(scope, receive, response.send)
        except Exception:
            # An error that reaches this line is a bug; the client still gets a problem document.
            logger.exception(
                "unexpected error (request %s)",
                scope[REQUEST_ID_KEY],
                extra={"action": "unexpected_error"},
            )
            if response.started:
                raise
            await problem(scope, 500)(scope, receive, response.send)
        finally:
            body.close()
            self._record(scope, response.status, time.perf_counter() - started)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        """Count the request, and log it if it failed on our side."""
        method, route = _method(scope), _template(scope)
        self._metrics.observe_request(method, route, status, seconds, problem_code(scope))
        if logger.isEnabledFor(logging.DEBUG):
            extra = {"action": "request_answered", "status": status, "seconds": round(seconds, 6)}
            logger.debug("%s %s: %d", method, route, status, extra=extra)
        if status >= _FIRST_FAILURE and route not in _EXPECTED_503:
            extra = {"action": "request_failed", "status": status}
            logger.warning("%s %s: %d", method, route, status, extra=extra)


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
    return given if _REQUEST_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"


def _has_two_lengths(scope: Scope) -> bool:
    """Whether a proxy may have framed this request differently (request smuggling)."""
    headers = Headers(scope=scope)
    return "content-length" in headers and "transfer-encoding" in headers


def _method(scope: Scope) -> str:
    """The method if it is known, to bound the labels."""
    return scope["method"] if scope["method"] in METHODS else _UNMATCHED


def _template(scope: Scope) -> str:
    """The route's path template, to bound the labels."""
    return getattr(scope.get("route"), "path", _UNMATCHED)


class _ProblemSend:
    """Passes a response on, and replaces error bodies that are not problem documents.

    Some errors of the framework, such as a body over the limit, are plain text and bypass the
    exception handlers.
    """

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._replaced = False
        self.started = False
        self.status = 500

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._start(message)
        elif not self._replaced:
            await self._send(message)

    async def _start(self, message: Message) -> None:
        self.started = True
        self.status = message["status"]
        headers = MutableHeaders(raw=message.setdefault("headers", []))
        if self.status >= _FIRST_ERROR and headers.get("content-type") != MEDIA_TYPE:
            self._replaced = True
            kept = {name: headers[name] for name in ("allow", "retry-after") if name in headers}
            await problem(self._scope, self.status, headers=kept)(
                self._scope, _no_receive, self._send
            )
            return
        headers[REQUEST_ID_HEADER] = self._scope[REQUEST_ID_KEY]
        headers.setdefault("X-Content-Type-Options", "nosniff")
        await self._send(message)


async def _no_receive() -> Message:
    return {"type": "http.disconnect"}
