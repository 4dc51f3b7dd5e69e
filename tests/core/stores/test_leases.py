from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import sqlalchemy as sa

from sharpzo_core.database.engine import writing
from sharpzo_core.database.tables import job_events, jobs
from sharpzo_core.errors import LeaseLost
from sharpzo_core.records.jobs import (
    JOB_FORMAT,
    CheckpointRef,
    EventType,
    Job,
    JobProgress,
    JobStatus,
    JobStep,
    Phase,
)
from sharpzo_core.stores.job_leases import MAX_LOSSES, HeldLease, lease_of
from sharpzo_core.stores.job_rows import NewEvent
from tests.core.conftest import LEASE_SECONDS, Stores
from tests.core.stores.test_job_states import prompt_of

RIVALS = 8


def step(number: int, loss: float = 1.0) -> JobStep:
    return JobStep(number, Phase.STAGE1, loss, None, None, 0.4, 0.1, number * 10, number * 0.5)


def progress(number: int) -> JobProgress:
    return JobProgress(Phase.STAGE1, number, 100, number * 10)


def only_lease(stores: Stores) -> HeldLease:
    (held,) = stores.leases.held()
    return held


def test_of_many_workers_one_gets_the_job(stores: Stores) -> None:
    job = stores.job()
    with ThreadPoolExecutor(RIVALS) as pool:
        claims = list(pool.map(lambda i: stores.leases.claim(job.id, f"wrk_{i}"), range(RIVALS)))
    (winner,) = [claim for claim in claims if claim]
    assert stores.jobs.get(job.id) == winner
    assert (winner.status, winner.attempt) == (JobStatus.RUNNING, 1)
    assert [event.seq for event in stores.jobs.events(job.id)] == [1, 2]


def test_a_worker_that_was_given_up_can_write_nothing(stores: Stores) -> None:
    old = lease_of(stores.claimed())
    stores.leases.recover(only_lease(stores))
    new = stores.leases.claim(old.job_id, "wrk_b")
    assert new is not None
    before = stores.jobs.get(old.job_id)

    with pytest.raises(LeaseLost):
        stores.leases.renew(old)
    with pytest.raises(LeaseLost):
        stores.leases.save_progress(old, progress(9), {}, [step(9)])
    with pytest.raises(LeaseLost):
        stores.leases.add_event(old, NewEvent(EventType.MESSAGE, "still here"))
    with pytest.raises(LeaseLost):
        stores.leases.succeed(old, prompt_of(new), {})
    with pytest.raises(LeaseLost):
        stores.leases.fail(old, "code", "message")
    with pytest.raises(LeaseLost):
        stores.leases.release(old)
    with pytest.raises(LeaseLost):
        stores.leases.save_checkpoint(old, CheckpointRef("old", 9, stores.clock.now))

    assert stores.jobs.get(old.job_id) == before
    assert stores.prompts.list().items == []
    assert not stores.jobs.steps(old.job_id)


def test_a_token_is_new_even_if_the_attempt_did_not_count(stores: Stores) -> None:
    old = lease_of(stores.claimed())
    stores.leases.release(old)
    again = stores.leases.claim(old.job_id, "wrk_a")
    assert again is not None
    assert again.attempt == old.attempt
    with pytest.raises(LeaseLost):
        stores.leases.renew(old)


def test_every_write_renews_the_lease(stores: Stores) -> None:
    lease = lease_of(stores.claimed())
    for write in (
        lambda: stores.leases.renew(lease),
        lambda: stores.leases.save_progress(lease, progress(1), {}),
    ):
        stores.clock.pass_seconds(5)
        assert write().status is JobStatus.RUNNING
        expected = stores.clock.now + timedelta(seconds=LEASE_SECONDS)
        assert only_lease(stores).expires_at == expected


def lose_workers(stores: Stores, job_id: str, count: int, *, crashed: bool) -> Job:
    """The job after so many workers have taken it and were lost."""
    for _ in range(count):
        assert stores.leases.claim(job_id, "wrk_a") is not None
        recovered = stores.leases.recover(only_lease(stores), crashed=crashed)
        assert recovered is not None
    return recovered


def test_a_job_whose_process_ends_again_and_again_fails(stores: Stores) -> None:
    job_id = stores.job().id
    assert lose_workers(stores, job_id, 2, crashed=True).status is JobStatus.QUEUED
    failed = lose_workers(stores, job_id, 1, crashed=True)
    assert (failed.status, failed.attempt, failed.error_code) == (
        JobStatus.FAILED,
        3,
        "worker_lost",
    )
    lost, end = list(stores.jobs.events(job_id))[-2:]
    assert (lost.type, lost.data["crashed"]) == ("worker_lost", True)
    assert (end.type, "ended 3 times" in end.message) == ("failed", True)


def test_workers_that_vanish_do_not_count_against_their_job(stores: Stores) -> None:
    job_id = stores.job().id
    lose_workers(stores, job_id, 2, crashed=True)
    patient = lose_workers(stores, job_id, MAX_LOSSES - 3, crashed=False)
    assert (patient.status, patient.crashes) == (JobStatus.QUEUED, 2)
    assert lose_workers(stores, job_id, 1, crashed=False).error_code == "worker_lost"


