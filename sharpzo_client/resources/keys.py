"""`client.keys`: the API keys of your tenant; these calls need the scope `admin`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence

from sharpzo_client._constants import PAGE_SIZE
from sharpzo_client._operations import keys as ops
from sharpzo_client.models import ApiKey, AuditEntry, NewApiKey
from sharpzo_client.resources._base import AsyncResource, Resource


class Keys(Resource):
    """Create, list, rotate and revoke the API keys of your tenant, and read its audit log."""

    def create(
        self,
        name: str,
        scopes: Sequence[str],
        *,
        expires_in: int | None = None,
        rate_limit: str | None = None,
    ) -> NewApiKey:
        """Create a key; its text is in `key` of the result, and is returned only this once.

        `key` is None if the first answer was lost and the call was retried: then `rotate` the key.

        Args:
            name: What the key is for.
            scopes: Some of `jobs`, `prompts`, `infer`, `encode`, `admin`.
            expires_in: Seconds until it expires; default: never.
            rate_limit: Requests that it may send, such as `600/minute`.

        Raises:
            PermissionDeniedError: Your own key lacks the scope `admin`.
        """
        return self._transport.send(ops.create_key(name, scopes, expires_in, rate_limit))

    def list(self, *, page_size: int = PAGE_SIZE) -> Iterator[ApiKey]:
        """Iterate over all keys, newest first, including expired and revoked ones."""
        return self._items(ops.list_keys(page_size))

    def revoke(self, key_id: str) -> None:
        """Revoke a key immediately, and cancel the jobs that it started.

        Raises:
            NotFoundError: The key does not exist, or is already revoked.
        """
        self._transport.send(ops.revoke_key(key_id))

    def rotate(self, key_id: str, *, grace: int = 0) -> NewApiKey:
        """Create a key with the same rights; the old one expires after `grace` seconds.

        Raises:
            NotFoundError: The key does not exist, or is revoked.
            ConflictError: The key has expired.
        """
        return self._transport.send(ops.rotate_key(key_id, grace))

    def audit(
        self, *, key_id: str | None = None, page_size: int = PAGE_SIZE
    ) -> Iterator[AuditEntry]:
        """Iterate over refused and changing requests, newest first; with `key_id`, of one key."""
        return self._items(ops.list_audit(key_id, page_size))


class AsyncKeys(AsyncResource):
    """Create, list, rotate and revoke the API keys of your tenant. See `Keys`."""

    async def create(
        self,
        name: str,
        scopes: Sequence[str],
        *,
        expires_in: int | None = None,
        rate_limit: str | None = None,
    ) -> NewApiKey:
        """Create a key; its text is returned only this once. See `Keys.create`."""
        return await self._transport.send(ops.create_key(name, scopes, expires_in, rate_limit))

    def list(self, *, page_size: int = PAGE_SIZE) -> AsyncIterator[ApiKey]:
        """Iterate over all keys, newest first."""
        return self._items(ops.list_keys(page_size))

    async def revoke(self, key_id: str) -> None:
        """Revoke a key immediately, and cancel the jobs that it started."""
        await self._transport.send(ops.revoke_key(key_id))

    async def rotate(self, key_id: str, *, grace: int = 0) -> NewApiKey:
        """Create a key with the same rights; the old one expires after `grace` seconds."""
        return await self._transport.send(ops.rotate_key(key_id, grace))

    def audit(
        self, *, key_id: str | None = None, page_size: int = PAGE_SIZE
    ) -> AsyncIterator[AuditEntry]:
        """Iterate over refused and changing requests, newest first."""
        return self._items(ops.list_audit(key_id, page_size))
