"""Every move between statuses, legal or not, on the real stores."""

from collections.abc import Callable

import pytest

from sharpzo_core.database.engine import writing
from sharpzo_core.database.tables import jobs
from sharpzo_core.errors import CoreError, LeaseLost, NotFound, StateConflict
from sharpzo_core.ids import Prefix, new_id
from sharpzo_core.records.jobs import (
    REQUESTS,
    TERMINAL,
    TERMINAL_EVENTS,
    TRANSITIONS,
    EventType,
    Job,
    JobKind,
    JobStatus,
    Request,
)
from sharpzo_core.records.prompts import NewPrompt
from sharpzo_core.stores.job_leases import lease_of
from sharpzo_core.stores.job_rows import NewEvent, change
from tests.core.conftest import Stores


def prompt_of(job: Job) -> NewPrompt:
    return NewPrompt(
        id=new_id(Prefix.PROMPT),
        name=job.name or job.id,
        job_id=job.id,
        backbone={"name": "tiny", "pretrained": None, "fingerprint": "f"},
        classes=("cat", "dog"),
        metrics={"test_accuracy": 0.5},
        sha256="1" * 64,
    )


def queued(stores: Stores) -> Job:
    return stores.job()


def running(stores: Stores) -> Job:
    return stores.claimed()


def pausing(stores: Stores) -> Job:
    job = stores.claimed()
    stores.jobs.request_pause(job.id)
    return job


def paused(stores: Stores) -> Job:
    job = pausing(stores)
    stores.leases.release(lease_of(job))
    return job


def cancelling(stores: Stores) -> Job:
    job = stores.claimed()
    stores.jobs.request_cancel(job.id)
    return job


def succeeded(stores: Stores) -> Job:
    job = stores.claimed()
    stores.leases.succeed(lease_of(job), prompt_of(job), {})
    return job


def failed(stores: Stores) -> Job:
    job = stores.claimed()
    stores.leases.fail(lease_of(job), "code", "message")
    return job


def cancelled(stores: Stores) -> Job:
    job = cancelling(stores)
    stores.leases.release(lease_of(job))
    return job


AT: dict[JobStatus, Callable[[Stores], Job]] = {
    JobStatus.QUEUED: queued,
    JobStatus.RUNNING: running,
    JobStatus.PAUSING: pausing,
    JobStatus.PAUSED: paused,
    JobStatus.CANCELLING: cancelling,
    JobStatus.SUCCEEDED: succeeded,
    JobStatus.FAILED: failed,
    JobStatus.CANCELLED: cancelled,
}

#: What can be asked for, and where it leads.
MOVES: dict[str, Callable[[Stores, Job], object]] = {
    "claim": lambda stores, job: stores.leases.claim(job.id, "wrk_b"),
    "request_pause": lambda stores, job: stores.jobs.request_pause(job.id),
    "request_resume": lambda stores, job: stores.jobs.request_resume(job.id),
    "request_cancel": lambda stores, job: stores.jobs.request_cancel(job.id),
    "succeed": lambda stores, job: stores.leases.succeed(lease_of(job), prompt_of(job), {}),
    "complete": lambda stores, job: stores.leases.complete(lease_of(job), "folder", {}),
    "fail": lambda stores, job: stores.leases.fail(lease_of(job), "code", "message"),
    "release": lambda stores, job: stores.leases.release(lease_of(job)),
    "recover": lambda stores, _: [stores.leases.recover(held) for held in stores.leases.held()],
    "delete": lambda stores, job: stores.jobs.delete(job.id),
}

