"""Tuned prompts: a registry, and classification with them."""

import hashlib
import io
from datetime import UTC, datetime

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict
from starlette.concurrency import run_in_threadpool

from service.artifacts import fetch_artifact
from service.auth.authorization import Needs
from service.deps import After, InferenceDep, Limit, PromptNameFilter, PromptsDep, ServicesDep
from service.deps import reject_repeated_parameters as no_repeats
from service.http.file_responses import RESPONSES, IfNoneMatch, attachment, not_modified
from service.http.multipart import FormRules, announced_bytes, read_form
from service.idempotency import Completion, IdempotencyKey
from service.inference.host import ImportedPrompt
from service.inference.pins import keep_pins
from service.route_docs import body, form, problems
from service.routing import MAX_JSON_BYTES, StrictRoute, media_type, parse
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


#: Who classifies may see with what.
_READ = Needs(Scope.PROMPTS, Scope.INFER)


class PromptName(BaseModel):
    """What an imported prompt is to be called."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: Slug | None = None


@router.get("", dependencies=[_READ])
def list_prompts(
    prompts: PromptsDep, limit: Limit = 20, after: After = None, name: PromptNameFilter = None
) -> Page[PromptPublic]:
    """A page of prompts, or of the versions of one name, newest first."""
    page = prompts.list(limit, after, name)
    data = [PromptPublic.from_record(prompt) for prompt in page.items]
    return Page(data=data, has_more=page.has_more, next=page.next)


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
    inference: InferenceDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Add an artifact that was tuned elsewhere, as the next version of its name."""
    if media_type(request) != "multipart/form-data":
        raise UnsupportedMedia("send multipart/form-data with `file`, and `name` if you like")
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
        imported = await inference.inspect(data)
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
        # A name in the form of an id could never be asked for.
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
        raise  # the prompt may be stored all the same, and then needs its artifact
    except BaseException:
        services.artifacts.delete(prompt_key(prompt_id))
        raise


@router.get("/{ref}", dependencies=[_READ], responses=problems(404))
def get_prompt(ref: str, prompts: PromptsDep, inference: InferenceDep) -> PromptPublic:
    """One prompt, by id, `name` (its newest version), `name:version` or `name@alias`."""
    return _with_residency(prompts.get(ref), inference)


@router.put("/{ref}/pin", responses=problems(404))
async def pin_prompt(ref: str, prompts: PromptsDep, inference: InferenceDep) -> PromptPublic:
    """Have every API process keep this version in memory. Asking again changes nothing."""
    return await _pin(ref, prompts, inference, pinned=True)


@router.delete("/{ref}/pin", responses=problems(404))
async def unpin_prompt(ref: str, prompts: PromptsDep, inference: InferenceDep) -> PromptPublic:
    """Have this version kept in memory only as long as it is asked for."""
    return await _pin(ref, prompts, inference, pinned=False)


async def _pin(
    ref: str, prompts: PromptsDep, inference: InferenceDep, *, pinned: bool
) -> PromptPublic:
    prompt = await run_in_threadpool(prompts.pin, ref, pinned=pinned)
    await keep_pins(prompts, inference)
    return _with_residency(prompt, inference)


def _with_residency(prompt: PromptRecord, inference: InferenceDep) -> PromptPublic:
    used_at = inference.used_at(prompt)
    residency = ResidencyPublic(
        resident=used_at is not None,
        used_at=None if used_at is None else datetime.fromtimestamp(used_at, UTC),
    )
    return PromptPublic.from_record(prompt).model_copy(update={"residency": residency})


@router.delete("/{ref}", status_code=204, responses=problems(404, 409))
def delete_prompt(ref: str, services: ServicesDep) -> Response:
    """Delete one version of a prompt and its artifact; a bare name must have only one.

    Refused while an alias points to it, or a job that has not ended uses it.
    """
    prompt = services.prompts.delete(ref)
    services.inference.forget(prompt.id)
    services.artifacts.delete(prompt_key(prompt.id))
    return Response(status_code=204)


@router.get("/{ref}/download", response_class=Response, responses={**RESPONSES, **problems(404)})
def download_prompt(ref: str, services: ServicesDep, if_none_match: IfNoneMatch = "") -> Response:
    """The safetensors artifact; `ETag` and `X-Checksum-SHA256` are its hash."""
    prompt = services.prompts.get(ref)
    if prompt.sha256 in if_none_match:
        return not_modified(prompt.sha256)
    data = fetch_artifact(services.artifacts, prompt)
    return attachment(data, f"{prompt.name}-v{prompt.version}.safetensors", prompt.sha256)
