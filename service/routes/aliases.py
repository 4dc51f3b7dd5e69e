"""Aliases of prompts: what is in production, what was, and the way back."""

import re
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import AwareDatetime, BeforeValidator
from starlette.concurrency import run_in_threadpool

from service.auth.authorization import Needs
from service.deps import (
    After,
    AliasesDep,
    Limit,
    PromptNameFilter,
    ServicesDep,
    reject_repeated_parameters,
)
from service.idempotency import IdempotencyKey
from service.route_docs import body, problems
from service.routing import MAX_JSON_BYTES, StrictRoute, parse, read_json
from sharpzo_core.records.aliases import ALIAS_PATTERN
from sharpzo_core.records.keys import Scope
from sharpzo_core.records.prompts import NAME_PATTERN
from sharpzo_core.schemas.aliases import AliasHistoryPublic, AliasPublic, AliasRollback, AliasSet
from sharpzo_core.schemas.base import Page
from sharpzo_core.stores.idempotency import fingerprint

router = APIRouter(
    prefix="/v1/aliases",
    tags=["aliases"],
    route_class=StrictRoute,
    max_body_size=MAX_JSON_BYTES,
    dependencies=[Needs(Scope.PROMPTS), Depends(reject_repeated_parameters)],
    responses=problems(422, 500, 503),
)


_DIGITS = "[0-9]{2}"
_RFC_3339 = re.compile(
    rf"{_DIGITS}{_DIGITS}-{_DIGITS}-{_DIGITS}[Tt ]{_DIGITS}:{_DIGITS}:{_DIGITS}([.][0-9]+)?"
    rf"([Zz]|[+-]{_DIGITS}:{_DIGITS})"
)


def _parse_moment(text: object) -> datetime | None:
    """A time in UTC. pydantic alone would take numbers and dates without a time as well."""
    if text is None:
        return None
    try:
        if not isinstance(text, str) or not _RFC_3339.fullmatch(text):
            raise ValueError
        return datetime.fromisoformat(text.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError("must be a time with its zone, such as 2026-01-31T12:00:00Z") from None


Moment = Annotated[
    AwareDatetime | None,
    BeforeValidator(_parse_moment),
    Query(description="Tell what was in force at this time (RFC 3339)."),
]


_REF = {"pattern": f"{ALIAS_PATTERN}|{NAME_PATTERN[:-1]}@{ALIAS_PATTERN[1:]}"}
AliasRef = Annotated[str, Path(json_schema_extra=_REF)]


@router.get("")
def list_aliases(
    aliases: AliasesDep, limit: Limit = 20, after: After = None, name: PromptNameFilter = None
) -> Page[AliasPublic]:
    """A page of aliases, sorted by name and alias."""
    page = aliases.list(limit, after, name)
    data = [AliasPublic.from_record(alias) for alias in page.items]
    return Page(data=data, has_more=page.has_more, next=page.next)


@router.put("/{alias}", responses=problems(400, 404, 408, 409, 413, 415))
def set_alias(alias: AliasRef, request: AliasSet, aliases: AliasesDep) -> AliasPublic:
    """Point `alias` (of the prompt's name) or `name@alias` to a prompt.

    Pointing it where it points changes nothing, whatever else the request asks for: so it may be
    sent again when its answer was lost.
    """
    moved = aliases.set(
        alias,
        request.prompt_id,
        gate=request.required,
        expected=request.expected,
        comment=request.comment,
    )
    return AliasPublic.from_record(moved)


@router.get("/{alias}", responses=problems(404, 409))
def get_alias(
    alias: str,
    aliases: AliasesDep,
    at: Moment = None,
    limit: Limit = 20,
    after: After = None,
) -> AliasHistoryPublic:
    """Where an alias points and its history, newest first; `at` a time: as it was then."""
    return AliasHistoryPublic.from_history(aliases.get(alias, at=at, limit=limit, after=after))


@router.delete("/{alias}", status_code=204, responses=problems(404, 409))
def delete_alias(alias: str, aliases: AliasesDep) -> Response:
    """Take an alias away. Its history is kept, and goes on when it is set again."""
    aliases.delete(alias)
    return Response(status_code=204)


@router.post(
    "/{alias}/rollback",
    response_model=AliasPublic,
    responses=problems(400, 404, 408, 409, 413, 415),
    openapi_extra=body(required=False, json=AliasRollback.model_json_schema()),
)
async def roll_back_alias(
    alias: str, request: Request, services: ServicesDep, idempotency_key: IdempotencyKey = None
) -> Response:
    """Point an alias to what was in force before its promotion; again: further back."""
    wanted = await _read_rollback(request)
    meaning = fingerprint(
        "rollback", {"alias": alias, **wanted.model_dump(mode="json", exclude_unset=True)}
    )
    async with services.idempotency.attempt(idempotency_key) as attempt:
        if replayed := attempt.replay(meaning):
            return replayed
        completion = attempt.completion(meaning, 200, AliasPublic.from_record)
        await run_in_threadpool(
            services.aliases.rollback,
            alias,
            expected=wanted.expected,
            comment=wanted.comment,
            in_transaction=completion,
        )
    return completion.response()


async def _read_rollback(request: Request) -> AliasRollback:
    """The body may be left out."""
    if not await request.body():
        return AliasRollback()
    return parse(AliasRollback, await read_json(request))
