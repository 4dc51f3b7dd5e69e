"""Calls about API keys and the audit log."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sharpzo_client._operations._build import create, delete, first_page, without_none
from sharpzo_client.models import ApiKey, AuditEntry, NewApiKey, Page

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sharpzo_client._operation import Operation


def create_key(
    name: str, scopes: Sequence[str], expires_in: int | None, rate_limit: str | None
) -> Operation[NewApiKey]:
    """Make a key. A repeated call makes no second one, but its answer lacks the key's text."""
    limits = without_none({"expires_in_seconds": expires_in, "rate_limit": rate_limit})
    return create(NewApiKey, "keys", body={"name": name, "scopes": list(scopes), **limits})


def list_keys(page_size: int) -> Operation[Page[ApiKey]]:
    return first_page(ApiKey, "keys", page_size=page_size)


def revoke_key(key_id: str) -> Operation[None]:
    return delete("keys", key_id)


def rotate_key(key_id: str, grace: int) -> Operation[NewApiKey]:
    return create(NewApiKey, "keys", key_id, "rotate", body={"grace_seconds": grace})


def list_audit(key_id: str | None, page_size: int) -> Operation[Page[AuditEntry]]:
    return first_page(AuditEntry, "audit", page_size=page_size, key_id=key_id)
