"""What an alias is: a movable name for one version of a prompt, and the history of its moves."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sharpzo_core.database.pagination import Listing
from sharpzo_core.errors import AliasMoved, GateFailed
from sharpzo_core.records.prompts import PromptRecord

#: Like a prompt's name, but never only digits, which could be mistaken for a version.
ALIAS_PATTERN = r"^([A-Za-z]|[0-9]+[A-Za-z._-])[A-Za-z0-9._-]*$"
MAX_ALIAS = 100  # characters

#: Metrics where lower is better.
LOWER_IS_BETTER = frozenset({"loss", "val_loss"})

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_ALIAS = re.compile(ALIAS_PATTERN)


class AliasAction(StrEnum):
    SET = "set"  #: Pointed to a prompt
    ROLLBACK = "rollback"  #: Pointed back to the previous prompt
    DELETED = "deleted"


@dataclass(frozen=True)
class AliasRef:
    """An alias as a request names it: `production`, or `clothing@production`."""

    name: str | None
    alias: str

    @classmethod
    def parse(cls, text: str) -> AliasRef | None:
        """None if the text is not a valid alias."""
        name, _, alias = text.rpartition("@")
        if not is_alias(alias) or ("@" in text and not _NAME.fullmatch(name)):
            return None
        return cls(name or None, alias)


@dataclass(frozen=True, kw_only=True)
class AliasRecord:
    """Where an alias points, now or at some time."""

    name: str
    alias: str
    prompt_id: str
    version: int
    seq: int  #: Number of the history entry that put it there
    updated_at: datetime  #: Since when it points there

    @property
    def ref(self) -> str:
        return f"{self.name}@{self.alias}"


@dataclass(frozen=True, kw_only=True)
class AliasChange:
    """One line of an alias's history; `seq` counts from 1 without gaps."""

    tenant: str
    name: str
    alias: str
    seq: int
    action: AliasAction
    prompt_id: str | None  #: In force from here on; None after a deletion
    version: int | None
    previous_prompt_id: str | None  #: In force until here
    beneath: int  #: `seq` of the entry that a rollback looks at next; 0 if there is none
    comment: str | None
    gate: Mapping[str, Any] | None  #: What was measured, if the move was gated
    created_at: datetime  #: Never earlier than that of the previous entry


@dataclass(frozen=True)
class AliasHistory:
    alias: AliasRecord
    changes: Listing[AliasChange]  #: Newest first


@dataclass(frozen=True)
class Expected:
    """Where a request expects the alias to point; None: nowhere."""

    prompt_id: str | None

    def check(self, found: str | None) -> None:
        """Compare with where it points.

        Raises:
            AliasMoved: it points somewhere else.
        """
        if found != self.prompt_id:
            raise AliasMoved(
                f"the alias points to {found or 'nothing'}, not to {self.prompt_id or 'nothing'}"
            )


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What a prompt must score before an alias may point to it.

    Where lower is better the bounds are reversed: at most `min`, and lower by `min_improvement`.
    """

    metric: str
    min: float | None = None
    min_improvement: float | None = None  #: Over the prompt that the alias points to now

    def check(self, candidate: PromptRecord, current: PromptRecord | None) -> dict[str, Any]:
        """What was found, for the history; the first prompt needs no improvement.

        Raises:
            GateFailed: naming the metric, what was wanted and what was found.
        """
        found = self._recorded(candidate)
        before = None
        if self.min is not None:
            self._require(found, self.min, "")
        if self.min_improvement is not None and current is not None:
            before = self._recorded(current)
            wanted = before + self._sign * self.min_improvement
            self._require(found, wanted, f" ({before:.9g} of {_label(current)} must be improved)")
        return {**vars(self), "found": found, "current": before}

    @property
    def _sign(self) -> int:
        return -1 if self.metric in LOWER_IS_BETTER else 1

    def _recorded(self, prompt: PromptRecord) -> float:
        value = prompt.metrics.get(self.metric)
        if value is None:
            known = ", ".join(sorted(k for k, v in prompt.metrics.items() if v is not None))
            raise GateFailed(
                f"{self.metric} is not recorded for {_label(prompt)} (it has: {known or 'none'})"
            )
        return value

    def _require(self, found: float, wanted: float, why: str) -> None:
        # 0.1 + 0.2 must count as 0.3.
        if (
            math.isclose(found, wanted, rel_tol=1e-9, abs_tol=1e-12)
            or self._sign * (found - wanted) > 0
        ):
            return
        bound = "at most" if self._sign < 0 else "at least"
        raise GateFailed(f"{self.metric}: wanted {bound} {wanted:.9g}, found {found:.9g}{why}")


def is_alias(text: str) -> bool:
    return len(text) <= MAX_ALIAS and _ALIAS.fullmatch(text) is not None


def _label(prompt: PromptRecord) -> str:
    return f"{prompt.name}:{prompt.version}"
