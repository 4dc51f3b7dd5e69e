"""Tenants: whose rows a store sees.

A tenant is a name. Every row that somebody made has one, and every statement of a store that is
bound to a tenant asks for it, so that what others have made is not there: not to be read, listed,
counted or named.
"""

from __future__ import annotations

import re
from copy import copy
from typing import Self

import sqlalchemy as sa

from sharpzo_core.clock import Clock, utc_now

#: Of whoever works without keys; its admins see what belongs to nobody else.
DEFAULT_TENANT = "default"
#: What a tenant may be called: letters, digits, dots, dashes and underscores.
TENANT_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

_TENANT = re.compile(TENANT_PATTERN)


def is_tenant(text: str) -> bool:
    """Whether a tenant may be called so."""
    return _TENANT.fullmatch(text) is not None


def owned(table: sa.Table, tenant: str | None) -> sa.ColumnElement[bool]:
    """The condition that a row is the tenant's; None stands for all of them."""
    return sa.true() if tenant is None else table.c.tenant == tenant


class TenantStore:
    """A store that sees the rows of one tenant, and makes rows for it.

    A new store is the default tenant's; `for_tenant` returns another's. `for_all_tenants`
    sees every row and can create none: for workers, sweepers and the operator's own figures.
    """

    def __init__(
        self, engine: sa.Engine, clock: Clock = utc_now, tenant: str | None = DEFAULT_TENANT
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._tenant = tenant

    def for_tenant(self, tenant: str) -> Self:
        """The same store for another tenant."""
        return self._bound_to(tenant)

    def for_all_tenants(self) -> Self:
        """The same store for every tenant's rows; it creates none."""
        return self._bound_to(None)

    def _bound_to(self, tenant: str | None) -> Self:
        bound = copy(self)
        bound._tenant = tenant  # noqa: SLF001 - a copy of our own
        return bound

    @property
    def _owner(self) -> str:
        """The tenant of a new row."""
        if self._tenant is None:
            raise RuntimeError("a store of all tenants makes no rows")
        return self._tenant

    def _own(self, table: sa.Table) -> sa.ColumnElement[bool]:
        """The condition that a row may be seen here."""
        return owned(table, self._tenant)
