"""The caller of a request: tenant and rights of its key, or of anyone while no key exists."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from starlette.types import Scope as Connection

from sharpzo_core.database.tenants import DEFAULT_TENANT
from sharpzo_core.records.keys import ApiKey, Scope

_CALLER = "sharpzo.caller"  # in the ASGI scope


@dataclass(frozen=True)
class Caller:
    """The tenant and rights of one request."""

    tenant: str
    scopes: frozenset[Scope]
    key: ApiKey | None  #: None while no key is needed

    @classmethod
    def from_record(cls, key: ApiKey) -> Caller:
        return cls(key.tenant, key.scopes, key)

    @property
    def key_id(self) -> str | None:
        return None if self.key is None else self.key.id

    @property
    def is_operator(self) -> bool:
        """Whether the caller may see metrics of all tenants: a metrics key of the default one."""
        return self.tenant == DEFAULT_TENANT and self.may({Scope.METRICS})

    def may(self, needed: Collection[Scope]) -> bool:
        """Whether the caller has one of these scopes; an admin has all of them."""
        return Scope.ADMIN in self.scopes or not self.scopes.isdisjoint(needed)


#: The caller of every request as long as no key exists.
ANYBODY = Caller(DEFAULT_TENANT, frozenset(Scope), None)


def set_caller(connection: Connection, caller: Caller) -> None:
    connection[_CALLER] = caller


def caller_of(connection: Connection) -> Caller:
    """The caller. A request that bypassed authentication has none, which is a bug."""
    caller: Caller = connection[_CALLER]
    return caller


def known_caller(connection: Connection) -> Caller | None:
    return connection.get(_CALLER)
