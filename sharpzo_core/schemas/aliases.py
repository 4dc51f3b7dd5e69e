"""Aliases on the wire: moves, gates and history."""

from datetime import datetime
from typing import Annotated, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from sharpzo_core.ids import Prefix, id_pattern, is_id
from sharpzo_core.records.aliases import (
    AliasAction,
    AliasChange,
    AliasHistory,
    AliasRecord,
    Expected,
    Gate,
)
from sharpzo_core.schemas.base import PublicModel, RequestModel, SafeText


def _check_prompt_id(text: str) -> str:
    if not is_id(Prefix.PROMPT, text):
        raise ValueError("must be a prompt id, prm_… (GET /v1/prompts/{ref} returns it)")
    return text


_PROMPT_ID = {"pattern": id_pattern(Prefix.PROMPT)}
PromptId = Annotated[str, AfterValidator(_check_prompt_id), Field(json_schema_extra=_PROMPT_ID)]
Comment = Annotated[SafeText, Field(max_length=500)]


class AliasGate(RequestModel):
    """What a prompt must score; `min`, `min_improvement` or both.

    Of `loss` and `val_loss` less is better: at most `min`, and lower by `min_improvement`.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"required": [name], "properties": {name: {"type": "number"}}}
                for name in ("min", "min_improvement")
            ]
        }
    )

    metric: Annotated[SafeText, Field(min_length=1, max_length=100)]
    """One of the prompt's recorded `metrics`."""

    min: float | None = None
    min_improvement: float | None = None
    """Over the prompt that the alias points to now; ignored if it points nowhere."""

    @model_validator(mode="after")
    def _has_a_bound(self) -> Self:
        if self.min is None and self.min_improvement is None:
            raise ValueError("give min, min_improvement or both")
        return self


class AliasMove(RequestModel):
    """What the requests that move an alias have in common."""

    expected_prompt_id: PromptId | None = None
    """If given, the request fails unless the alias points there now; null means nowhere."""

    comment: Comment | None = None

    @property
    def expected(self) -> Expected | None:
        given = "expected_prompt_id" in self.model_fields_set
        return Expected(self.expected_prompt_id) if given else None


class AliasRollback(AliasMove):
    """Return to the previous prompt."""


class AliasSet(AliasMove):
    """Point an alias to a prompt."""

    prompt_id: PromptId

    gate: AliasGate | None = None
    """A condition on the prompt's metrics; default: none."""

    @property
    def required(self) -> Gate | None:
        return None if self.gate is None else Gate(**self.gate.model_dump())


class AliasPublic(PublicModel):
    """A movable name for one version of a prompt."""

    name: str
    alias: str
    ref: str
    """`name@alias`, usable wherever a prompt is asked for."""

    prompt_id: str
    version: int
    seq: int
    """Number of the history entry that put it there."""

    updated_at: datetime

    @classmethod
    def from_record(cls, alias: AliasRecord) -> Self:
        return cls.from_fields(alias)


class GatePublic(PublicModel):
    """A gate that was passed, and what was measured."""

    metric: str
    min: float | None
    min_improvement: float | None
    found: float
    current: float | None
    """The score of the prompt before, if the gate needed it."""


class AliasChangePublic(PublicModel):
    """One line of an alias's history."""

    seq: int
    action: AliasAction
    prompt_id: str | None
    """In force from here on; null: none."""

    version: int | None
    previous_prompt_id: str | None
    comment: str | None
    gate: GatePublic | None
    created_at: datetime

    @classmethod
    def from_record(cls, change: AliasChange) -> Self:
        return cls.from_fields(change)


class AliasHistoryPublic(AliasPublic):
    """An alias and a page of its history, newest first; the following one is at `after=next`."""

    history: list[AliasChangePublic]
    has_more: bool
    next: str | None

    @classmethod
    def from_history(cls, found: AliasHistory) -> Self:
        return cls.from_fields(
            found.alias,
            history=[AliasChangePublic.from_record(change) for change in found.changes.items],
            has_more=found.changes.has_more,
            next=found.changes.next,
        )
