"""Jobs: submit a tuning job, or finish it early; watch, pause, resume and cancel any job."""

import csv
import io
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Query, Response
from fastapi.sse import EventSourceResponse
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema
from starlette.concurrency import run_in_threadpool

from service.auth.authorization import Needs
from service.deps import (
    MAX_SEQ,
    AcceptHeader,
    After,
    Limit,
    ServicesDep,
    reject_repeated_parameters,
)
from service.errors import ReportMissing
from service.idempotency import IdempotencyKey
from service.route_docs import problems
from service.routing import MAX_JSON_BYTES, StrictRoute, public_page
from service.streams.job_events import EVENT_STREAM, stream_events
from service.streams.metric_stream import stream_steps
from sharpzo_core.errors import NotFound
from sharpzo_core.records.jobs import Job, JobKind, JobStatus
from sharpzo_core.records.keys import Scope
from sharpzo_core.records.prompts import report_key
from sharpzo_core.records.results import evaluation_key
from sharpzo_core.schemas.base import Page
from sharpzo_core.schemas.jobs import EventPublic, JobCreate, JobPublic, StepPublic
from sharpzo_core.stores.idempotency import fingerprint
from sharpzo_core.stores.job_store import MAX_STEPS, JobStore
from sharpzo_core.submission.tuning import submit_job

CSV = "text/csv"
JSON = "application/json"
HTML = "text/html"
#: A report is one self-contained file: the browser must run and fetch nothing for it.
_REPORT_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:",
    "Vary": "Accept",
}

router = APIRouter(
    prefix="/v1/jobs",
    tags=["jobs"],
    route_class=StrictRoute,
    max_body_size=MAX_JSON_BYTES,
    dependencies=[Needs(Scope.JOBS), Depends(reject_repeated_parameters)],
    responses=problems(422, 500, 503),
)

Step = Annotated[int, Query(ge=0, le=2**31)]
Seq = Annotated[int, Query(ge=0, le=MAX_SEQ, description="Only events after this `seq`.")]
_Seq = Annotated[int, Field(ge=0, le=MAX_SEQ)]
LastEventId = Annotated[_Seq | SkipJsonSchema[None], Header()]
_STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_EVENTS: dict[str, Any] = {"content": {EVENT_STREAM: {"schema": {"type": "string"}}}}
_METRICS: dict[str, Any] = {
    "content": {media: {"schema": {"type": "string"}} for media in (CSV, EVENT_STREAM)}
}
_REPORT: dict[str, Any] = {
    "content": {HTML: {"schema": {"type": "string"}}, JSON: {"schema": {"type": "object"}}}
}


