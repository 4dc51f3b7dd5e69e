"""Jobs that apply a prompt to a dataset, and their results."""

from collections.abc import Callable, Iterator
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Depends, Query, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from service.auth.authorization import Needs
from service.deps import AcceptHeader, ServicesDep, reject_repeated_parameters
from service.errors import ResultsMissing
from service.idempotency import IdempotencyKey
from service.route_docs import problems
from service.routing import MAX_JSON_BYTES, StrictRoute
from service.services import TenantServices
from sharpzo_core.errors import StateConflict
from sharpzo_core.records.jobs import Job, JobKind, JobStatus
from sharpzo_core.records.keys import Scope
from sharpzo_core.records.prompts import PromptRecord
from sharpzo_core.records.results import ResultForm, results_key
from sharpzo_core.schemas.jobs import ApplyRequest, BatchCreate, EvaluationCreate, JobPublic
from sharpzo_core.storage.artifact_store import ArtifactStore
from sharpzo_core.stores.idempotency import fingerprint
from sharpzo_core.submission.prompt_jobs import PromptJobSubmitter

CSV = "text/csv"
NDJSON = "application/x-ndjson"
MEDIA: dict[ResultForm, str] = {"jsonl": NDJSON, "csv": f"{CSV}; charset=utf-8"}
CHUNK = 256 << 10  # bytes of results in memory at a time

router = APIRouter(
    prefix="/v1",
    tags=["evaluation and batches"],
    route_class=StrictRoute,
    max_body_size=MAX_JSON_BYTES,
    dependencies=[Needs(Scope.JOBS), Depends(reject_repeated_parameters)],
    responses=problems(422, 500, 503),
)

InTransaction = Callable[[sa.Connection, Job], None]
_CREATED = problems(400, 404, 408, 409, 413, 415, 429)
_RESULTS: dict[str, Any] = {
    "content": {kind: {"schema": {"type": "string"}} for kind in (NDJSON, CSV)}
}


@router.post(
    "/prompts/{ref}/evaluate", status_code=202, response_model=JobPublic, responses=_CREATED
)
async def evaluate(
    ref: str,
    request: EvaluationCreate,
    services: ServicesDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Submit a job that evaluates a prompt on a split of a dataset; its report has the metrics."""

    def submit(prompt: PromptRecord, in_transaction: InTransaction) -> Job:
        return _submitter(services).submit_evaluation(prompt, request, in_transaction)

    return await _submit("evaluations", ref, request, submit, services, idempotency_key)


@router.post("/prompts/{ref}/batch", status_code=202, response_model=JobPublic, responses=_CREATED)
async def batch(
    ref: str,
    request: BatchCreate,
    services: ServicesDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Submit a job that classifies the images of a dataset; its results have a line for each."""

    def submit(prompt: PromptRecord, in_transaction: InTransaction) -> Job:
        return _submitter(services).submit_classification(prompt, request, in_transaction)

    return await _submit("batches", ref, request, submit, services, idempotency_key)


async def _submit(
    endpoint: str,
    ref: str,
    request: ApplyRequest,
    submit: Callable[[PromptRecord, InTransaction], Job],
    services: TenantServices,
    idempotency_key: str | None,
) -> Response:
    asked = request.model_dump(mode="json", exclude_unset=True)
    meaning = fingerprint(endpoint, {"prompt": ref, **asked})
    async with services.idempotency.attempt(idempotency_key) as attempt:
        if replayed := attempt.replay(meaning):
            return replayed
        # The version is resolved once: one published meanwhile does not mix in.
        prompt = await run_in_threadpool(services.prompts.get, ref)
        completion = attempt.completion(meaning, 202, JobPublic.from_record)
        job = await run_in_threadpool(submit, prompt, completion)
    services.announce(job)
    return completion.response()


def _submitter(services: TenantServices) -> PromptJobSubmitter:
    return PromptJobSubmitter(
        services.settings,
        services.jobs,
        services.datasets,
        services.origin,
    )


@router.get(
    "/jobs/{job_id}/results",
    tags=["jobs"],
    response_class=Response,
    responses={200: _RESULTS, **problems(404, 409)},
)
def get_results(
    job_id: str,
    services: ServicesDep,
    accept: AcceptHeader = "",
    form: Annotated[
        ResultForm | None,
        Query(alias="format", description="Takes precedence over the Accept header."),
    ] = None,
) -> Response:
    """Get the results of a batch job: one JSON line per image in dataset order, or CSV."""
    form = form or ("csv" if CSV in accept else "jsonl")
    job = services.jobs.get(job_id)
    if job.kind is not JobKind.CLASSIFICATION:
        raise ResultsMissing(f"the job's kind is {job.kind}: only classification jobs have results")
    if job.status is not JobStatus.SUCCEEDED or job.result_folder is None:
        raise StateConflict(f"the job is {job.status}: results exist once it has succeeded")
    key = results_key(job.id, job.result_folder, form)
    headers = {
        "Content-Disposition": f'attachment; filename="{job.id}.{form}"',
        "Vary": "Accept",
    }
    if not services.artifacts.exists(key):
        raise ResultsMissing(f"the {form} results of this job are missing")
    chunks = _chunks(services.artifacts, key)
    return StreamingResponse(chunks, media_type=MEDIA[form], headers=headers)


def _chunks(artifacts: ArtifactStore, key: str) -> Iterator[bytes]:
    with artifacts.open(key) as file:
        while chunk := file.read(CHUNK):
            yield chunk
