"""API keys, audit log and usage of the caller's tenant."""

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from service.auth.authorization import ANY_SCOPE, Needs
from service.deps import After, Limit, ServicesDep
from service.deps import reject_repeated_parameters as no_repeats
from service.idempotency import Completion, IdempotencyKey
from service.route_docs import body, problems
from service.routing import MAX_JSON_BYTES, StrictRoute, parse, public_page, read_json
from sharpzo_core.clock import utc_now
from sharpzo_core.errors import NotFound
from sharpzo_core.records.keys import NewKey, Scope
from sharpzo_core.schemas.base import Page
from sharpzo_core.schemas.keys import (
    AuditPublic,
    KeyCreate,
    KeyCreated,
    KeyPublic,
    KeyRotate,
    UsagePublic,
)
from sharpzo_core.stores.idempotency import fingerprint
from sharpzo_core.stores.quotas import Quotas

router = APIRouter(
    prefix="/v1",
    tags=["keys"],
    route_class=StrictRoute,
    max_body_size=MAX_JSON_BYTES,
    dependencies=[Needs(Scope.ADMIN), Depends(no_repeats)],
    responses=problems(422, 500, 503),
)

KeyFilter = Annotated[
    str | None, Query(pattern="^key_[0-9a-z]{26}$", description="Only entries of this key.")
]


@router.get("/keys")
def list_keys(services: ServicesDep, limit: Limit = 20, after: After = None) -> Page[KeyPublic]:
    """List keys, newest first, including revoked and expired ones."""
    return public_page(services.keys.list(limit, after), KeyPublic.from_record)


@router.post(
    "/keys", status_code=201, response_model=KeyCreated, responses=problems(400, 408, 409, 413, 415)
)
async def create_key(
    request: KeyCreate, services: ServicesDep, idempotency_key: IdempotencyKey = None
) -> Response:
    """Create a key. `key` is returned only once: a repeated request gets null there."""
    meaning = fingerprint("keys", request.model_dump(mode="json", exclude_unset=True))
    async with services.idempotency.attempt(idempotency_key) as attempt:
        if replayed := attempt.replay(meaning):
            return replayed
        completion: Completion[NewKey] = attempt.completion(meaning, 201, KeyCreated.without_secret)
        seconds = request.expires_in_seconds
        created = await run_in_threadpool(
            services.keys.create,
            request.name,
            request.scopes,
            expires_at=None if seconds is None else utc_now() + timedelta(seconds=seconds),
            rate_limit=request.rate_limit,
            in_transaction=completion,
        )
    return _with_secret(created)


@router.delete("/keys/{key_id}", status_code=204, responses=problems(404))
def revoke_key(key_id: str, services: ServicesDep) -> Response:
    """Revoke a key. It no longer works, and the jobs that it started are cancelled."""
    if services.keys.get(key_id).revoked_at is not None:
        raise NotFound("key", key_id)
    services.keys.revoke(key_id)
    return Response(status_code=204)


@router.post(
    "/keys/{key_id}/rotate",
    status_code=201,
    response_model=KeyCreated,
    responses=problems(400, 404, 408, 409, 413, 415),
    openapi_extra=body(required=False, json=KeyRotate.model_json_schema()),
)
async def rotate_key(
    key_id: str, request: Request, services: ServicesDep, idempotency_key: IdempotencyKey = None
) -> Response:
    """Create a key with the same rights; the old one expires after `grace_seconds`."""
    wanted = parse(KeyRotate, await read_json(request)) if await request.body() else KeyRotate()
    asked = {"key": key_id, **wanted.model_dump(mode="json", exclude_unset=True)}
    meaning = fingerprint("rotations", asked)
    async with services.idempotency.attempt(idempotency_key) as attempt:
        if replayed := attempt.replay(meaning):
            return replayed
        completion: Completion[NewKey] = attempt.completion(meaning, 201, KeyCreated.without_secret)
        grace = timedelta(seconds=wanted.grace_seconds)
        created = await run_in_threadpool(
            services.keys.rotate, key_id, grace, in_transaction=completion
        )
    return _with_secret(created)


def _with_secret(created: NewKey) -> Response:
    """The only response that contains the key; it is not stored anywhere."""
    text = KeyCreated.with_secret(created).model_dump_json()
    return Response(text, 201, {"Cache-Control": "no-store"}, media_type="application/json")


@router.get("/audit", tags=["audit"])
def list_audit(
    services: ServicesDep, limit: Limit = 20, after: After = None, key_id: KeyFilter = None
) -> Page[AuditPublic]:
    """List rejected requests and changes, newest first; entries appear within a second."""
    return public_page(services.audit_entries.list(limit, after, key_id), AuditPublic.from_record)


@router.get("/usage", tags=["usage"], dependencies=[Needs(*ANY_SCOPE)])
def get_usage(services: ServicesDep) -> UsagePublic:
    """Get the tenant's usage and quotas."""
    return UsagePublic.from_record(services.usage.get(), Quotas.from_settings(services.settings))
