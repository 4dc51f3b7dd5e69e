"""Every move between statuses, legal or not, on the real stores."""

from collections.abc import Callable

import pytest

from sharpzo_core.errors import CoreError, LeaseLost, StateConflict
from sharpzo_core.ids import Prefix, new_id
from sharpzo_core.job_leases import lease_of
from sharpzo_core.jobs import TERMINAL, TERMINAL_EVENTS, TRANSITIONS, Job, JobStatus
from sharpzo_core.prompts import NewPrompt
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
    stores.leases.cancel(lease_of(job))
    return job


AT: dict[JobStatus, Callable[[Stores], Job]] = {
    JobStatus.QUEUED: queued,
    JobStatus.RUNNING: running,
    JobStatus.CANCELLING: cancelling,
    JobStatus.SUCCEEDED: succeeded,
    JobStatus.FAILED: failed,
    JobStatus.CANCELLED: cancelled,
}

#: What can be asked for, and where it leads.
MOVES: dict[str, Callable[[Stores, Job], object]] = {
    "claim": lambda stores, job: stores.leases.claim(job.id, "wrk_b"),
    "request_cancel": lambda stores, job: stores.jobs.request_cancel(job.id),
    "succeed": lambda stores, job: stores.leases.succeed(lease_of(job), prompt_of(job), {}),
    "fail": lambda stores, job: stores.leases.fail(lease_of(job), "code", "message"),
    "cancel": lambda stores, job: stores.leases.cancel(lease_of(job)),
    "release": lambda stores, job: stores.leases.release(lease_of(job)),
    "delete": lambda stores, job: stores.jobs.delete(job.id),
}

LEADS = {
    (JobStatus.QUEUED, "claim"): JobStatus.RUNNING,
    (JobStatus.QUEUED, "request_cancel"): JobStatus.CANCELLED,
    (JobStatus.RUNNING, "request_cancel"): JobStatus.CANCELLING,
    (JobStatus.RUNNING, "succeed"): JobStatus.SUCCEEDED,
    (JobStatus.RUNNING, "fail"): JobStatus.FAILED,
    (JobStatus.RUNNING, "release"): JobStatus.QUEUED,
    (JobStatus.CANCELLING, "cancel"): JobStatus.CANCELLED,
    (JobStatus.CANCELLING, "fail"): JobStatus.FAILED,
    (JobStatus.CANCELLING, "succeed"): JobStatus.CANCELLED,  # and nothing is published
}


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
        assert len(stores.jobs.events(job.id)) == len(before) + 1


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


def test_repeating_a_cancel_changes_nothing(stores: Stores) -> None:
    job = cancelling(stores)
    first = stores.jobs.get(job.id)
    assert stores.jobs.request_cancel(job.id) == first


def test_a_cancelled_job_never_publishes(stores: Stores) -> None:
    job = cancelling(stores)
    ended = stores.leases.succeed(lease_of(job), prompt_of(job), {})
    assert ended.status is JobStatus.CANCELLED
    assert stores.prompts.list().items == []
