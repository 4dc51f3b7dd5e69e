"""Calls about API keys and the audit log."""

from __future__ import annotations

from collections.abc import Sequence

from sharpzo_client._operation import Operation
from sharpzo_client._operations import _build as api
from sharpzo_client.models import ApiKey, AuditEntry, NewApiKey, Page


def create_key(
    name: str, scopes: Sequence[str], expires_in: int | None, rate_limit: str | None
) -> Operation[NewApiKey]:
    """Make a key. A repeated call makes no second one, but its answer lacks the key's text."""
    limits = api.without_none({"expires_in_seconds": expires_in, "rate_limit": rate_limit})
    return api.create(NewApiKey, "keys", body={"name": name, "scopes": list(scopes), **limits})


def list_keys(page_size: int) -> Operation[Page[ApiKey]]:
    return api.first_page(ApiKey, "keys", page_size=page_size)


def revoke_key(key_id: str) -> Operation[None]:
    return api.delete("keys", key_id)


def rotate_key(key_id: str, grace: int) -> Operation[NewApiKey]:
    return api.create(NewApiKey, "keys", key_id, "rotate", body={"grace_seconds": grace})


def list_audit(key_id: str | None, page_size: int) -> Operation[Page[AuditEntry]]:
    return api.first_page(AuditEntry, "audit", page_size=page_size, key_id=key_id)
