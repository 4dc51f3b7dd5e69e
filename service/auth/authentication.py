"""Authentication: a middleware in front of the routes that does not read bodies.

It checks, in this order, the `Host` header; the `Origin`, as long as no key is needed; the API key;
the key's rate limit; and after a slow body, the key again. What a key may do is checked by
`authorization`, route by route.
"""

import re
import time
from contextlib import AbstractContextManager, nullcontext

from starlette._utils import get_route_path
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.auth.authorization import is_public_path
from service.auth.key_cache import KeyCache
from service.auth.principal import ANYBODY, Caller, known_caller, set_caller
from service.auth.rate_limits import RateLimits
from service.error_handlers import problem_response
from service.errors import HostNotAllowed, OriginNotAllowed
from service.idempotency import REPLAYED_HEADER
from sharpzo_core.errors import AuthInvalid, CoreError
from sharpzo_core.logging import log_context
from sharpzo_core.settings import Settings

RECHECK_SECONDS = 0.25  # the key is checked again after a body that took longer
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_POLICY_VIOLATION = 1008  # close code: there are no WebSockets here
_SAFE = ("GET", "HEAD", "OPTIONS", "TRACE")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?")


class Authentication:
    """Rejects unauthenticated requests; for all others it records the caller."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._listed = settings.allowed_host_names
        host = settings.host.lower()
        self._own_names = frozenset({*LOOPBACK, f"[{host}]" if ":" in host else host})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
            return
        response = _AuditedSend(scope, send)
        try:
            response.headers = await self._authenticate(scope)
        except CoreError as error:
            await problem_response(Request(scope), error)(scope, receive, response.send)
            return
        caller = known_caller(scope)
        with _caller_context(caller):
            await self._app(scope, _RecheckedBody(scope, receive).receive, response.send)

    async def _authenticate(self, scope: Scope) -> dict[str, str]:
        """Authenticate the request; returns headers for its response.

        Raises:
            CoreError: it is rejected.
        """
        keys: KeyCache = scope["app"].state.services.key_cache
        rates: RateLimits = scope["app"].state.services.rate_limits
        headers = Headers(scope=scope)
        host = _host(headers)
        if _is_public(scope):  # answered without the database
            self._check_host(host, keyed=keys.was_required)
            return {}
        keyed = await keys.required()
        self._check_host(host, keyed=keyed)
        if not keyed:
            _check_origin(scope["method"], headers)
            set_caller(scope, ANYBODY)
            return {}
        try:
            caller = await keys.identify(headers.getlist("authorization"))
        except AuthInvalid:
            await rates.fail(address_of(scope) or "")
            raise
        set_caller(scope, caller)
        left = await rates.take(caller)
        return {} if left is None else left.headers

    def _check_host(self, host: str, *, keyed: bool) -> None:
        """Check the host name; any is accepted where keys are needed.

        `*` allows any name, `*.example.org` any subdomain.

        Raises:
            HostNotAllowed: the name is not allowed.
        """
        allowed = self._listed or (frozenset("*") if keyed else self._own_names)
        parents = {f"*.{host.partition('.')[2]}"} if "." in host else set()
        if allowed.isdisjoint({host, "*"} | parents):
            raise HostNotAllowed


def _caller_context(caller: Caller | None) -> AbstractContextManager[None]:
    return (
        nullcontext() if caller is None else log_context(tenant=caller.tenant, key_id=caller.key_id)
    )


def address_of(scope: Scope) -> str | None:
    """The client's address; uvicorn honours forwarded ones only from trusted proxies."""
    client = scope.get("client")
    return None if client is None else str(client[0])


def _is_public(scope: Scope) -> bool:
    # The path that the router uses, never one derived from the Host header. `authorize` rejects
    # methods that do not read.
    return is_public_path(get_route_path(scope))


def _host(headers: Headers) -> str:
    """The host name without the port.

    Raises:
        HostNotAllowed: there is none, there are several, or it is malformed.
    """
    found = headers.getlist("host")
    match = _HOST.fullmatch(found[0]) if len(found) == 1 else None
    if match is None:
        raise HostNotAllowed("the Host header is not one valid host name (send exactly one)")
    return match[1].lower().rstrip(".")


def _check_origin(method: str, headers: Headers) -> None:
    """Reject changes that another site's page sends.

    Without keys, that page could make a browser on this machine send them.

    Raises:
        OriginNotAllowed: the request comes from another site.
    """
    if method in _SAFE:
        return
    origin = headers.get("origin")
    own = origin is None or origin.partition("://")[2] == headers.get("host")
    if not own or headers.get("sec-fetch-site") == "cross-site":
        raise OriginNotAllowed


class _RecheckedBody:
    """Checks the caller again at the end of a slow body.

    Otherwise a slow body that was started in time could create a new key with a revoked one.
    """

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._scope = scope
        self._receive = receive
        self._began = time.monotonic()

    async def receive(self) -> Message:
        """Pass on the next message.

        Raises:
            AuthInvalid: the caller's key is no longer valid.
            StorageUnavailable: the database does not answer.
        """
        message = await self._receive()
        caller = known_caller(self._scope)
        ends = message["type"] == "http.request" and not message.get("more_body", False)
        if ends and caller is not None and time.monotonic() - self._began > RECHECK_SECONDS:
            keys: KeyCache = self._scope["app"].state.services.key_cache
            if not await keys.still_admits(caller):
                raise AuthInvalid
        return message


class _AuditedSend:
    """Adds headers to a response and writes it to the audit log if it belongs there."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self.headers: dict[str, str] = {}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=message.setdefault("headers", []))
            headers.update(self.headers)
            self._audit(message["status"], replayed=REPLAYED_HEADER in headers)
        await self._send(message)

    def _audit(self, status: int, *, replayed: bool) -> None:
        state = self._scope["app"].state
        entry = state.auditor.entry(self._scope, status, address_of(self._scope), replayed=replayed)
        if entry is not None:
            state.services.audit_log.add(entry)
