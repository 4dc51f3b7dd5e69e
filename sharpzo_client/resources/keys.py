"""`client.keys`: API keys of one's own tenant, for keys with the scope `admin`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sharpzo_client import _operations as ops
from sharpzo_client._constants import PAGE_SIZE
from sharpzo_client.resources._base import AsyncResource, Resource

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from sharpzo_client.models import ApiKey, AuditEntry, NewApiKey


class Keys(Resource):
    """Keys of the caller's tenant, and what they were used for."""

    def create(
        self,
        name: str,
        scopes: Sequence[str],
        *,
        expires_in: int | None = None,
        rate_limit: str | None = None,
    ) -> NewApiKey:
        """Make a key; `key` of the answer is told this once.

        It is None if the answer was lost and the call repeated: then `rotate` the key.

        Args:
            name: What it is for.
            scopes: Of `jobs`, `prompts`, `infer`, `admin`.
            expires_in: Seconds that it is valid; default: until it is revoked.
            rate_limit: Requests that it may send, such as `600/minute`.

        Raises:
            PermissionDeniedError: one's own key lacks the scope `admin`.
        """
        return self._transport.send(ops.create_key(name, scopes, expires_in, rate_limit))

    def list(self, *, page_size: int = PAGE_SIZE) -> Iterator[ApiKey]:
        """Every key, newest first, those included that open nothing any more."""
        return self._items(ops.list_keys(page_size))

    def revoke(self, key_id: str) -> None:
        """End a key at once, and cancel the jobs that it started.

        Raises:
            NotFoundError: there is no such key, or it is revoked already.
        """
        self._transport.send(ops.revoke_key(key_id))

    def rotate(self, key_id: str, *, grace: int = 0) -> NewApiKey:
        """Make a key with the same rights; the old one expires after `grace` seconds.

        Raises:
            NotFoundError: there is no such key, or it is revoked.
            ConflictError: it has expired.
        """
        return self._transport.send(ops.rotate_key(key_id, grace))

    def audit(
        self, *, key_id: str | None = None, page_size: int = PAGE_SIZE
    ) -> Iterator[AuditEntry]:
        """What was refused and what was changed, newest first; with `key_id` by one key."""
        return self._items(ops.list_audit(key_id, page_size))


class AsyncKeys(AsyncResource):
    """The same for asyncio; see `Keys`."""

    async def create(
        self,
        name: str,
        scopes: Sequence[str],
        *,
        expires_in: int | None = None,
        rate_limit: str | None = None,
    ) -> NewApiKey:
        """Make a key; see `Keys.create`."""
        return await self._transport.send(ops.create_key(name, scopes, expires_in, rate_limit))

    def list(self, *, page_size: int = PAGE_SIZE) -> AsyncIterator[ApiKey]:
        """Every key, newest first."""
        return self._items(ops.list_keys(page_size))

    async def revoke(self, key_id: str) -> None:
        """End a key at once, and cancel the jobs that it started."""
        await self._transport.send(ops.revoke_key(key_id))

    async def rotate(self, key_id: str, *, grace: int = 0) -> NewApiKey:
        """Make a key with the same rights; the old one expires after `grace` seconds."""
        return await self._transport.send(ops.rotate_key(key_id, grace))

    def audit(
        self, *, key_id: str | None = None, page_size: int = PAGE_SIZE
    ) -> AsyncIterator[AuditEntry]:
        """What was refused and what was changed, newest first."""
        return self._items(ops.list_audit(key_id, page_size))
