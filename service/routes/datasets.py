"""Datasets: archives in, checked images out."""

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from fastapi import APIRouter, Depends, Request, Response
from pydantic import TypeAdapter
from pydantic import ValidationError as PydanticError
from starlette.concurrency import run_in_threadpool

from service.auth.authorization import Needs
from service.deps import After, DatasetsDep, Limit, ServicesDep, reject_repeated_parameters
from service.errors import ContactSheetMissing
from service.http.body_limits import SPOOLED
from service.http.multipart import FormRules, announced_bytes, read_form
from service.idempotency import Attempt, Completion, IdempotencyKey
from service.ingest import remote_fetch
from service.ingest.processor import UPLOAD_FOLDER
from service.route_docs import body, form, problems
from service.routing import MAX_JSON_BYTES, StrictRoute, media_type, parse, read_json
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
    """An archive that lies in its upload file."""

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
    """Upload an archive (.zip, .tar, .tar.gz), or import one from a place the operator allows.

    With `unlabelled`, every image is taken, in whatever folder it is; such a dataset can be
    classified, no more, and images that cannot be read have their error in every result.
    """
    dataset_id = new_id(Prefix.DATASET)
    async with services.idempotency.attempt(idempotency_key) as attempt:
        if attempt.is_new:
            await run_in_threadpool(services.datasets.require_room, announced_bytes(request))
        with services.uploads.receiving(dataset_id):
            received = await _take_in(request, services, dataset_id, attempt)
            if replayed := attempt.replay(received.meaning):
                return replayed
            completion = attempt.completion(received.meaning, 202, DatasetPublic.from_record)
            await run_in_threadpool(_store, services, dataset_id, received, completion)
    services.ingest.submit(dataset_id)
    return completion.response()


async def _take_in(
    request: Request, services: TenantServices, dataset_id: str, attempt: Attempt
) -> _Received:
    """Bring the archive into its upload file; a file that is of no use is removed."""
    try:
        if media_type(request) == "application/json":
            received = await _import(request, services, dataset_id, attempt)
        else:
            received = await _receive(request, services, dataset_id)
        if attempt.replay(received.meaning):
            services.uploads.discard(dataset_id)
        else:
            await run_in_threadpool(check_archive, services.uploads.path(dataset_id))
    except BaseException:  # also when the client goes away in the middle
        services.uploads.discard(dataset_id)
        raise
    return received


async def _receive(request: Request, services: TenantServices, dataset_id: str) -> _Received:
    """Stream the upload to its file."""
    if media_type(request) != "multipart/form-data":
        raise UnsupportedMedia("send multipart/form-data with `file` and `name`")
    request.scope[SPOOLED] = True
    with services.uploads.open(dataset_id) as file:
        fields = {"name": MAX_NAME_BYTES, UNLABELLED: MAX_FLAG_BYTES}
        rules = FormRules("file", lambda: file, text_fields=fields)
        received = await read_form(request, rules)
        await run_in_threadpool(file.sync)
    name = _check_name(received.fields.get("name"))
    unlabelled = _check_flag(received.fields.get(UNLABELLED, "false"))
    # By its content: a repeated multipart request has other boundaries.
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


async def _import(
    request: Request, services: TenantServices, dataset_id: str, attempt: Attempt
) -> _Received:
    """Copy the archive from where the request says, unless that was done before."""
    wanted = parse(DatasetImport, await read_json(request, MAX_JSON_BYTES))
    # What a request of earlier versions said, it still means.
    asked = wanted.model_dump(mode="json", exclude_defaults=True)
    received = _Received(wanted.name, wanted.unlabelled, fingerprint("datasets", asked))
    if not attempt.replay(received.meaning):
        await run_in_threadpool(remote_fetch.fetch, services, wanted.uri, dataset_id)
    return received


def _store(
    services: TenantServices,
    dataset_id: str,
    received: _Received,
    completion: Completion[DatasetRecord],
) -> None:
    """Make the dataset durable, and lease it here."""

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
        raise  # the dataset may be stored all the same, and then needs its archive
    except BaseException:
        services.uploads.discard(dataset_id)
        raise


@router.get("")
def list_datasets(
    datasets: DatasetsDep, limit: Limit = 20, after: After = None
) -> Page[DatasetPublic]:
    """A page of datasets, newest first."""
    page = datasets.list(limit, after)
    data = [DatasetPublic.from_record(dataset) for dataset in page.items]
    return Page(data=data, has_more=page.has_more, next=page.next)


@router.get("/{dataset_id}", responses=problems(404))
def get_dataset(dataset_id: str, datasets: DatasetsDep) -> DatasetPublic:
    """One dataset; when it is ready or failed, its report says what was found."""
    return DatasetPublic.from_record(datasets.get(dataset_id))


@router.get(
    "/{dataset_id}/contact-sheet",
    response_class=Response,
    responses={
        200: {"content": {SHEET_TYPE: {"schema": {"type": "string", "format": "binary"}}}},
        **problems(404),
    },
)
def get_contact_sheet(dataset_id: str, services: ServicesDep) -> Response:
    """A picture of a few images of each class, made when the dataset was read."""
    dataset = services.datasets.get(dataset_id)
    try:
        data = services.artifacts.get_bytes(sheet_key(dataset.id))
    except NotFound:
        raise ContactSheetMissing from None
    return Response(data, media_type=SHEET_TYPE, headers=_SHEET_HEADERS)


@router.delete("/{dataset_id}", status_code=204, responses=problems(404, 409))
def delete_dataset(dataset_id: str, services: ServicesDep) -> Response:
    """Delete a dataset and its files; refused while a job needs it."""
    services.datasets.delete(dataset_id)
    services.ingest.forget(dataset_id)
    return Response(status_code=204)
