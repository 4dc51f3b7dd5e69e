"""Datasets: upload, import, status, contact sheet."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import sqlalchemy as sa
from fastapi import APIRouter, Depends, Request, Response
from pydantic import TypeAdapter
from pydantic import ValidationError as PydanticError
from starlette.concurrency import run_in_threadpool

from service.auth.authorization import Needs
from service.deps import After, Limit, ServicesDep, reject_repeated_parameters
from service.errors import ContactSheetMissing
from service.http.body_limits import SPOOLED
from service.http.multipart import FormRules, announced_bytes, read_form
from service.idempotency import Attempt, Completion, IdempotencyKey
from service.ingest import remote_fetch
from service.ingest.processor import UPLOAD_FOLDER
from service.route_docs import body, form, problems
from service.routing import MAX_JSON_BYTES, StrictRoute, media_type, parse, public_page, read_json
from service.services import TenantServices
from sharpzo_core.errors import (
    NotFound,
    StorageUnavailable,
    UnsupportedMedia,
    ValidationFailed,
)
from sharpzo_core.ids import Prefix, new_id
from sharpzo_core.records.datasets import UNLABELLED, DatasetRecord, sheet_key
from sharpzo_core.records.keys import Scope
from sharpzo_core.schemas.base import Label, Page
from sharpzo_core.schemas.datasets import DatasetImport, DatasetPublic
from sharpzo_core.storage.archives import check as check_archive
from sharpzo_core.stores.idempotency import fingerprint

MAX_REQUEST_BYTES = 1 << 40  # the archive itself is bounded while it is written
MAX_NAME_BYTES = 1000
MAX_FLAG_BYTES = 5
SHEET_TYPE = "image/jpeg"
_SHEET_HEADERS = {
    "Content-Disposition": 'inline; filename="contact-sheet.jpg"',
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "X-Content-Type-Options": "nosniff",
}

router = APIRouter(
    prefix="/v1/datasets",
    tags=["datasets"],
    route_class=StrictRoute,
    max_body_size=MAX_JSON_BYTES,
    dependencies=[Needs(Scope.JOBS), Depends(reject_repeated_parameters)],
    responses=problems(422, 500, 503),
)

_label: TypeAdapter[str] = TypeAdapter(Label)
_NAME: dict[str, Any] = TypeAdapter(Label).json_schema() | {"required": True}
_FLAGS = {"true": True, "false": False}
_FLAG: dict[str, Any] = {"type": "string", "enum": list(_FLAGS), "default": "false"}


@dataclass(frozen=True)
class _Received:
    name: str
    unlabelled: bool
    meaning: str  #: The fingerprint of the request


@router.post(
    "",
    status_code=202,
    response_model=DatasetPublic,
    max_body_size=MAX_REQUEST_BYTES,
    responses=problems(400, 403, 408, 409, 413, 415, 429, 507),
    openapi_extra=body(
        multipart=form("file", name=_NAME, unlabelled=_FLAG),
        json=DatasetImport.model_json_schema(),
    ),
)
async def create_dataset(
    request: Request, services: ServicesDep, idempotency_key: IdempotencyKey = None
) -> Response:
    """Upload an archive (.zip, .tar, .tar.gz) or import one from a location the operator allows.

    With `unlabelled`, every image is accepted, in any folder. Such a dataset can only be
    classified, and an image that cannot be read gets an error in every result.
    """
    dataset_id = new_id(Prefix.DATASET)
    async with services.idempotency.attempt(idempotency_key) as attempt:
        if attempt.is_new:
            await run_in_threadpool(services.datasets.require_room, announced_bytes(request))
        with services.uploads.receiving(dataset_id):
            received = await _receive_archive(request, services, dataset_id, attempt)
            if replayed := attempt.replay(received.meaning):
                return replayed
            completion = attempt.completion(received.meaning, 202, DatasetPublic.from_record)
            await run_in_threadpool(_store, services, dataset_id, received, completion)
    services.ingest.submit(dataset_id)
    return completion.response()


async def _receive_archive(
    request: Request, services: TenantServices, dataset_id: str, attempt: Attempt
) -> _Received:
    """Write the archive to its upload file; remove the file if it turns out to be useless."""
    try:
        if media_type(request) == "application/json":
            received = await _receive_import(request, services, dataset_id, attempt)
        else:
            received = await _receive_upload(request, services, dataset_id)
        if attempt.replay(received.meaning):
            services.uploads.discard(dataset_id)
        else:
            await run_in_threadpool(check_archive, services.uploads.path(dataset_id))
    except BaseException:  # cancellation too: the client may disconnect
        services.uploads.discard(dataset_id)
        raise
    return received


async def _receive_upload(request: Request, services: TenantServices, dataset_id: str) -> _Received:
    if media_type(request) != "multipart/form-data":
        raise UnsupportedMedia(
            "the body is not multipart/form-data (send it with `file` and `name`)"
        )
    request.scope[SPOOLED] = True
    with services.uploads.open(dataset_id) as file:
        fields = {"name": MAX_NAME_BYTES, UNLABELLED: MAX_FLAG_BYTES}
        rules = FormRules("file", lambda: file, text_fields=fields)
        received = await read_form(request, rules)
        await run_in_threadpool(file.sync)
    name = _check_name(received.fields.get("name"))
    unlabelled = _check_flag(received.fields.get(UNLABELLED, "false"))
    # The content identifies the request: a repeated form has another boundary.
    asked = {"name": name, "sha256": file.sha256} | ({UNLABELLED: True} if unlabelled else {})
    return _Received(name, unlabelled, fingerprint("datasets", asked))


def _check_flag(text: str) -> bool:
    if text not in _FLAGS:
        raise ValidationFailed([(f"/{UNLABELLED}", "must be true or false")])
    return _FLAGS[text]


def _check_name(name: str | None) -> str:
    if name is None:
        raise ValidationFailed([("/name", "a name is required")])
    try:
        return _label.validate_python(name)
    except PydanticError as error:
        raise ValidationFailed([("/name", fault["msg"]) for fault in error.errors()]) from None


async def _receive_import(
    request: Request, services: TenantServices, dataset_id: str, attempt: Attempt
) -> _Received:
    wanted = parse(DatasetImport, await read_json(request, MAX_JSON_BYTES))
    # Without defaults, so that stored keys stay valid when a version adds a field.
    asked = wanted.model_dump(mode="json", exclude_defaults=True)
    received = _Received(wanted.name, wanted.unlabelled, fingerprint("datasets", asked))
    if not attempt.replay(received.meaning):
        await run_in_threadpool(
            remote_fetch.fetch,
            wanted.uri,
            services.settings.dataset_uri_prefixes,
            partial(services.uploads.open, dataset_id),
        )
    return received


def _store(
    services: TenantServices,
    dataset_id: str,
    received: _Received,
    completion: Completion[DatasetRecord],
) -> None:
    def lock_dataset(connection: sa.Connection, dataset: DatasetRecord) -> None:
        services.dataset_leases.lock(connection, dataset.id)
        completion(connection, dataset)

    source: dict[str, Any] = {UPLOAD_FOLDER: services.uploads.identity}
    if received.unlabelled:
        source[UNLABELLED] = True
    try:
        size = services.uploads.path(dataset_id).stat().st_size
        services.datasets.create(received.name, source, dataset_id, lock_dataset, size)
    except StorageUnavailable:
        raise  # the row may have been committed all the same, and then needs its archive
    except BaseException:
        services.uploads.discard(dataset_id)
        raise


@router.get("")
def list_datasets(
    services: ServicesDep, limit: Limit = 20, after: After = None
) -> Page[DatasetPublic]:
    """List datasets, newest first."""
    return public_page(services.datasets.list(limit, after), DatasetPublic.from_record)


@router.get("/{dataset_id}", responses=problems(404))
def get_dataset(dataset_id: str, services: ServicesDep) -> DatasetPublic:
    """Get a dataset. Once it is ready or failed, its report lists the findings."""
    return DatasetPublic.from_record(services.datasets.get(dataset_id))


@router.get(
    "/{dataset_id}/contact-sheet",
    response_class=Response,
    responses={
        200: {"content": {SHEET_TYPE: {"schema": {"type": "string", "format": "binary"}}}},
        **problems(404),
    },
)
def get_contact_sheet(dataset_id: str, services: ServicesDep) -> Response:
    """Get an overview picture with a few images of each class."""
    dataset = services.datasets.get(dataset_id)
    try:
        data = services.artifacts.get_bytes(sheet_key(dataset.id))
    except NotFound:
        raise ContactSheetMissing from None
    return Response(data, media_type=SHEET_TYPE, headers=_SHEET_HEADERS)


@router.delete("/{dataset_id}", status_code=204, responses=problems(404, 409))
def delete_dataset(dataset_id: str, services: ServicesDep) -> Response:
    """Delete a dataset and its files; rejected while a job uses it."""
    services.datasets.delete(dataset_id)
    services.ingest.forget(dataset_id)
    return Response(status_code=204)
