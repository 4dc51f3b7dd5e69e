"""`client.aliases`. `alias` is `name@alias`, or the alias alone if only one name has it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import datetime
from typing import Any

from sharpzo_client._constants import PAGE_SIZE, UNSET, Unset
from sharpzo_client._operations import aliases as ops
from sharpzo_client.models import Alias, AliasChange
from sharpzo_client.resources._base import AsyncResource, Resource


class Aliases(Resource):
    """Movable names for versions of prompts, with a history and rollback."""

    def set(
        self,
        alias: str,
        prompt_id: str,
        *,
        gate: Mapping[str, Any] | None = None,
        expected_prompt_id: str | Unset | None = UNSET,
        comment: str | None = None,
    ) -> Alias:
        """Point an alias to a prompt; if it already points there, nothing changes.

        Args:
            alias: The alias, as `name@alias`.
            prompt_id: The id of the prompt.
            gate: What the prompt must score: `{"metric": "val_accuracy", "min": 0.9}`, or
                `"min_improvement"` over the current prompt, or both.
            expected_prompt_id: Change the alias only if it points to this prompt now; None: only
                if it does not exist yet.
            comment: A line for the history.

        Raises:
            ConflictError: The `code` is `gate_failed` or `alias_moved`.
            NotFoundError: The prompt does not exist.
        """
        return self._transport.send(
            ops.set_alias(
                alias,
                prompt_id,
                gate=gate,
                expected_prompt_id=expected_prompt_id,
                comment=comment,
            )
        )

    def rollback(
        self,
        alias: str,
        *,
        expected_prompt_id: str | None = None,
        comment: str | None = None,
        idempotency_key: str | None = None,
    ) -> Alias:
        """Point an alias to the previous prompt; call it again to go further back.

        Args:
            alias: The alias.
            expected_prompt_id: Change the alias only if it points to this prompt now.
            comment: A line for the history.
            idempotency_key: Your own key makes the call repeatable across processes.

        Raises:
            ConflictError: The `code` is `nothing_to_roll_back`, `alias_moved` or
                `alias_ambiguous`.
            NotFoundError: The alias does not exist.
        """
        return self._transport.send(
            ops.roll_back_alias(
                alias,
                expected_prompt_id=expected_prompt_id,
                comment=comment,
                idempotency_key=idempotency_key,
            )
        )

    def get(self, alias: str, *, at: datetime | str | None = None) -> Alias:
        """Return an alias with the newest part of its history; with `at`, as it was at that time.

        Raises:
            NotFoundError: The alias does not exist, or did not exist at that time.
            ConflictError: Several names have this alias (`alias_ambiguous`).
            InputError: `at` has no time zone.
        """
        return self._transport.send(ops.get_alias(alias, at))

    def history(
        self, alias: str, *, at: datetime | str | None = None, page_size: int = PAGE_SIZE
    ) -> Iterator[AliasChange]:
        """Iterate over the whole history, newest first; with `at`, up to that time."""
        return self._items(ops.alias_history(alias, at, page_size))

    def delete(self, alias: str) -> None:
        """Delete an alias; its history is kept and continues if the alias is set again."""
        self._transport.send(ops.delete_alias(alias))

    def list(self, *, name: str | None = None, page_size: int = PAGE_SIZE) -> Iterator[Alias]:
        """Iterate over all aliases, or those of one name."""
        return self._items(ops.list_aliases(name, page_size))


class AsyncAliases(AsyncResource):
    """Movable names for versions of prompts. See `Aliases`."""

    async def set(
        self,
        alias: str,
        prompt_id: str,
        *,
        gate: Mapping[str, Any] | None = None,
        expected_prompt_id: str | Unset | None = UNSET,
        comment: str | None = None,
    ) -> Alias:
        """Point an alias to a prompt."""
        return await self._transport.send(
            ops.set_alias(
                alias,
                prompt_id,
                gate=gate,
                expected_prompt_id=expected_prompt_id,
                comment=comment,
            )
        )

    async def rollback(
        self,
        alias: str,
        *,
        expected_prompt_id: str | None = None,
        comment: str | None = None,
        idempotency_key: str | None = None,
    ) -> Alias:
        """Point an alias to the previous prompt."""
        return await self._transport.send(
            ops.roll_back_alias(
                alias,
                expected_prompt_id=expected_prompt_id,
                comment=comment,
                idempotency_key=idempotency_key,
            )
        )

    async def get(self, alias: str, *, at: datetime | str | None = None) -> Alias:
        """Return an alias with the newest part of its history."""
        return await self._transport.send(ops.get_alias(alias, at))

    def history(
        self, alias: str, *, at: datetime | str | None = None, page_size: int = PAGE_SIZE
    ) -> AsyncIterator[AliasChange]:
        """Iterate over the whole history, newest first; with `at`, up to that time."""
        return self._items(ops.alias_history(alias, at, page_size))

    async def delete(self, alias: str) -> None:
        """Delete an alias; its history is kept."""
        await self._transport.send(ops.delete_alias(alias))

    def list(self, *, name: str | None = None, page_size: int = PAGE_SIZE) -> AsyncIterator[Alias]:
        """Iterate over all aliases, or those of one name."""
        return self._items(ops.list_aliases(name, page_size))
