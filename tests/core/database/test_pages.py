"""Lists that change while they are read page by page."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from sharpzo_core import ids
from sharpzo_core.errors import NotFound
from sharpzo_core.ids import Prefix, new_id
from sharpzo_core.records.jobs import NewJob
from tests.core.conftest import Stores

JOBS, LIMIT = 60, 7


def add_jobs(stores: Stores, count: int) -> list[str]:
    dataset_id = stores.ready_dataset().id
    return [
        stores.jobs.create(NewJob(dataset_id=dataset_id, backbone="tiny", config={})).id
        for _ in range(count)
    ]


def read_all(stores: Stores) -> list[str]:
    """Every id that a reader gets to see, in order."""
    seen: list[str] = []
    after = None
    while True:
        page = stores.jobs.list(limit=LIMIT, after=after)
        seen += [job.id for job in page.items]
        after = page.next
        if after is None:
            return seen


def delete(stores: Stores, job_id: str) -> None:
    stores.jobs.request_cancel(job_id)
    stores.jobs.delete(job_id)


def test_a_list_without_changes_is_read_once_and_in_order(stores: Stores) -> None:
    made = add_jobs(stores, JOBS)
    assert read_all(stores) == sorted(made, reverse=True)


def test_a_cursor_outlives_its_row(stores: Stores) -> None:
    made = sorted(add_jobs(stores, 5), reverse=True)
    first = stores.jobs.list(limit=2)
    assert first.next == made[1]
    delete(stores, made[1])
    second = stores.jobs.list(limit=2, after=first.next)
    assert [job.id for job in second.items] == made[2:4]


def test_rows_of_a_clock_that_is_behind_come_once(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = add_jobs(stores, 10)
    first = stores.jobs.list(limit=5)
    now = ids.time.time_ns()
    monkeypatch.setattr(ids.time, "time_ns", lambda: now - 3600 * 10**9)
    (late,) = add_jobs(stores, 1)
    monkeypatch.undo()
    (new,) = add_jobs(stores, 1)
    rest = stores.jobs.list(limit=100, after=first.next)
    seen = [job.id for page in (first, rest) for job in page.items]
    assert seen == [*sorted(made, reverse=True), late]
    assert read_all(stores) == [new, *sorted(made, reverse=True), late]


def test_nothing_comes_twice_and_nothing_is_left_out_while_others_add_and_delete(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = add_jobs(stores, JOBS)
    kept, doomed = made[::2], made[1::2]
    shaken = random.Random(0)
    start, now = threading.Event(), ids.time.time_ns()
    # Clocks of several machines: ids fall anywhere among those that are there.
    monkeypatch.setattr(ids.time, "time_ns", lambda: now + shaken.randint(-(10**9), 10**9))

    def add() -> None:
        start.wait()
        add_jobs(stores, 40)

    def remove() -> None:
        start.wait()
        for job_id in doomed:
            delete(stores, job_id)

    with ThreadPoolExecutor(2) as pool:
        changes = [pool.submit(add), pool.submit(remove)]
        start.set()
        reads = [read_all(stores)]
        while not all(change.done() for change in changes):
            reads.append(read_all(stores))
        for change in changes:
            change.result()
    for seen in reads:
        assert seen == sorted(set(seen), reverse=True)
        assert set(kept) <= set(seen)
    assert len(read_all(stores)) == len(kept) + 40


def test_a_deleted_job_is_gone(stores: Stores) -> None:
    (job_id,) = add_jobs(stores, 1)
    delete(stores, job_id)
    with pytest.raises(NotFound):
        stores.jobs.get(job_id)
    assert stores.jobs.list(after=new_id(Prefix.JOB)).items == []
