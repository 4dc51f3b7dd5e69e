"""`client.aliases`. `alias` is `name@alias`, or the alias alone where only one name has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sharpzo_client import _operations as ops
from sharpzo_client._constants import ANYTHING, PAGE_SIZE, Anything
from sharpzo_client.resources._base import AsyncResource, Resource

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping
    from datetime import datetime

    from sharpzo_client.models import Alias, AliasChange


class Aliases(Resource):
    """Movable names for versions of prompts, with a history and a way back."""

    def set(
        self,
        alias: str,
        prompt_id: str,
        *,
        gate: Mapping[str, Any] | None = None,
        expected_prompt_id: str | Anything | None = ANYTHING,
        comment: str | None = None,
    ) -> Alias:
        """Point an alias to a prompt; to point it there again changes nothing.

        `gate` is what the prompt must score: `{"metric": "val_accuracy", "min": 0.9}`, or
        `"min_improvement"` over the prompt in force, or both. With `expected_prompt_id` nothing is
        changed unless the alias points there now; None: nowhere.

        Raises:
            ConflictError: `code` is `gate_failed` or `alias_moved`.
            NotFoundError: there is no such prompt.
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
        """Point an alias to what was in force before its promotion; again: further back.

        A key of your own makes the call repeatable across processes.

        Raises:
            ConflictError: `code` is `nothing_to_roll_back`, `alias_moved` or `alias_ambiguous`.
            NotFoundError: there is no such alias.
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
        """Look at an alias and the newest part of its history; `at` a time: as it was then.

        Raises:
            NotFoundError: there is no such alias, or was none then.
            ConflictError: several names have it (`alias_ambiguous`).
            InputError: `at` has no time zone.
        """
        return self._transport.send(ops.get_alias(alias, at))

    def history(
        self, alias: str, *, at: datetime | str | None = None, page_size: int = PAGE_SIZE
    ) -> Iterator[AliasChange]:
        """The whole history, newest first, fetched page by page; `at` a time: up to then."""
        return self._items(ops.alias_history(alias, at, page_size))

    def delete(self, alias: str) -> None:
        """Take an alias away; its history is kept, and goes on when it is set again."""
        self._transport.send(ops.delete_alias(alias))

    def list(self, *, name: str | None = None, page_size: int = PAGE_SIZE) -> Iterator[Alias]:
        """All aliases, or those of one name, fetched page by page."""
        return self._items(ops.list_aliases(name, page_size))


class AsyncAliases(AsyncResource):
    """Movable names for versions of prompts. See `Aliases`."""

    async def set(
        self,
        alias: str,
        prompt_id: str,
        *,
        gate: Mapping[str, Any] | None = None,
        expected_prompt_id: str | Anything | None = ANYTHING,
        comment: str | None = None,
    ) -> Alias:
        """Point an alias to a prompt; to point it there again changes nothing."""
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
        """Point an alias to what was in force before its promotion; again: further back."""
        return await self._transport.send(
            ops.roll_back_alias(
                alias,
                expected_prompt_id=expected_prompt_id,
                comment=comment,
                idempotency_key=idempotency_key,
            )
        )

    async def get(self, alias: str, *, at: datetime | str | None = None) -> Alias:
        """Look at an alias and the newest part of its history; `at` a time: as it was then."""
        return await self._transport.send(ops.get_alias(alias, at))

    def history(
        self, alias: str, *, at: datetime | str | None = None, page_size: int = PAGE_SIZE
    ) -> AsyncIterator[AliasChange]:
        """The whole history, newest first, fetched page by page; `at` a time: up to then."""
        return self._items(ops.alias_history(alias, at, page_size))

    async def delete(self, alias: str) -> None:
        """Take an alias away; its history is kept."""
        await self._transport.send(ops.delete_alias(alias))

    def list(self, *, name: str | None = None, page_size: int = PAGE_SIZE) -> AsyncIterator[Alias]:
        """All aliases, or those of one name, fetched page by page."""
        return self._items(ops.list_aliases(name, page_size))
