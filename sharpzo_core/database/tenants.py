"""Tenants: which rows a store sees.

A tenant is a name. Every row that a user creates has one, and every statement of a store that is
bound to a tenant filters by it. Rows of other tenants cannot be read, listed, counted or named.
"""

import re
from copy import copy
from typing import Self

import sqlalchemy as sa

from sharpzo_core.clock import Clock, utc_now

#: The tenant of requests without a key; its admins see what belongs to no other tenant.
DEFAULT_TENANT = "default"
TENANT_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

_TENANT = re.compile(TENANT_PATTERN)


def is_tenant(text: str) -> bool:
    return _TENANT.fullmatch(text) is not None


def owned(table: sa.Table, tenant: str | None) -> sa.ColumnElement[bool]:
    """The condition that a row belongs to the tenant; None stands for all tenants."""
    return sa.true() if tenant is None else table.c.tenant == tenant


class TenantStore:
    """A store that sees and creates the rows of one tenant.

    A new store belongs to the default tenant; `for_tenant` returns that of another.
    """

    def __init__(
        self, engine: sa.Engine, clock: Clock = utc_now, tenant: str | None = DEFAULT_TENANT
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._tenant = tenant

    def for_tenant(self, tenant: str) -> Self:
        return self._bound_to(tenant)

    def for_all_tenants(self) -> Self:
        """The same store for the rows of every tenant; it cannot create rows."""
        return self._bound_to(None)

    def _bound_to(self, tenant: str | None) -> Self:
        bound = copy(self)
        bound._tenant = tenant  # noqa: SLF001 - a copy of our own
        return bound

    @property
    def _owner(self) -> str:
        if self._tenant is None:
            raise RuntimeError("a store for all tenants cannot create rows")
        return self._tenant

    def _own(self, table: sa.Table) -> sa.ColumnElement[bool]:
        return owned(table, self._tenant)
