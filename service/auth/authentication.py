"""The gate: who may come in at all. It stands before the routes and looks at no body.

In this order: the `Host` that the request names; where it comes from, as long as no key is needed;
its key; how many requests that key has sent; and once a slow body has come, its key again. What a
key may do is asked by `access`, route by route.
"""

from __future__ import annotations

import re
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING

from starlette._utils import get_route_path
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request

from service.auth.authorization import is_public_path
from service.auth.principal import ANYBODY, admit, known_caller
from service.error_handlers import answer
from service.errors import HostNotAllowed, OriginNotAllowed
from service.idempotency import REPLAYED_HEADER
from sharpzo_core.errors import AuthInvalid, CoreError
from sharpzo_core.logging import log_context

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from service.auth.principal import Caller
    from service.services import Services
    from sharpzo_core.settings import Settings

AT_ONCE_SECONDS = 0.25  # a body that is there in so short a time was sent by whoever came in
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_POLICY_VIOLATION = 1008  # code of a WebSocket's end: there are none here
_SAFE = ("GET", "HEAD", "OPTIONS", "TRACE")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?")


class Gate:
    """Answers those that may not come in; for all others it notes who asks."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._listed = settings.allowed_host_names
        host = settings.host.lower()
        self._near = frozenset({*LOOPBACK, f"[{host}]" if ":" in host else host})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
            return
        noting = _Noting(scope, send)
        try:
            noting.headers = await self._admit(scope)
        except CoreError as error:
            await answer(Request(scope), error)(scope, receive, noting.send)
            return
        caller = known_caller(scope)
        with _about(caller):
            await self._app(scope, _Body(scope, receive).receive, noting.send)

    async def _admit(self, scope: Scope) -> dict[str, str]:
        """Let the request in; returns headers for its answer.

        Raises:
            CoreError: it may not come in.
        """
        services: Services = scope["app"].state.services
        headers = Headers(scope=scope)
        host = _host(headers)
        if _is_public(scope):  # answered without the database
            self._check_host(host, keyed=services.keyring.was_required)
            return {}
        keyed = await services.keyring.required()
        self._check_host(host, keyed=keyed)
        if not keyed:
            _check_origin(scope["method"], headers)
            admit(scope, ANYBODY)
            return {}
        try:
            caller = await services.keyring.identify(headers.getlist("authorization"))
        except AuthInvalid:
            await services.rates.fail(address_of(scope) or "")
            raise
        admit(scope, caller)
        left = await services.rates.take(caller)
        return {} if left is None else left.headers

    def _check_host(self, host: str, *, keyed: bool) -> None:
        """The name is one of the service's; where keys are needed any will do.

        `*` stands for any name, `*.example.org` for what ends so.

        Raises:
            HostNotAllowed: it is not.
        """
        allowed = self._listed or (frozenset("*") if keyed else self._near)
        parents = {f"*.{host.partition('.')[2]}"} if "." in host else set()
        if allowed.isdisjoint({host, "*"} | parents):
            raise HostNotAllowed


def _about(caller: Caller | None) -> AbstractContextManager[None]:
    """What the log is to say of whoever asks."""
    return (
        nullcontext() if caller is None else log_context(tenant=caller.tenant, key_id=caller.key_id)
    )


def address_of(scope: Scope) -> str | None:
    """Where the request comes from; a proxy's word counts only if the operator trusts it."""
    client = scope.get("client")
    return None if client is None else str(client[0])


def _is_public(scope: Scope) -> bool:
    # The path that the router goes by, never one that is put together from the Host header. Other
    # methods than reading ones are refused behind it.
    return is_public_path(get_route_path(scope))


def _host(headers: Headers) -> str:
    """The name that the request calls this service by.

    Raises:
        HostNotAllowed: it names none, several, or something that is no name.
    """
    found = headers.getlist("host")
    match = _HOST.fullmatch(found[0]) if len(found) == 1 else None
    if match is None:
        raise HostNotAllowed("the Host header is not one host name")
    return match[1].lower().rstrip(".")


def _check_origin(method: str, headers: Headers) -> None:
    """A request that changes something does not come from another site's page.

    Nobody is asked for a key, so a browser on this machine must not be led to send it.

    Raises:
        OriginNotAllowed: it does.
    """
    if method in _SAFE:
        return
    origin = headers.get("origin")
    own = origin is None or origin.partition("://")[2] == headers.get("host")
    if not own or headers.get("sec-fetch-site") == "cross-site":
        raise OriginNotAllowed


class _Body:
    """Passes a body on, and looks at its end whether its sender would be let in now.

    Otherwise a body that is begun in time, and sent slowly, makes a new key with a revoked one.
    """

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._scope = scope
        self._receive = receive
        self._began = time.monotonic()

    async def receive(self) -> Message:
        """The next message.

        Raises:
            AuthInvalid: the sender would not be let in.
            StorageUnavailable: the database does not tell.
        """
        message = await self._receive()
        caller = known_caller(self._scope)
        ends = message["type"] == "http.request" and not message.get("more_body", False)
        if ends and caller is not None and time.monotonic() - self._began > AT_ONCE_SECONDS:
            services: Services = self._scope["app"].state.services
            if not await services.keyring.still_admits(caller):
                raise AuthInvalid
        return message


class _Noting:
    """Adds headers to an answer, and has it noted in the audit log if it is to be."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self.headers: dict[str, str] = {}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=message.setdefault("headers", []))
            headers.update(self.headers)
            self._note(message["status"], replayed=REPLAYED_HEADER in headers)
        await self._send(message)

    def _note(self, status: int, *, replayed: bool) -> None:
        state = self._scope["app"].state
        entry = state.auditor.entry(self._scope, status, address_of(self._scope), replayed=replayed)
        if entry is not None:
            state.services.audit.note(entry)
