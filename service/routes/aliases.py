"""Aliases of prompts: set, history, rollback."""

import re
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import AwareDatetime, BeforeValidator
from starlette.concurrency import run_in_threadpool

from service.auth.authorization import Needs
from service.deps import (
    After,
    Limit,
    PromptNameFilter,
    ServicesDep,
    reject_repeated_parameters,
)
from service.idempotency import IdempotencyKey
from service.route_docs import body, problems
from service.routing import MAX_JSON_BYTES, StrictRoute, parse, public_page, read_json
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
    """A time in UTC; pydantic alone would also accept numbers and dates without a time."""
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
    Query(description="Return the target at this time (RFC 3339)."),
]


_REF = {"pattern": f"{ALIAS_PATTERN}|{NAME_PATTERN[:-1]}@{ALIAS_PATTERN[1:]}"}
AliasRef = Annotated[str, Path(json_schema_extra=_REF)]


@router.get("")
def list_aliases(
    services: ServicesDep, limit: Limit = 20, after: After = None, name: PromptNameFilter = None
) -> Page[AliasPublic]:
    """List aliases, sorted by name and alias."""
    return public_page(services.aliases.list(limit, after, name), AliasPublic.from_record)


@router.put("/{alias}", responses=problems(400, 404, 408, 409, 413, 415))
def set_alias(alias: AliasRef, request: AliasSet, services: ServicesDep) -> AliasPublic:
    """Point `alias` (of the prompt's name) or `name@alias` to a prompt.

    If the alias already points there, nothing changes and `expected` and `required` are not
    checked: the request is safe to repeat.
    """
    moved = services.aliases.set(
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
    services: ServicesDep,
    at: Moment = None,
    limit: Limit = 20,
    after: After = None,
) -> AliasHistoryPublic:
    """Get an alias and its history, newest first; with `at`, as it was at that time."""
    return AliasHistoryPublic.from_history(
        services.aliases.get(alias, at=at, limit=limit, after=after)
    )


@router.delete("/{alias}", status_code=204, responses=problems(404, 409))
def delete_alias(alias: str, services: ServicesDep) -> Response:
    """Delete an alias. Its history is kept and continues if the alias is set again."""
    services.aliases.delete(alias)
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
    """Point an alias back to its previous prompt; repeat to go further back."""
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
    # The body is optional.
    if not await request.body():
        return AliasRollback()
    return parse(AliasRollback, await read_json(request))
