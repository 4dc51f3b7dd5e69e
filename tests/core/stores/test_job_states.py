"""Every move between statuses, legal or not, on the real stores."""

from collections.abc import Callable

import pytest
import sqlalchemy as sa

from sharpzo_core.database.engine import writing
from sharpzo_core.database.tables import datasets, jobs
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
    JobProgress,
    JobStatus,
    Origin,
    Phase,
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
    "request_finish": lambda stores, job: stores.jobs.request_finish(job.id),
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
    (JobStatus.PAUSING, "request_finish"): JobStatus.RUNNING,
    (JobStatus.PAUSING, "succeed"): JobStatus.SUCCEEDED,
    (JobStatus.PAUSING, "complete"): JobStatus.SUCCEEDED,
    (JobStatus.PAUSING, "fail"): JobStatus.FAILED,
    (JobStatus.PAUSING, "release"): JobStatus.PAUSED,
    (JobStatus.PAUSING, "recover"): JobStatus.PAUSED,
    (JobStatus.PAUSED, "request_resume"): JobStatus.QUEUED,
    (JobStatus.PAUSED, "request_cancel"): JobStatus.CANCELLED,
    (JobStatus.PAUSED, "request_finish"): JobStatus.QUEUED,
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
    if first.status in REQUESTS[request_] or first.finishing:
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


# --- finishing early

FINISHABLE = [JobStatus.RUNNING, JobStatus.PAUSING, JobStatus.PAUSED]


@pytest.mark.parametrize("status", FINISHABLE)
def test_a_request_to_finish_stays_in_the_row_and_in_the_events(
    stores: Stores, status: JobStatus
) -> None:
    job = AT[status](stores)
    asked = stores.jobs.request_finish(job.id, Origin(request_id="req-1"))
    assert asked == stores.jobs.get(job.id)
    assert asked.finishing
    event = stores.jobs.events(job.id)[-1]
    assert (event.type, event.level) == (EventType.FINISHING, "info")
    moved = {} if asked.status is status else {"status": asked.status}
    assert event.data == {"request_id": "req-1", **moved}
    assert stores.jobs.request_finish(job.id) == asked
    assert stores.jobs.events(job.id)[-1] == event


def test_whoever_has_the_job_learns_that_it_is_to_finish(stores: Stores) -> None:
    job = running(stores)
    assert not stores.leases.renew(lease_of(job)).finishing
    stores.jobs.request_finish(job.id)
    assert stores.leases.renew(lease_of(job)).finishing
    progress = JobProgress(Phase.STAGE1, 1, 10, 10)
    assert stores.leases.save_progress(lease_of(job), progress, {}).finishing
    (held,) = stores.leases.held()
    recovered = stores.leases.recover(held)
    assert recovered is not None
    assert (recovered.status, recovered.finishing) == (JobStatus.QUEUED, True)
    assert stores.jobs.request_finish(job.id) == recovered  # asked already
    again = stores.leases.claim(job.id, "wrk_b")
    assert again is not None
    assert again.finishing
    released = stores.leases.release(lease_of(again))
    assert (released.status, released.finishing) == (JobStatus.QUEUED, True)


def test_a_finished_job_says_what_ended_its_search(stores: Stores) -> None:
    job = running(stores)
    stores.jobs.request_finish(job.id)
    ended = stores.leases.succeed(lease_of(job), prompt_of(job), {}, "finished")
    assert (ended.status, ended.stopped_by) == (JobStatus.SUCCEEDED, "finished")
    assert stores.jobs.events(job.id)[-1].data["stopped_by"] == "finished"
    assert stores.jobs.request_finish(job.id) == ended  # an answer that was lost
    other = running(stores)
    stores.leases.succeed(lease_of(other), prompt_of(other), {}, "max_seconds")
    assert stores.jobs.get(other.id).stopped_by == "max_seconds"
    with pytest.raises(StateConflict, match="has published its prompt already"):
        stores.jobs.request_finish(other.id)


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (JobStatus.QUEUED, r"no worker has it \(cancel it, or ask again once it runs\)"),
        (JobStatus.CANCELLING, r"cancel comes first \(resume it once it is cancelled\)"),
        (JobStatus.SUCCEEDED, "has published its prompt already"),
        (JobStatus.FAILED, r"it has ended \(resume it, then ask again once it runs\)"),
        (JobStatus.CANCELLED, r"it has ended \(resume it, then ask again once it runs\)"),
    ],
)
def test_a_job_that_cannot_finish_says_what_to_do(
    stores: Stores, status: JobStatus, advice: str
) -> None:
    job = AT[status](stores)
    with pytest.raises(StateConflict, match=f"the job is {status}: .*{advice}"):
        stores.jobs.request_finish(job.id)
    assert not stores.jobs.get(job.id).finishing


@pytest.mark.parametrize("kind", [JobKind.EVALUATION, JobKind.CLASSIFICATION])
def test_a_job_without_a_search_cannot_finish(stores: Stores, kind: JobKind) -> None:
    prompt = stores.prompts.publish(prompt_of(stores.job(name="pets")))
    job = stores.claimed(kind=kind, prompt_id=prompt.id)
    with pytest.raises(
        StateConflict, match=rf"{kind} has no search .*\(wait for it, or cancel it\)"
    ):
        stores.jobs.request_finish(job.id)


def test_of_pausing_and_finishing_the_later_request_counts_and_cancelling_before_both(
    stores: Stores,
) -> None:
    job = running(stores)
    stores.jobs.request_finish(job.id)
    asked = stores.jobs.request_pause(job.id)
    assert (asked.status, asked.finishing) == (JobStatus.PAUSING, False)
    asked = stores.jobs.request_finish(job.id)
    assert (asked.status, asked.finishing) == (JobStatus.RUNNING, True)
    asked = stores.jobs.request_cancel(job.id)
    assert (asked.status, asked.finishing) == (JobStatus.CANCELLING, False)
    with pytest.raises(StateConflict):
        stores.jobs.request_finish(job.id)
    ended = stores.leases.succeed(lease_of(job), prompt_of(job), {}, "finished")
    assert (ended.status, ended.stopped_by) == (JobStatus.CANCELLED, None)
    resumed = stores.jobs.request_resume(job.id)
    assert (resumed.status, resumed.finishing) == (JobStatus.QUEUED, False)


def test_a_pause_that_its_worker_noticed_too_late_still_ends_in_finishing(stores: Stores) -> None:
    """The worker stopped for the pause; the request to finish came before it released the job."""
    job = pausing(stores)
    stores.jobs.request_finish(job.id)
    released = stores.leases.release(lease_of(job))
    assert (released.status, released.finishing) == (JobStatus.QUEUED, True)


def test_a_failed_job_that_was_to_finish_is_resumed_to_search(stores: Stores) -> None:
    job = running(stores)
    stores.jobs.request_finish(job.id)
    stores.leases.fail(lease_of(job), "code", "message")
    with pytest.raises(StateConflict, match="resume it"):
        stores.jobs.request_finish(job.id)
    resumed = stores.jobs.request_resume(job.id)
    assert (resumed.status, resumed.finishing) == (JobStatus.QUEUED, False)


def test_a_paused_job_whose_dataset_is_gone_cannot_finish(stores: Stores) -> None:
    job = paused(stores)
    with writing(stores.engine) as connection:
        connection.execute(sa.delete(datasets).where(datasets.c.id == job.dataset_id))
    with pytest.raises(NotFound):
        stores.jobs.request_finish(job.id)
    assert stores.jobs.get(job.id).status is JobStatus.PAUSED


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