LEADS = {
    (JobStatus.QUEUED, "claim"): JobStatus.RUNNING,
    (JobStatus.QUEUED, "request_pause"): JobStatus.PAUSED,
    (JobStatus.QUEUED, "request_cancel"): JobStatus.CANCELLED,
    (JobStatus.RUNNING, "request_pause"): JobStatus.PAUSING,
    (JobStatus.RUNNING, "request_cancel"): JobStatus.CANCELLING,
    (JobStatus.RUNNING, "succeed"): JobStatus.SUCCEEDED,
    (JobStatus.RUNNING, "complete"): JobStatus.SUCCEEDED,
    (JobStatus.RUNNING, "fail"): JobStatus.FAILED,
    (JobStatus.RUNNING, "release"): JobStatus.QUEUED,
    (JobStatus.RUNNING, "recover"): JobStatus.QUEUED,
    (JobStatus.PAUSING, "request_resume"): JobStatus.RUNNING,
    (JobStatus.PAUSING, "request_cancel"): JobStatus.CANCELLING,
    (JobStatus.PAUSING, "succeed"): JobStatus.SUCCEEDED,
    (JobStatus.PAUSING, "complete"): JobStatus.SUCCEEDED,
    (JobStatus.PAUSING, "fail"): JobStatus.FAILED,
    (JobStatus.PAUSING, "release"): JobStatus.PAUSED,
    (JobStatus.PAUSING, "recover"): JobStatus.PAUSED,
    (JobStatus.PAUSED, "request_resume"): JobStatus.QUEUED,
    (JobStatus.PAUSED, "request_cancel"): JobStatus.CANCELLED,
    (JobStatus.CANCELLING, "release"): JobStatus.CANCELLED,
    (JobStatus.CANCELLING, "recover"): JobStatus.CANCELLED,
    (JobStatus.CANCELLING, "fail"): JobStatus.FAILED,
    (JobStatus.CANCELLING, "succeed"): JobStatus.CANCELLED,  # and nothing is published
    (JobStatus.CANCELLING, "complete"): JobStatus.CANCELLED,  # and no results are named
    (JobStatus.FAILED, "request_resume"): JobStatus.QUEUED,
    (JobStatus.CANCELLED, "request_resume"): JobStatus.QUEUED,
}
#: A recovery tells of the lost worker too.
EVENTS = {"recover": 2}


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("status", JobStatus)
def test_a_move_leads_where_the_table_says_or_changes_nothing(
    stores: Stores, status: JobStatus, move: str
) -> None:
    job = AT[status](stores)
    assert stores.jobs.get(job.id).status is status
    before = stores.jobs.events(job.id)
    try:
        MOVES[move](stores, job)
    except CoreError as error:
        assert isinstance(error, StateConflict | LeaseLost)  # noqa: PT017 - either is right
    if move == "delete" and status in TERMINAL:
        assert stores.jobs.list().items == []
        return
    now = stores.jobs.get(job.id).status
    assert now is LEADS.get((status, move), status)
    if now is not status:
        assert now in TRANSITIONS[status]
        assert len(stores.jobs.events(job.id)) == len(before) + EVENTS.get(move, 1)


@pytest.mark.parametrize("target", JobStatus)
@pytest.mark.parametrize("status", JobStatus)
def test_a_status_is_written_where_the_table_allows_it_and_nowhere_else(
    stores: Stores, status: JobStatus, target: JobStatus
) -> None:
    """Whoever writes, and whatever they believed the job to be."""
    job = stores.jobs.get(AT[status](stores).id)
    event = NewEvent(EventType.MESSAGE, "a move")
    with writing(stores.engine) as connection:
        moved = change(connection, jobs.c.id == job.id, event, stores.clock.now, status=target)
    now = stores.jobs.get(job.id)
    if target in TRANSITIONS[status]:
        assert moved == now
        assert now.status is target
        assert stores.jobs.events(job.id)[-1].data == {"status": target}
    else:
        assert moved is None
        assert now == job


def test_every_legal_move_is_tried() -> None:
    tried = {(status, target) for (status, _), target in LEADS.items()}
    assert tried == {(status, target) for status in JobStatus for target in TRANSITIONS[status]}


@pytest.mark.parametrize("status", sorted(TERMINAL))
def test_the_last_event_of_a_finished_job_is_terminal(stores: Stores, status: JobStatus) -> None:
    job = AT[status](stores)
    events = stores.jobs.events(job.id)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [event.type in TERMINAL_EVENTS for event in events] == [False] * (len(events) - 1) + [
        True
    ]
    assert stores.jobs.get(job.id).finished_at is not None
    assert stores.jobs.get(job.id).lease_token is None


