"""A statement that fails leaves nothing; a commit whose answer is lost may be repeated.

A driver may raise although the database has committed. Whoever then repeats the call must not make
a second version, event or attempt.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from sharpzo_core.database.engine import reading
from sharpzo_core.database.tables import metadata
from sharpzo_core.errors import LeaseLost, NotFound, StateConflict, StorageUnavailable
from sharpzo_core.ids import Prefix, new_id
from sharpzo_core.records.jobs import CheckpointRef, JobStatus, Lease, NewJob
from sharpzo_core.stores.job_leases import lease_of, new_token
from tests.core.conftest import LEASE_SECONDS, Stores
from tests.core.stores.test_job_states import prompt_of
from tests.core.stores.test_leases import progress, step

Call = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """A write of a store."""

    name: str
    prepare: Callable[[Stores], Call]
    repeated: type[Exception] | None = None  #: What a repetition of the finished call raises


def leased(act: Callable[[Stores, Lease], object]) -> Callable[[Stores], Call]:
    """Of a worker, about the job that it runs."""

    def prepare(stores: Stores) -> Call:
        lease = lease_of(stores.claimed(name="pets"))
        return lambda: act(stores, lease)

    return prepare


def create_job(stores: Stores) -> Call:
    dataset, job_id = stores.ready_dataset(), new_id(Prefix.JOB)
    new = NewJob(dataset_id=dataset.id, backbone="tiny", config={}, id=job_id)
    return lambda: stores.jobs.create(new)


def claim(stores: Stores) -> Call:
    job, token = stores.job(), new_token()
    return lambda: stores.leases.claim(job.id, "wrk_a", None, token)


def put_down(ask: str | None) -> Callable[[Stores], Call]:
    def prepare(stores: Stores) -> Call:
        job = stores.claimed()
        if ask:
            getattr(stores.jobs, f"request_{ask}")(job.id)
        return lambda: stores.leases.release(lease_of(job))

    return prepare


def succeed(stores: Stores) -> Call:
    job = stores.claimed(name="pets")
    prompt = prompt_of(job)
    return lambda: stores.leases.succeed(lease_of(job), prompt, {})


def recover(stores: Stores) -> Call:
    stores.claimed()
    (held,) = stores.leases.held()
    return lambda: stores.leases.recover(held)


def request_cancel(claimed: bool) -> Callable[[Stores], Call]:
    def prepare(stores: Stores) -> Call:
        job = stores.claimed() if claimed else stores.job()
        return lambda: stores.jobs.request_cancel(job.id)

    return prepare


def resume(stores: Stores) -> Call:
    job = stores.job()
    stores.jobs.request_pause(job.id)
    return lambda: stores.jobs.request_resume(job.id)


def delete_job(stores: Stores) -> Call:
    job = stores.job()
    stores.jobs.request_cancel(job.id)
    return lambda: stores.jobs.delete(job.id)


def create_dataset(stores: Stores) -> Call:
    dataset_id = new_id(Prefix.DATASET)
    return lambda: stores.datasets.create("photos", dataset_id=dataset_id)


def mark_ready(stores: Stores) -> Call:
    dataset = stores.datasets.create("photos")
    return lambda: stores.datasets.mark_ready(dataset.id, classes=["a"], counts={}, sha256="0")


def mark_failed(stores: Stores) -> Call:
    dataset = stores.datasets.create("photos")
    return lambda: stores.datasets.mark_failed(dataset.id, "archive_corrupt", "cut off")


def delete_dataset(stores: Stores) -> Call:
    dataset = stores.ready_dataset()
    return lambda: stores.datasets.delete(dataset.id)


def publish(stores: Stores) -> Call:
    prompt = prompt_of(stores.job(name="pets"))
    return lambda: stores.prompts.publish(prompt)


def delete_prompt(stores: Stores) -> Call:
    job = stores.job(name="pets")
    stores.prompts.publish(prompt_of(job))
    newest = stores.prompts.publish(prompt_of(job))
    return lambda: stores.prompts.delete(newest.id)


def delete_silent(stores: Stores) -> Call:
    stores.workers.beat("wrk_a", "host", 1)
    stores.clock.pass_seconds(10)
    return lambda: stores.workers.delete_silent(5)


KEY_IS_TAKEN = sa.exc.IntegrityError

CASES = [
    Case("create a job", create_job, KEY_IS_TAKEN),
    Case("claim", claim),
    Case("renew", leased(lambda stores, lease: stores.leases.renew(lease))),
    Case(
        "save progress",
        leased(
            lambda stores, lease: stores.leases.save_progress(lease, progress(1), {}, [step(1)])
        ),
    ),
    Case(
        "save a checkpoint",
        leased(
            lambda stores, lease: stores.leases.save_checkpoint(
                lease, CheckpointRef("folder", 1, stores.clock.now)
            )
        ),
    ),
    Case("release", put_down(None), LeaseLost),
    Case("put down to pause", put_down("pause"), LeaseLost),
    Case("put down to cancel", put_down("cancel"), LeaseLost),
    Case("succeed", succeed, LeaseLost),
    Case(
        "complete",
        leased(lambda stores, lease: stores.leases.complete(lease, "folder", {})),
        LeaseLost,
    ),
    Case("fail", leased(lambda stores, lease: stores.leases.fail(lease, "code", "no")), LeaseLost),
    Case("recover", recover),
    Case("ask a running job to stop", request_cancel(claimed=True)),
    Case("cancel a queued job", request_cancel(claimed=False)),
    Case("resume", resume),
    Case("delete a job", delete_job, NotFound),
    Case("create a dataset", create_dataset, KEY_IS_TAKEN),
    Case("mark a dataset ready", mark_ready, StateConflict),
    Case("mark a dataset failed", mark_failed, StateConflict),
    Case("delete a dataset", delete_dataset, NotFound),
    Case("publish", publish, KEY_IS_TAKEN),
    Case("delete a prompt", delete_prompt, NotFound),
    Case("beat", lambda stores: lambda: stores.workers.beat("wrk_a", "host", 1)),
    Case("leave", lambda stores: lambda: stores.workers.leave("wrk_a")),
    Case("forget silent workers", delete_silent),
]

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "_"))


class Faults:
    """Makes the driver raise, once, at a chosen moment."""

    def __init__(self, engine: sa.Engine) -> None:
        self._dialect = engine.dialect
        self._do_commit = engine.dialect.do_commit
        self._statements = 0  # until the one that fails
        self._lose_answer = False
        event.listen(engine, "do_execute", self._execute)
        engine.dialect.do_commit = self._commit  # type: ignore[method-assign]

    def fail_statement(self, number: int) -> None:
        """The statement with this number, counted from 1, will not reach the database."""
        self._statements = number

    def lose_answer(self) -> None:
        """The next commit will happen, and nobody will be told."""
        self._lose_answer = True

    def heal(self) -> bool:
        """No more faults; whether the last one never struck."""
        pending = self._statements > 0 or self._lose_answer
        self._statements, self._lose_answer = 0, False
        return pending

    def _execute(self, *_: Any) -> None:
        self._statements -= 1
        if self._statements == 0:
            raise self._error()

    def _commit(self, connection: Any) -> None:
        self._do_commit(connection)
        if self._lose_answer:
            self._lose_answer = False
            raise self._error()

    def _error(self) -> Exception:
        error: Exception = self._dialect.dbapi.OperationalError("connection lost")  # type: ignore[union-attr]
        return error


@pytest.fixture
def faults(engine: sa.Engine) -> Iterator[Faults]:
    faults = Faults(engine)
    yield faults
    faults.heal()


def content(engine: sa.Engine) -> dict[str, list[tuple[Any, ...]]]:
    """Every row there is."""
    with reading(engine) as connection:
        return {
            table.name: sorted(tuple(row) for row in connection.execute(sa.select(table)))
            for table in metadata.sorted_tables
        }


@every_case
def test_a_failed_statement_leaves_nothing(stores: Stores, faults: Faults, case: Case) -> None:
    act = case.prepare(stores)
    before = content(stores.engine)
    for number in range(1, 20):
        faults.fail_statement(number)
        try:
            act()
        except StorageUnavailable:
            faults.heal()
            assert content(stores.engine) == before
        else:
            assert faults.heal()  # it has fewer statements than that
            assert number > 1
            return
    pytest.fail("the call never came through")


@every_case
def test_a_call_may_be_repeated_if_its_answer_was_lost(
    stores: Stores, faults: Faults, case: Case
) -> None:
    act = case.prepare(stores)
    faults.lose_answer()
    with pytest.raises(StorageUnavailable):
        act()
    done = content(stores.engine)
    if case.repeated is None:
        act()
    else:
        with pytest.raises(case.repeated):
            act()
    assert content(stores.engine) == done


def test_a_claim_whose_answer_was_lost_does_not_hold_the_job_for_ever(
    stores: Stores, faults: Faults
) -> None:
    job = stores.job()
    faults.lose_answer()
    with pytest.raises(StorageUnavailable):
        stores.leases.claim(job.id, "wrk_a")
    stores.clock.pass_seconds(LEASE_SECONDS + 1)
    (held,) = stores.leases.held()
    recovered = stores.leases.recover(held)
    assert recovered is not None
    assert recovered.status is JobStatus.QUEUED
