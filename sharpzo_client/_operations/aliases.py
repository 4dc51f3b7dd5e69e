"""Calls about aliases."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sharpzo_client._constants import PAGE_SIZE, UNSET, Unset
from sharpzo_client._operation import Operation
from sharpzo_client._operations import _build as api
from sharpzo_client._response import reads
from sharpzo_client.errors import InputError
from sharpzo_client.models import Alias, AliasChange, Page


def set_alias(
    alias: str,
    prompt_id: str,
    *,
    gate: Mapping[str, Any] | None,
    expected_prompt_id: str | Unset | None,
    comment: str | None,
) -> Operation[Alias]:
    body = api.without_none({"prompt_id": prompt_id, "gate": gate, "comment": comment})
    if expected_prompt_id is not UNSET:
        body["expected_prompt_id"] = expected_prompt_id  # null is sent: the alias must not exist
    return Operation(method="PUT", path=api.path("aliases", alias), json=body, read=reads(Alias))


def roll_back_alias(
    alias: str,
    *,
    expected_prompt_id: str | None,
    comment: str | None,
    idempotency_key: str | None,
) -> Operation[Alias]:
    """Point an alias to the previous prompt; the key keeps a retry from rolling back twice."""
    body = api.without_none({"expected_prompt_id": expected_prompt_id, "comment": comment})
    return api.create(
        Alias, "aliases", alias, "rollback", body=body, idempotency_key=idempotency_key
    )


def get_alias(
    alias: str, at: datetime | str | None, page_size: int = PAGE_SIZE
) -> Operation[Alias]:
    """Look up an alias with the first page of its history."""
    return Operation(
        method="GET",
        path=api.path("aliases", alias),
        params=api.without_none({"limit": page_size, "at": _rfc3339(at)}),
        read=reads(Alias),
    )


def alias_history(
    alias: str, at: datetime | str | None, page_size: int
) -> Operation[Page[AliasChange]]:
    operation = get_alias(alias, at, page_size)
    return Operation(
        method="GET",
        path=operation.path,
        params=operation.params,
        read=lambda response: operation.read(response).page,
    )


def list_aliases(name: str | None, page_size: int) -> Operation[Page[Alias]]:
    return api.first_page(Alias, "aliases", page_size=page_size, name=name)


def delete_alias(alias: str) -> Operation[None]:
    return api.delete("aliases", alias)


def _rfc3339(at: datetime | str | None) -> str | None:
    """Format a time for a query.

    Raises:
        InputError: `at` has no time zone.
    """
    if not isinstance(at, datetime):
        return at
    if at.tzinfo is None:
        raise InputError(f"{at} has no time zone (use datetime.now(UTC), or at.astimezone())")
    return at.isoformat()
