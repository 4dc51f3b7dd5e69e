"""The audit log, written in the background: no request waits for it.

Entries are buffered in memory for a fraction of a second, longer while the database is down. A full
buffer drops new entries, and their number is logged. An orderly shutdown writes everything.
"""

import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta

from fastapi import FastAPI
from fastapi.routing import RouteContext, iter_route_contexts
from starlette._utils import get_route_path
from starlette.types import Scope

from service.auth.authorization import METHODS, READING, changes_state
from service.auth.principal import known_caller
from service.errors import RateLimited
from service.http.problems import REQUEST_ID_KEY, problem_code
from sharpzo_core.clock import Clock, utc_now
from sharpzo_core.database.tenants import DEFAULT_TENANT
from sharpzo_core.errors import AuthRequired, CoreError
from sharpzo_core.ids import Prefix, new_id
from sharpzo_core.records.keys import holds_key
from sharpzo_core.stores.audit import AuditEntry, AuditStore

MAX_BUFFERED = 10_000  # entries
BATCH = 500  # entries in one transaction
GATHER_SECONDS = 0.2  # between two transactions
RETRY_SECONDS = 1.0  # until the database is tried again
STOP_SECONDS = 5.0  # how long an orderly stop tries
CLEANUP_SECONDS = 3600.0  # between two deletions of entries past their retention
REJECTED = frozenset({401, 403, 429})
FLOOD_SECONDS = 60.0
#: How many rejections of a code one key or address gets logged in that time: nothing else bounds
#: them, and an entry for each would fill the database. (Wrong keys have a rate limit.)
FLOODS = {AuthRequired.code: 100, RateLimited.code: 1}
MAX_FLOODS = 10_000  # keys and addresses
MAX_ADDRESS = 64  # characters; a proxy may forward anything
_FIRST_ERROR = 400
_OBJECT = "sharpzo.object"  # in the ASGI scope
_OBJECT_ID = re.compile(r"[A-Za-z0-9._:@-]{1,320}")

logger = logging.getLogger(__name__)


class AuditLog:
    """A buffer and the thread that empties it."""

    def __init__(self, store: AuditStore, days: int, clock: Clock = utc_now) -> None:
        self._store = store
        self._retention = timedelta(days=days)
        self._clock = clock
        self._waiting: deque[AuditEntry] = deque()
        self._lost = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(2 * STOP_SECONDS)

    def add(self, entry: AuditEntry) -> None:
        if len(self._waiting) >= MAX_BUFFERED:
            self._lost += 1
            return
        self._waiting.append(entry)

    def _run(self) -> None:
        cleaned_at = -CLEANUP_SECONDS
        while not self._stopping.wait(GATHER_SECONDS):
            if not self._write_some():
                self._stopping.wait(RETRY_SECONDS)
            elif time.monotonic() - cleaned_at >= CLEANUP_SECONDS:
                cleaned_at = time.monotonic()
                self._delete_expired()
        deadline = time.monotonic() + STOP_SECONDS
        while self._waiting and time.monotonic() < deadline:
            if not self._write_some():
                time.sleep(GATHER_SECONDS)
        self._log_lost(self._lost + len(self._waiting))

    def _write_some(self) -> bool:
        """Write the oldest entries; False if the database is down, and they stay buffered."""
        some = [self._waiting[i] for i in range(min(BATCH, len(self._waiting)))]
        if not some:
            return True
        try:
            self._store.append(some)
        except CoreError as error:
            logger.warning(
                "the audit log is buffered until the database answers: %s",
                error,
                extra={"action": "audit_waits"},
            )
            return False
        except Exception:  # one bad entry must not block all others
            logger.exception("audit entries could not be written", extra={"action": "audit_lost"})
        for _ in some:
            self._waiting.popleft()
        lost, self._lost = self._lost, 0
        self._log_lost(lost)
        return True

    def _log_lost(self, entries: int) -> None:
        if entries:
            logger.error("%d audit entries were lost", entries, extra={"action": "audit_lost"})

    def _delete_expired(self) -> None:
        try:
            self._store.delete_before(self._clock() - self._retention)
        except CoreError as error:
            logger.info(
                "expired audit entries were not deleted: %s", error, extra={"action": "audit_kept"}
            )


class Auditor:
    """Decides which requests are logged, and builds their entries."""

    def __init__(
        self,
        app: FastAPI,
        clock: Clock = utc_now,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        self._routes = list(iter_route_contexts(app.routes))
        self._clock = clock
        self._ticks = ticks
        # (code, key or address) -> start of the window, entries in it
        self._floods: dict[tuple[str, str | None], tuple[float, int]] = {}

    def entry(
        self, scope: Scope, status: int, address: str | None, *, replayed: bool
    ) -> AuditEntry | None:
        if not (status in REJECTED or _may_have_changed(scope, status, replayed=replayed)):
            return None
        if status not in REJECTED and not changes_state(scope["method"], scope.get("route")):
            return None
        route = self._route(scope)
        original = None if route is None else route.original_route
        if status not in REJECTED and not changes_state(scope["method"], original):
            return None
        caller = known_caller(scope)
        code = problem_code(scope)
        who = address if caller is None else caller.key_id
        if code in FLOODS and self._is_flood(code, who):
            return None
        return AuditEntry(
            id=new_id(Prefix.AUDIT),
            tenant=DEFAULT_TENANT if caller is None else caller.tenant,
            at=self._clock(),
            key_id=None if caller is None else caller.key_id,
            method=_method(scope, route),
            route=None if route is None else route.path,
            object_id=None if caller is None else _object_of(scope),
            status=status,
            code=code,
            request_id=scope[REQUEST_ID_KEY],
            address=None if address is None else address[:MAX_ADDRESS],
        )

    def _is_flood(self, code: str, who: str | None) -> bool:
        """Whether this code was logged often enough for now."""
        now = self._ticks()
        since, noted = self._floods.get((code, who), (now, 0))
        if now - since >= FLOOD_SECONDS:
            since, noted = now, 0
        if noted >= FLOODS[code]:
            return True
        if len(self._floods) >= MAX_FLOODS:
            self._floods.clear()
        self._floods[code, who] = since, noted + 1
        return False

    def _route(self, scope: Scope) -> RouteContext | None:
        path, partial = get_route_path(scope), None
        for context in self._routes:
            if context.path_regex.match(path):
                if scope["method"] in (context.methods or ()):
                    return context
                partial = partial or context
        return partial


def _method(scope: Scope, route: RouteContext | None) -> str:
    """The method if known; any other text may not fit the column and fail the whole batch."""
    method: str = scope["method"]
    return method if route is not None and method in METHODS else "?"


def _may_have_changed(scope: Scope, status: int, *, replayed: bool) -> bool:
    """A cheap first check, since most requests only read."""
    return status < _FIRST_ERROR and not replayed and scope["method"] not in READING


def note_object(scope: Scope, object_id: str) -> None:
    """Record the id of the object that a request created."""
    scope[_OBJECT] = object_id


def _object_of(scope: Scope) -> str | None:
    named = [scope.get(_OBJECT), *scope.get("path_params", {}).values()]
    found: str | None = next((text for text in named if text is not None), None)
    if found is None or not _OBJECT_ID.fullmatch(found) or holds_key(found):
        return None
    return found