def test_a_checkpoint_forgives_the_workers_lost_before_it(stores: Stores) -> None:
    job_id = stores.job().id
    for attempt in range(1, 6):
        claimed = stores.leases.claim(job_id, "wrk_a")
        assert claimed is not None
        checkpoint = CheckpointRef("folder", attempt, stores.clock.now)
        assert stores.leases.save_checkpoint(lease_of(claimed), checkpoint) is JobStatus.RUNNING
        recovered = stores.leases.recover(only_lease(stores), crashed=True)
        assert recovered is not None
        assert (recovered.status, recovered.attempt) == (JobStatus.QUEUED, attempt)
        assert (recovered.losses, recovered.crashes, recovered.checkpoint) == (1, 1, checkpoint)


def test_a_job_of_a_newer_format_is_left_to_newer_workers(stores: Stores) -> None:
    job = stores.job()
    with writing(stores.engine) as connection:
        connection.execute(sa.update(jobs).values(format=JOB_FORMAT + 1))
    assert stores.leases.claim(job.id, "wrk_a") is None
    assert list(stores.leases.waiting(10)) == []
    assert stores.jobs.get(job.id).status is JobStatus.QUEUED


def test_an_event_of_a_newer_version_can_be_read(stores: Stores) -> None:
    job = stores.job()
    with writing(stores.engine) as connection:
        connection.execute(sa.update(job_events).values(type="promoted"))
    assert [event.type for event in stores.jobs.events(job.id)] == ["promoted"]


def test_a_lost_job_that_was_to_stop_is_cancelled(stores: Stores) -> None:
    job = stores.claimed()
    stores.jobs.request_cancel(job.id)
    recovered = stores.leases.recover(only_lease(stores))
    assert recovered is not None
    assert recovered.status is JobStatus.CANCELLED


def test_a_lease_that_was_renewed_meanwhile_is_not_taken(stores: Stores) -> None:
    lease = lease_of(stores.claimed())
    seen = only_lease(stores)
    stores.clock.pass_seconds(1)
    stores.leases.renew(lease)
    assert stores.leases.recover(seen) is None
    assert stores.jobs.get(lease.job_id).status is JobStatus.RUNNING


def test_of_many_sweepers_one_recovers(stores: Stores) -> None:
    job = stores.claimed()
    held = only_lease(stores)
    with ThreadPoolExecutor(RIVALS) as pool:
        recovered = list(pool.map(lambda _: stores.leases.recover(held), range(RIVALS)))
    assert len([job for job in recovered if job]) == 1
    assert [event.seq for event in stores.jobs.events(job.id)] == [1, 2, 3, 4]


def test_events_have_no_gaps_whoever_writes_them(stores: Stores) -> None:
    lease = lease_of(stores.claimed())
    with ThreadPoolExecutor(RIVALS) as pool:
        for i in range(40):
            pool.submit(stores.leases.add_event, lease, NewEvent(EventType.MESSAGE, f"{i}"))
    events = stores.jobs.events(lease.job_id)
    assert [event.seq for event in events] == list(range(1, 43))
    assert stores.jobs.get(lease.job_id).last_event == 42


def test_a_resumed_run_replaces_the_steps_it_tells_again(stores: Stores) -> None:
    lease = lease_of(stores.claimed())
    stores.leases.save_progress(lease, progress(5), {}, [step(i, 1.0) for i in range(1, 6)])
    stores.leases.save_progress(lease, progress(4), {"loss": 2.0}, [step(3, 2.0), step(4, 2.0)])
    assert [(s.step, s.loss) for s in stores.jobs.steps(lease.job_id)] == [
        (1, 1.0),
        (2, 1.0),
        (3, 2.0),
        (4, 2.0),
    ]
    job = stores.jobs.get(lease.job_id)
    assert (job.step, job.forward_passes, job.metrics) == (4, 40, {"loss": 2.0})


def test_success_publishes_and_ends_in_one_transaction(stores: Stores) -> None:
    job = stores.claimed(name="pets")
    prompt = prompt_of(job)
    ended = stores.leases.succeed(lease_of(job), prompt, {"loss": 0.5})
    published = stores.prompts.get("pets:1")
    assert (ended.status, ended.prompt_id) == (JobStatus.SUCCEEDED, published.id)
    assert (published.job_id, published.classes) == (job.id, ("cat", "dog"))


def test_nothing_is_published_if_the_transaction_fails(stores: Stores) -> None:
    job = stores.claimed()
    prompt = prompt_of(job)
    stores.prompts.publish(prompt)  # the same id again breaks the insert
    with pytest.raises(sa.exc.IntegrityError):
        stores.leases.succeed(lease_of(job), prompt, {})
    assert stores.jobs.get(job.id).status is JobStatus.RUNNING
    assert len(stores.prompts.list().items) == 1


def test_waiting_jobs_come_oldest_first(stores: Stores) -> None:
    made = [stores.job().id for _ in range(3)]
    stores.leases.claim(made[1], "wrk_a")
    assert [job.id for job in stores.leases.waiting(10)] == sorted([made[0], made[2]])


def test_a_job_keeps_when_it_first_started(stores: Stores) -> None:
    job = stores.claimed()
    stores.leases.release(lease_of(job))
    stores.clock.pass_seconds(100)
    again = stores.leases.claim(job.id, "wrk_b")
    assert again is not None
    assert again.started_at == job.started_at
    with stores.engine.connect() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(jobs)).scalar_one() == 1
