"""Which route needs which scope, declared beside the route and enforced before its body is read.

`Needs(Scope.JOBS)` stands among the dependencies of a router, or of a route, where it goes before
that of its router. A route that declares nothing is closed to everybody, so that one that somebody
adds and forgets is found at once. Whether the caller has a key at all is asked earlier, by the
gate, of every path but the public ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import Request, params
from fastapi.routing import iter_route_contexts

from service.auth.principal import known_caller
from sharpzo_core.errors import AuthRequired, ScopeForbidden
from sharpzo_core.records.keys import Scope

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fastapi import FastAPI
    from starlette.routing import BaseRoute

ASSETS = "/assets/"  #: What the pages are made of.
#: Routes that everybody may read. Nothing else is answered without a key once there is one.
PUBLIC = frozenset({"/", f"{ASSETS}{{name}}", "/docs", "/livez", "/openapi.json", "/readyz"})
#: Methods that exist. A stranger can think of any number of others, each as long as a head.
METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
#: Methods that change nothing.
READING = frozenset({"GET", "HEAD"})
#: Any key will do.
ANY_SCOPE = tuple(Scope)


class _Declared:
    """The scopes of a route, as a dependency that does nothing by itself."""

    def __init__(self, scopes: tuple[Scope, ...]) -> None:
        self.scopes = scopes

    async def __call__(self) -> None:
        """Nothing: `authorize` reads the declaration."""


def Needs(*scopes: Scope) -> Any:  # noqa: ANN401, N802 - reads like FastAPI's own Depends
    """One of these scopes is needed; an admin has them all."""
    return params.Depends(_Declared(scopes))


def scopes_of(route: object) -> tuple[Scope, ...] | None:
    """What the route declares, or None: the last declaration is the nearest one."""
    found = [
        dependency.dependency.scopes
        for dependency in getattr(route, "dependencies", ())
        if isinstance(dependency.dependency, _Declared)
    ]
    return found[-1] if found else None


async def authorize(request: Request) -> None:
    """Refuse a caller without the scope that the route needs.

    Raises:
        AuthRequired: nobody has come through the gate: it is open for reading alone.
        ScopeForbidden: the caller has none of them, or the route declares none.
    """
    route = request.scope["route"]
    if route.path in PUBLIC and request.method in READING:
        return
    caller, needed = known_caller(request.scope), scopes_of(route)
    if caller is None:
        raise AuthRequired
    if needed is None or not caller.may(needed):
        names = " or ".join(sorted(needed or [Scope.ADMIN]))
        raise ScopeForbidden(f"a key with the scope {names} is needed")


def is_public_path(path: str) -> bool:
    """Whether a request's path leads to a public route, or to none."""
    return path in PUBLIC or path.startswith(ASSETS)


def declared(app: FastAPI) -> Iterator[tuple[str, str, Sequence[Scope]]]:
    """Method, path and scopes of every route that the application has."""
    for context in iter_route_contexts(app.routes):
        for method in sorted(context.methods or ()):
            yield method, context.path or "", scopes_of(context.original_route) or ()


def changes_state(method: str, route: BaseRoute | None) -> bool:
    """Whether a request that succeeds has changed something; classifying changes nothing."""
    return method not in READING and scopes_of(route) != (Scope.INFER,)
