"""Who asks: the key's tenant and rights, or everybody's while there are no keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sharpzo_core.database.tenants import DEFAULT_TENANT
from sharpzo_core.records.keys import Scope

if TYPE_CHECKING:
    from collections.abc import Collection

    from starlette.types import Scope as Connection

    from sharpzo_core.records.keys import ApiKey

_CALLER = "sharpzo.caller"  # in the ASGI scope


@dataclass(frozen=True)
class Caller:
    """One request's rights."""

    tenant: str
    scopes: frozenset[Scope]
    key: ApiKey | None  #: None while the service needs none

    @classmethod
    def from_record(cls, key: ApiKey) -> Caller:
        """Who has this key."""
        return cls(key.tenant, key.scopes, key)

    @property
    def key_id(self) -> str | None:
        """The key's id."""
        return None if self.key is None else self.key.id

    @property
    def is_operator(self) -> bool:
        """Whether figures of all tenants may be told: those that the default tenant lets read."""
        return self.tenant == DEFAULT_TENANT and self.may({Scope.METRICS})

    def may(self, needed: Collection[Scope]) -> bool:
        """Whether one of these scopes is the caller's; an admin has all of them."""
        return Scope.ADMIN in self.scopes or not self.scopes.isdisjoint(needed)


#: Everybody, as long as no key was made.
ANYBODY = Caller(DEFAULT_TENANT, frozenset(Scope), None)


def admit(connection: Connection, caller: Caller) -> None:
    """Note who asks; for the gate alone."""
    connection[_CALLER] = caller


def caller_of(connection: Connection) -> Caller:
    """Who asks. A request that came past the gate has nobody, and is a defect."""
    caller: Caller = connection[_CALLER]
    return caller


def known_caller(connection: Connection) -> Caller | None:
    """Who asks, if the gate has let somebody in."""
    return connection.get(_CALLER)
