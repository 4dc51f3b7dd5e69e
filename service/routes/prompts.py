"""Tuned prompts: list, import, pin, download, delete."""

import hashlib
import io
from datetime import UTC, datetime

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict
from starlette.concurrency import run_in_threadpool

from service.artifacts import fetch_artifact
from service.auth.authorization import Needs
from service.deps import After, Limit, PromptNameFilter, ServicesDep
from service.deps import reject_repeated_parameters as no_repeats
from service.http.file_responses import RESPONSES, IfNoneMatch, attachment, not_modified
from service.http.multipart import FormRules, announced_bytes, read_form
from service.idempotency import Completion, IdempotencyKey
from service.inference.host import ImportedPrompt, InferenceHost
from service.inference.pins import load_pinned
from service.route_docs import body, form, problems
from service.routing import MAX_JSON_BYTES, StrictRoute, media_type, parse, public_page
from service.services import TenantServices
from sharpzo_core.errors import StorageUnavailable, UnsupportedMedia
from sharpzo_core.ids import Prefix, is_id, new_id
from sharpzo_core.records.keys import Scope
from sharpzo_core.records.prompts import NAME_PATTERN, NewPrompt, PromptRecord, prompt_key
from sharpzo_core.schemas.base import Page, Slug
from sharpzo_core.schemas.prompts import PromptPublic, ResidencyPublic
from sharpzo_core.stores.idempotency import fingerprint

MAX_ARTIFACT_BYTES = 256 << 20
MAX_NAME_BYTES = 200

router = APIRouter(
    prefix="/v1/prompts",
    tags=["prompts"],
    route_class=StrictRoute,
    max_body_size=MAX_JSON_BYTES,
    dependencies=[Needs(Scope.PROMPTS), Depends(no_repeats)],
    responses=problems(422, 500, 503),
)


#: Callers who classify may see which prompts there are.
_READ = Needs(Scope.PROMPTS, Scope.INFER)


class PromptName(BaseModel):
    """The name of an imported prompt."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: Slug | None = None


@router.get("", dependencies=[_READ])
def list_prompts(
    services: ServicesDep, limit: Limit = 20, after: After = None, name: PromptNameFilter = None
) -> Page[PromptPublic]:
    """List prompts, newest first; `name` selects the versions of one name."""
    return public_page(services.prompts.list(limit, after, name), PromptPublic.from_record)


@router.post(
    "",
    status_code=201,
    response_model=PromptPublic,
    max_body_size=MAX_ARTIFACT_BYTES,
    responses=problems(400, 408, 409, 413, 415, 429, 507),
    openapi_extra=body(multipart=form("file", name={"type": "string", "pattern": NAME_PATTERN})),
)
async def import_prompt(
    request: Request,
    services: ServicesDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Import an artifact as the next version of its name."""
    if media_type(request) != "multipart/form-data":
        raise UnsupportedMedia(
            "the body is not multipart/form-data (send it with `file`, and optionally `name`)"
        )
    rules = FormRules("file", io.BytesIO, text_fields={"name": MAX_NAME_BYTES})
    async with services.idempotency.attempt(idempotency_key) as attempt:
        if attempt.is_new:
            await run_in_threadpool(services.prompts.require_room, announced_bytes(request))
        received = await read_form(request, rules)
        name = parse(PromptName, received.fields).name
        data = received.files[0].getvalue()
        digest = await run_in_threadpool(lambda: hashlib.sha256(data).hexdigest())
        meaning = fingerprint("prompts", {"name": name, "sha256": digest})
        if replayed := attempt.replay(meaning):
            return replayed
        imported = await services.inference.inspect(data)
        completion = attempt.completion(meaning, 201, PromptPublic.from_record)
        await run_in_threadpool(_publish, services, name, data, imported, completion)
    return completion.response()


def _publish(
    services: TenantServices,
    name: str | None,
    data: bytes,
    imported: ImportedPrompt,
    completion: Completion[PromptRecord],
) -> None:
    prompt_id = new_id(Prefix.PROMPT)
    prompt = NewPrompt(
        id=prompt_id,
        # A name that looks like an id could never be looked up.
        name=prompt_id if name is None or is_id(Prefix.PROMPT, name) else name,
        job_id=None,
        backbone=imported.backbone,
        classes=imported.classes,
        metrics=imported.metrics,
        sha256=imported.sha256,
        bytes=len(data),
        lineage=imported.lineage,
    )
    try:
        services.artifacts.put_bytes(prompt_key(prompt_id), data)
        services.prompts.publish(prompt, in_transaction=completion)
    except StorageUnavailable:
        raise  # the row may have been committed all the same, and then needs its artifact
    except BaseException:
        services.artifacts.delete(prompt_key(prompt_id))
        raise


@router.get("/{ref}", dependencies=[_READ], responses=problems(404))
def get_prompt(ref: str, services: ServicesDep) -> PromptPublic:
    """Get a prompt by id, `name` (its newest version), `name:version` or `name@alias`."""
    return _with_residency(services.prompts.get(ref), services.inference)


@router.put("/{ref}/pin", responses=problems(404))
async def pin_prompt(ref: str, services: ServicesDep) -> PromptPublic:
    """Pin this version: every API process keeps it in memory. Repeating this changes nothing."""
    return await _pin(ref, services, pinned=True)


@router.delete("/{ref}/pin", responses=problems(404))
async def unpin_prompt(ref: str, services: ServicesDep) -> PromptPublic:
    """Unpin this version: it stays in memory only while it is in use."""
    return await _pin(ref, services, pinned=False)


async def _pin(ref: str, services: TenantServices, *, pinned: bool) -> PromptPublic:
    prompt = await run_in_threadpool(services.prompts.pin, ref, pinned=pinned)
    await load_pinned(services.prompts, services.inference)
    return _with_residency(prompt, services.inference)


def _with_residency(prompt: PromptRecord, inference: InferenceHost) -> PromptPublic:
    used_at = inference.used_at(prompt)
    residency = ResidencyPublic(
        resident=used_at is not None,
        used_at=None if used_at is None else datetime.fromtimestamp(used_at, UTC),
    )
    return PromptPublic.from_record(prompt).model_copy(update={"residency": residency})


@router.delete("/{ref}", status_code=204, responses=problems(404, 409))
def delete_prompt(ref: str, services: ServicesDep) -> Response:
    """Delete one version of a prompt and its artifact; a bare name must have only one version.

    Rejected while an alias points to it or an unfinished job uses it.
    """
    prompt = services.prompts.delete(ref)
    services.inference.forget(prompt.id)
    services.artifacts.delete(prompt_key(prompt.id))
    return Response(status_code=204)


@router.get("/{ref}/download", response_class=Response, responses={**RESPONSES, **problems(404)})
def download_prompt(ref: str, services: ServicesDep, if_none_match: IfNoneMatch = "") -> Response:
    """Download the safetensors artifact; `ETag` and `X-Checksum-SHA256` are its hash."""
    prompt = services.prompts.get(ref)
    if prompt.sha256 in if_none_match:
        return not_modified(prompt.sha256)
    data = fetch_artifact(services.artifacts, prompt)
    return attachment(data, f"{prompt.name}-v{prompt.version}.safetensors", prompt.sha256)