@pytest.mark.parametrize("request_", Request)
@pytest.mark.parametrize("status", JobStatus)
def test_a_request_may_be_repeated(stores: Stores, status: JobStatus, request_: Request) -> None:
    job = AT[status](stores)
    ask = getattr(stores.jobs, f"request_{request_}")
    if status not in REQUESTS[request_]:
        with pytest.raises(StateConflict, match=status):
            ask(job.id)
        return
    first = ask(job.id)
    assert first.status is REQUESTS[request_][status]
    if first.status in REQUESTS[request_]:
        assert ask(job.id) == first


@pytest.mark.parametrize("status", [JobStatus.PAUSED, JobStatus.FAILED, JobStatus.CANCELLED])
def test_a_resumed_job_forgets_how_it_ended(stores: Stores, status: JobStatus) -> None:
    job = stores.jobs.request_resume(AT[status](stores).id)
    assert (job.error_code, job.error_message, job.finished_at, job.losses) == (None, None, None, 0)
    assert [waiting.id for waiting in stores.leases.waiting(1)] == [job.id]
    again = stores.leases.claim(job.id, "wrk_b")
    assert again is not None
    assert again.attempt == (2 if status is JobStatus.FAILED else 1 + (status == "cancelled"))


def test_a_job_whose_dataset_is_gone_is_not_resumed(stores: Stores) -> None:
    job = failed(stores)
    stores.datasets.delete(job.dataset_id)
    with pytest.raises(NotFound):
        stores.jobs.request_resume(job.id)
    assert stores.jobs.get(job.id).status is JobStatus.FAILED


def test_a_paused_job_keeps_its_dataset(stores: Stores) -> None:
    job = paused(stores)
    with pytest.raises(StateConflict):
        stores.datasets.delete(job.dataset_id)


@pytest.mark.parametrize("kind", [JobKind.EVALUATION, JobKind.CLASSIFICATION])
def test_a_job_that_applies_a_prompt_names_its_results_once_it_has_ended(
    stores: Stores, kind: JobKind
) -> None:
    prompt = stores.prompts.publish(prompt_of(stores.job(name="pets")))
    job = stores.claimed(kind=kind, prompt_id=prompt.id)
    assert (job.kind, job.format, job.prompt_id, job.result_folder) == (kind, 2, prompt.id, None)
    ended = stores.leases.complete(lease_of(job), "folder", {"images": 3})
    assert ended == stores.jobs.get(job.id)
    assert (ended.status, ended.result_folder, ended.prompt_id) == (
        "succeeded",
        "folder",
        prompt.id,
    )
    assert ended.metrics == {"images": 3}
    assert stores.jobs.events(job.id)[-1].data == {
        "metrics": {"images": 3},
        "status": JobStatus.SUCCEEDED,
    }
    assert [found.version for found in stores.prompts.list().items] == [1]


def test_a_job_that_was_to_be_cancelled_names_no_results(stores: Stores) -> None:
    job = cancelling(stores)
    ended = stores.leases.complete(lease_of(job), "folder", {"images": 3})
    assert (ended.status, ended.result_folder, ended.metrics) == ("cancelled", None, {})


def test_jobs_are_listed_by_kind(stores: Stores) -> None:
    jobs_by_kind = {kind: [stores.job(kind=kind) for _ in range(3)] for kind in JobKind}
    for kind, made in jobs_by_kind.items():
        page = stores.jobs.list(2, kind=kind)
        rest = stores.jobs.list(2, page.next, kind)
        found = [*page.items, *rest.items]
        assert [job.id for job in found] == sorted((job.id for job in made), reverse=True)
        assert not rest.has_more
    assert len(stores.jobs.list().items) == 9


def test_a_cancelled_job_never_publishes(stores: Stores) -> None:
    job = cancelling(stores)
    ended = stores.leases.succeed(lease_of(job), prompt_of(job), {})
    assert ended.status is JobStatus.CANCELLED
    assert stores.prompts.list().items == []
