"""Which scope each route needs: declared at the route, enforced before its body is read.

`Needs(Scope.JOBS)` is a dependency of a router or of a route; the route's overrides the router's. A
route that declares nothing rejects every caller, so that a forgotten declaration is found at once.
`authentication` has checked before that the caller has a key, except on public paths.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import FastAPI, Request, params
from fastapi.routing import iter_route_contexts
from starlette.routing import BaseRoute

from service.auth.principal import known_caller
from sharpzo_core.errors import AuthRequired, ScopeForbidden
from sharpzo_core.records.keys import Scope

ASSETS = "/assets/"  #: Scripts, styles and pictures of the pages.
#: Routes that need no key. Once a key exists, every other route needs one.
PUBLIC = frozenset({"/", f"{ASSETS}{{name}}", "/docs", "/livez", "/openapi.json", "/readyz"})
#: Known methods: an untrusted client can invent any number of others, of any length.
METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
#: Methods that change nothing.
READING = frozenset({"GET", "HEAD"})
#: For routes that any key may use.
ANY_SCOPE = tuple(Scope)


class _Declared:
    """The scopes of a route, as a dependency that does nothing: `authorize` reads them."""

    def __init__(self, scopes: tuple[Scope, ...]) -> None:
        self.scopes = scopes

    async def __call__(self) -> None:
        pass


def Needs(*scopes: Scope) -> Any:  # noqa: ANN401, N802 - reads like FastAPI's own Depends
    """Declare that the caller needs one of these scopes; an admin has them all."""
    return params.Depends(_Declared(scopes))


def scopes_of(route: object) -> tuple[Scope, ...] | None:
    """The declared scopes or None; the last declaration is the nearest one."""
    found = [
        dependency.dependency.scopes
        for dependency in getattr(route, "dependencies", ())
        if isinstance(dependency.dependency, _Declared)
    ]
    return found[-1] if found else None


async def authorize(request: Request) -> None:
    """Reject a caller without the scope that the route needs.

    Raises:
        AuthRequired: no caller was authenticated; public paths are only open for reading.
        ScopeForbidden: the caller has none of the scopes, or the route declares none.
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
    """Whether the path is public; unknown assets count as public."""
    return path in PUBLIC or path.startswith(ASSETS)


def declared(app: FastAPI) -> Iterator[tuple[str, str, Sequence[Scope]]]:
    """Method, path and scopes of every route of the application."""
    for context in iter_route_contexts(app.routes):
        for method in sorted(context.methods or ()):
            yield method, context.path or "", scopes_of(context.original_route) or ()


def changes_state(method: str, route: BaseRoute | None) -> bool:
    """Whether a successful request changes something; classifying and encoding do not."""
    return method not in READING and scopes_of(route) not in ((Scope.INFER,), (Scope.ENCODE,))
