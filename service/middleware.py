"""The outermost layer of the application: request ids, metrics, and no error without its form."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect

from service.errors import RequestTimeout
from service.problems import MEDIA_TYPE, REQUEST_ID_HEADER, REQUEST_ID_KEY, problem

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from service.metrics import Metrics

logger = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_UNMATCHED = "unmatched"  # label of requests that no route takes
_FIRST_ERROR = 400
_CLIENT_CLOSED = 499  # counted only; nobody is left to answer
_ENDS = "the service ends and has not finished this (send it again)"
_COME_BACK = {"Retry-After": "1", "Connection": "close"}


class RequestLayer:
    """Gives every request an id, measures it, and answers what nobody else has answered.

    A body that makes no progress for `idle_seconds` is given up.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, idle_seconds: float) -> None:
        self._app = app
        self._metrics = metrics
        self._idle_seconds = idle_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope[REQUEST_ID_KEY] = _request_id(scope)
        answer = _Answer(scope, send)
        started = time.perf_counter()
        try:
            await self._app(scope, _Body(receive, self._idle_seconds).receive, answer.send)
        except ClientDisconnect:
            answer.status = _CLIENT_CLOSED
        except asyncio.CancelledError:  # the server ends and has waited for this long enough
            if answer.started:
                raise
            await problem(scope, 503, code="shutting_down", detail=_ENDS, headers=_COME_BACK)(
                scope, receive, answer.send
            )
        except Exception:
            # The last resort: whatever reaches this line is a defect, and still a proper answer.
            logger.exception(
                "unexpected error (request %s)",
                scope[REQUEST_ID_KEY],
                extra={"action": "unexpected_error"},
            )
            if answer.started:
                raise
            await problem(scope, 500)(scope, receive, answer.send)
        finally:
            seconds = time.perf_counter() - started
            self._metrics.observe_request(scope["method"], _template(scope), answer.status, seconds)


def _request_id(scope: Scope) -> str:
    """The caller's id if it is harmless, or a fresh one."""
    given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
    return given if _REQUEST_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"


def _template(scope: Scope) -> str:
    """The route's path with its parameters unfilled, so that labels stay few."""
    return getattr(scope.get("route"), "path", _UNMATCHED)


class _Body:
    """Passes a request's body on as long as it keeps coming."""

    def __init__(self, receive: Receive, idle_seconds: float) -> None:
        self._receive = receive
        self._idle_seconds: float | None = idle_seconds

    async def receive(self) -> Message:
        """The next message.

        Raises:
            RequestTimeout: no part of the body came for too long.
        """
        try:
            async with asyncio.timeout(self._idle_seconds):
                message = await self._receive()
        except TimeoutError:
            raise RequestTimeout from None
        if not message.get("more_body", False):
            self._idle_seconds = None  # what follows is the end of the connection, some time
        return message


class _Answer:
    """Passes a response on, and replaces error bodies that are not problem documents.

    Some of the framework's own errors (a body over the limit, for one) are plain text and bypass
    the exception handlers.
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
        await self._send(message)


async def _no_receive() -> Message:
    return {"type": "http.disconnect"}
