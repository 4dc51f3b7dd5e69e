"""Jobs: submit one that tunes; watch, pause, resume, cancel any."""

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
    InferenceDep,
    JobsDep,
    Limit,
    ServicesDep,
    SettingsDep,
    reject_repeated_parameters,
)
from service.errors import ReportMissing
from service.idempotency import IdempotencyKey
from service.route_docs import problems
from service.routing import MAX_JSON_BYTES, StrictRoute
from service.services import TenantServices
from service.streams.job_events import EVENT_STREAM, stream_events
from service.streams.metric_stream import stream_steps
from sharpzo_core.errors import NotFound
from sharpzo_core.records.jobs import Job, JobKind, JobStatus, Origin
from sharpzo_core.records.keys import Scope
from sharpzo_core.records.prompts import report_key
from sharpzo_core.records.results import evaluation_key
from sharpzo_core.schemas.base import Page
from sharpzo_core.schemas.jobs import EventPublic, JobCreate, JobPublic, StepPublic
from sharpzo_core.stores.idempotency import fingerprint
from sharpzo_core.stores.job_store import MAX_STEPS
from sharpzo_core.submission.tuning import submit_job

CSV = "text/csv"
JSON = "application/json"
HTML = "text/html"
#: A report is one file: the browser is to run nothing and to fetch nothing on its behalf.
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
    settings: SettingsDep,
    inference: InferenceDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Tune a prompt on a dataset that is ready."""
    meaning = fingerprint("jobs", request.model_dump(mode="json", exclude_unset=True))
    async with services.idempotency.attempt(idempotency_key) as attempt:
        if replayed := attempt.replay(meaning):
            return replayed
        spec = settings.backbone(request.backbone)
        if spec.name not in settings.backbone_specs:
            await inference.check_offered(spec)
        completion = attempt.completion(meaning, 201, JobPublic.from_record)
        job = await run_in_threadpool(
            submit_job,
            request,
            settings=settings,
            jobs=services.jobs,
            datasets=services.datasets,
            artifacts=services.artifacts,
            origin=_origin(services),
            in_transaction=completion,
        )
    services.accept(job)
    return completion.response()


@router.get("")
def list_jobs(
    jobs: JobsDep, limit: Limit = 20, after: After = None, kind: JobKind | None = None
) -> Page[JobPublic]:
    """A page of jobs, newest first; with `kind` those of one kind."""
    page = jobs.list(limit, after, kind)
    data = [JobPublic.from_record(job) for job in page.items]
    return Page(data=data, has_more=page.has_more, next=page.next)


@router.get("/{job_id}", responses=problems(404))
def get_job(job_id: str, jobs: JobsDep) -> JobPublic:
    """One job."""
    return JobPublic.from_record(jobs.get(job_id))


@router.delete("/{job_id}", status_code=204, responses=problems(404, 409))
def delete_job(job_id: str, services: ServicesDep) -> Response:
    """Delete a job that has ended, with its report, results and checkpoints; its prompt stays."""
    services.jobs.delete(job_id)
    services.artifacts.delete_prefix(f"jobs/{job_id}")
    return Response(status_code=204)


@router.post("/{job_id}/pause", status_code=202, responses=problems(404, 409))
def pause_job(job_id: str, services: ServicesDep) -> JobPublic:
    """Put a job by: a checkpoint is saved, and its worker is free for others."""
    return JobPublic.from_record(services.jobs.request_pause(job_id, _origin(services)))


@router.post("/{job_id}/resume", status_code=202, responses=problems(404, 409))
def resume_job(job_id: str, services: ServicesDep) -> JobPublic:
    """Go on with a paused, failed or cancelled job, from its last checkpoint."""
    job = services.jobs.request_resume(job_id, _origin(services))
    if job.status is JobStatus.QUEUED:
        services.notify(job.id)
    return JobPublic.from_record(job)


@router.post("/{job_id}/cancel", status_code=202, responses=problems(404, 409))
def cancel_job(job_id: str, services: ServicesDep) -> JobPublic:
    """Stop a job; a running one saves a checkpoint first. Asking again changes nothing."""
    return JobPublic.from_record(services.jobs.request_cancel(job_id, _origin(services)))


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
    """The job's history: a page, or with `Accept: text/event-stream` all of it as it happens.

    A stream begins after `Last-Event-ID`, or else after `after`, and ends after the last event
    of the job.
    """
    if EVENT_STREAM not in accept:
        return await run_in_threadpool(_events_page, services.jobs, job_id, after, limit)
    begin = after if last_event_id is None else last_event_id
    await run_in_threadpool(services.jobs.get, job_id)  # a 404 must come before the stream
    return EventSourceResponse(
        stream_events(services.jobs, job_id, begin, services.stopping, services.still_admitted),
        headers=_STREAM_HEADERS,
    )


def _events_page(jobs: JobsDep, job_id: str, after: int, limit: int) -> Page[EventPublic]:
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
    """The recorded steps, thinned evenly to `resolution`; `Accept: text/csv` for a table.

    Of a run of steps that is thinned to one, that is the last; what it did not measure is taken
    from the nearest one before it. With `Accept: text/event-stream`, all steps as they come: a
    message `job` whenever the job has changed, `series` (replaces all steps sent before) and
    `steps` (follow them), until the job has ended.
    """
    if EVENT_STREAM in accept:
        await run_in_threadpool(services.jobs.get, job_id)  # a 404 must come before the stream
        return EventSourceResponse(
            stream_steps(
                services.jobs, job_id, resolution, services.stopping, services.still_admitted
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
    """What a run did or an evaluation found, as a page; with `Accept: application/json` as JSON."""
    job = services.jobs.get(job_id)
    if job.status is not JobStatus.SUCCEEDED:
        raise ReportMissing(f"the job is {job.status}: only one that has succeeded has a report")
    form: Literal["html", "json"] = "json" if JSON in accept else "html"
    try:
        data = services.artifacts.get_bytes(_report_key(job, form))
    except NotFound:
        raise ReportMissing(f"no report of this job is kept as {form}") from None
    media = JSON if form == "json" else f"{HTML}; charset=utf-8"
    return Response(data, media_type=media, headers=_REPORT_HEADERS)


def _report_key(job: Job, form: Literal["html", "json"]) -> str:
    """Where the job's report is.

    Raises:
        ReportMissing: a job of this kind has none.
    """
    if job.kind is JobKind.TUNING:
        return report_key(job.id, form)
    if job.kind is JobKind.EVALUATION and job.result_folder is not None:
        return evaluation_key(job.id, job.result_folder, form)
    raise ReportMissing("a classification has no report: ask for its results")


def _csv(steps: list[StepPublic]) -> str:
    table = io.StringIO()
    writer = csv.DictWriter(table, list(StepPublic.model_fields), lineterminator="\n")
    writer.writeheader()
    writer.writerows(step.model_dump(mode="json") for step in steps)
    return table.getvalue()


def _origin(services: TenantServices) -> Origin:
    return Origin(services.caller.key_id, services.request_id)