@router.post(
    "",
    status_code=201,
    response_model=JobPublic,
    responses=problems(400, 404, 408, 409, 413, 415, 429),
)
async def create_job(
    request: JobCreate,
    services: ServicesDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Submit a job that tunes a prompt on a dataset."""
    settings = services.settings
    meaning = fingerprint("jobs", request.model_dump(mode="json", exclude_unset=True))
    async with services.idempotency.attempt(idempotency_key) as attempt:
        if replayed := attempt.replay(meaning):
            return replayed
        spec = settings.backbone(request.backbone)
        if spec.name not in settings.backbone_specs:
            await services.inference.check_offered(spec)
        completion = attempt.completion(meaning, 201, JobPublic.from_record)
        job = await run_in_threadpool(
            submit_job,
            request,
            settings=settings,
            jobs=services.jobs,
            datasets=services.datasets,
            artifacts=services.artifacts,
            origin=services.origin,
            in_transaction=completion,
        )
    services.announce(job)
    return completion.response()


@router.get("")
def list_jobs(
    services: ServicesDep, limit: Limit = 20, after: After = None, kind: JobKind | None = None
) -> Page[JobPublic]:
    """List jobs, newest first; `kind` selects one kind."""
    return public_page(services.jobs.list(limit, after, kind), JobPublic.from_record)


@router.get("/{job_id}", responses=problems(404))
def get_job(job_id: str, services: ServicesDep) -> JobPublic:
    """Get a job."""
    return JobPublic.from_record(services.jobs.get(job_id))


@router.delete("/{job_id}", status_code=204, responses=problems(404, 409))
def delete_job(job_id: str, services: ServicesDep) -> Response:
    """Delete a finished job with its report, results and checkpoints; its prompt is kept."""
    services.jobs.delete(job_id)
    services.artifacts.delete_prefix(f"jobs/{job_id}")
    return Response(status_code=204)


@router.post("/{job_id}/pause", status_code=202, responses=problems(404, 409))
def pause_job(job_id: str, services: ServicesDep) -> JobPublic:
    """Pause a job: save a checkpoint and free its worker."""
    return JobPublic.from_record(services.jobs.request_pause(job_id, services.origin))


@router.post("/{job_id}/resume", status_code=202, responses=problems(404, 409))
def resume_job(job_id: str, services: ServicesDep) -> JobPublic:
    """Resume a paused, failed or cancelled job from its last checkpoint."""
    job = services.jobs.request_resume(job_id, services.origin)
    if job.status is JobStatus.QUEUED:
        services.notify(job.id)
    return JobPublic.from_record(job)


@router.post("/{job_id}/cancel", status_code=202, responses=problems(404, 409))
def cancel_job(job_id: str, services: ServicesDep) -> JobPublic:
    """Cancel a job; a running job saves a checkpoint first. Repeating this changes nothing."""
    return JobPublic.from_record(services.jobs.request_cancel(job_id, services.origin))


@router.post("/{job_id}/finish", status_code=202, responses=problems(404, 409))
def finish_job(job_id: str, services: ServicesDep) -> JobPublic:
    """End a tuning job's search early: it succeeds with the best prompt so far.

    A paused job is queued to finish. Repeating this changes nothing.
    """
    job = services.jobs.request_finish(job_id, services.origin)
    if job.status is JobStatus.QUEUED:
        services.notify(job.id)
    return JobPublic.from_record(job)


@router.get(
    "/{job_id}/events",
    response_model=Page[EventPublic],
    responses={200: _EVENTS, **problems(404)},
)
async def get_events(
    job_id: str,
    services: ServicesDep,
    accept: AcceptHeader = "",
    last_event_id: LastEventId = None,
    after: Seq = 0,
    limit: Limit = 100,
) -> Any:  # noqa: ANN401 - a page or a stream
    """List a job's events; with `Accept: text/event-stream`, stream them as they happen.

    A stream starts after `Last-Event-ID`, or else after `after`, and ends with the job's last
    event.
    """
    if EVENT_STREAM not in accept:
        return await run_in_threadpool(_events_page, services.jobs, job_id, after, limit)
    begin = after if last_event_id is None else last_event_id
    await run_in_threadpool(services.jobs.get, job_id)  # a 404 must come before the stream
    return EventSourceResponse(
        stream_events(services.jobs, job_id, begin, services.stopping, services.is_still_admitted),
        headers=_STREAM_HEADERS,
    )


def _events_page(jobs: JobStore, job_id: str, after: int, limit: int) -> Page[EventPublic]:
    found = jobs.events(job_id, after, limit + 1)
    events = [EventPublic.from_record(event) for event in found[:limit]]
    more = len(found) > limit
    return Page(data=events, has_more=more, next=str(events[-1].seq) if more else None)


@router.get(
    "/{job_id}/metrics",
    response_model=Page[StepPublic],
    responses={200: _METRICS, **problems(404)},
)
async def get_metrics(
    job_id: str,
    services: ServicesDep,
    accept: AcceptHeader = "",
    from_step: Step = 0,
    to_step: Annotated[int | None, Query(ge=0, le=2**31)] = None,
    resolution: Annotated[int, Query(ge=1, le=MAX_STEPS)] = 1000,
) -> Any:  # noqa: ANN401 - JSON, CSV or a stream
    """Get the recorded steps, thinned evenly to `resolution`; as a table with `Accept: text/csv`.

    Each run of steps is thinned to its last one; values it did not measure come from the nearest
    earlier step. With `Accept: text/event-stream`, steps are streamed until the job ends: `job`
    is sent when the job changes, `series` replaces all earlier steps, `steps` adds to them.
    """
    if EVENT_STREAM in accept:
        await run_in_threadpool(services.jobs.get, job_id)  # a 404 must come before the stream
        return EventSourceResponse(
            stream_steps(
                services.jobs, job_id, resolution, services.stopping, services.is_still_admitted
            ),
            headers=_STREAM_HEADERS,
        )
    found = await run_in_threadpool(services.jobs.steps, job_id, from_step, to_step, resolution)
    steps = [StepPublic.from_record(step) for step in found]
    if CSV in accept:
        return Response(_csv(steps), media_type=f"{CSV}; charset=utf-8")
    return Page(data=steps, has_more=False, next=None)


@router.get(
    "/{job_id}/report",
    response_class=Response,
    responses={200: _REPORT, **problems(404)},
)
def get_report(job_id: str, services: ServicesDep, accept: AcceptHeader = "") -> Response:
    """Get the report of a tuning or evaluation job as HTML, or with `Accept: application/json`."""
    job = services.jobs.get(job_id)
    if job.status is not JobStatus.SUCCEEDED:
        raise ReportMissing(f"the job is {job.status}: only a succeeded job has a report")
    form: Literal["html", "json"] = "json" if JSON in accept else "html"
    try:
        data = services.artifacts.get_bytes(_report_key(job, form))
    except NotFound:
        raise ReportMissing(f"the job has no {form} report") from None
    media = JSON if form == "json" else f"{HTML}; charset=utf-8"
    return Response(data, media_type=media, headers=_REPORT_HEADERS)


def _report_key(job: Job, form: Literal["html", "json"]) -> str:
    """The artifact key of the job's report.

    Raises:
        ReportMissing: jobs of this kind have no report.
    """
    if job.kind is JobKind.TUNING:
        return report_key(job.id, form)
    if job.kind is JobKind.EVALUATION and job.result_folder is not None:
        return evaluation_key(job.id, job.result_folder, form)
    raise ReportMissing("a classification job has no report (get its results instead)")


def _csv(steps: list[StepPublic]) -> str:
    table = io.StringIO()
    writer = csv.DictWriter(table, list(StepPublic.model_fields), lineterminator="\n")
    writer.writeheader()
    writer.writerows(step.model_dump(mode="json") for step in steps)
    return table.getvalue()
