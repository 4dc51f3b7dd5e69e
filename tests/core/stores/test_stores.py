"""Jobs, datasets, prompts and workers as the API sees them."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC

import pytest

from sharpzo_core.errors import NotFound, StateConflict, ValidationFailed
from sharpzo_core.ids import Prefix, new_id
from sharpzo_core.records.datasets import DatasetStatus
from sharpzo_core.records.jobs import JobStatus, NewJob, Phase
from sharpzo_core.stores.job_leases import lease_of
from tests.core.conftest import Stores
from tests.core.stores.test_job_states import prompt_of
from tests.core.stores.test_leases import progress, step

UNKNOWN = ["x", "", "job_", "' OR 1=1--", "job_" + "u" * 26, "a" * 10_000, "job_%00"]


def test_a_job_comes_back_as_it_was_stored(stores: Stores) -> None:
    job = stores.job(name="pets", metadata={"owner": "ж"})
    assert stores.jobs.get(job.id) == job
    assert job.created_at.tzinfo is UTC


@pytest.mark.parametrize("ref", [*UNKNOWN, pytest.param(new_id(Prefix.JOB), id="new")])
def test_an_unknown_id_is_not_found_whatever_it_looks_like(stores: Stores, ref: str) -> None:
    for ask in (stores.jobs.get, stores.jobs.request_cancel, stores.jobs.delete):
        with pytest.raises(NotFound):
            ask(ref)
    for ask in (stores.jobs.events, stores.jobs.steps, stores.datasets.get, stores.prompts.get):
        with pytest.raises(NotFound):
            ask(ref)


def test_a_list_is_read_page_by_page_newest_first(stores: Stores) -> None:
    made = sorted((stores.job().id for _ in range(5)), reverse=True)
    first = stores.jobs.list(limit=2)
    second = stores.jobs.list(limit=2, after=first.next)
    last = stores.jobs.list(limit=2, after=second.next)
    assert [job.id for page in (first, second, last) for job in page.items] == made
    assert (first.has_more, last.has_more, last.next) == (True, False, None)


@pytest.mark.parametrize("limit", [0, -1, 1001, 10**30])
def test_a_limit_out_of_range_is_refused(stores: Stores, limit: int) -> None:
    with pytest.raises(ValidationFailed, match="/limit"):
        stores.jobs.list(limit=limit)


def test_a_cursor_of_another_list_is_refused(stores: Stores) -> None:
    with pytest.raises(ValidationFailed, match="/after"):
        stores.jobs.list(after=stores.ready_dataset().id)


def test_jobs_are_counted_by_status(stores: Stores) -> None:
    stores.job()
    stores.claimed()
    counts = stores.jobs.count_by_status()
    assert counts == dict.fromkeys(JobStatus, 0) | {JobStatus.QUEUED: 1, JobStatus.RUNNING: 1}


def test_events_are_read_after_a_number(stores: Stores) -> None:
    job = stores.claimed()
    stores.leases.release(lease_of(job))
    assert [event.seq for event in stores.jobs.events(job.id, after=1)] == [2, 3]
    assert [event.seq for event in stores.jobs.events(job.id, limit=1)] == [1]


def test_steps_are_thinned_and_the_last_one_stays(stores: Stores) -> None:
    lease = lease_of(stores.claimed())
    stores.leases.save_progress(lease, progress(10), {}, [step(i) for i in range(1, 11)])
    numbers = [s.step for s in stores.jobs.steps(lease.job_id, resolution=4)]
    assert numbers == [1, 4, 7, 10]
    numbers = [s.step for s in stores.jobs.steps(lease.job_id, from_step=3, to_step=5)]
    assert numbers == [3, 4, 5]


def test_thinning_keeps_what_few_steps_measured(stores: Stores) -> None:
    lease = lease_of(stores.claimed())
    steps = [replace(step(i), val_loss=None, val_accuracy=None, sigma=None) for i in range(1, 11)]
    steps[4] = replace(steps[4], val_accuracy=0.5, val_loss=0.7)
    steps[5] = replace(steps[5], sigma=0.2)
    steps[8] = replace(steps[8], val_accuracy=0.6)
    stores.leases.save_progress(lease, progress(10), {}, steps)
    runs = stores.jobs.steps(lease.job_id, resolution=3)
    assert [(s.step, s.val_accuracy, s.val_loss, s.sigma) for s in runs] == [
        (2, None, None, None),
        (6, 0.5, 0.7, 0.2),
        (10, 0.6, None, None),
    ]
    assert [s.forward_passes for s in runs] == [steps[i].forward_passes for i in (1, 5, 9)]


def test_a_run_across_two_stages_tells_the_later_ones_measures_alone(stores: Stores) -> None:
    lease = lease_of(stores.claimed())
    first = [replace(step(i), phase=Phase.STAGE1, sigma=0.2) for i in range(1, 4)]
    second = [replace(step(i), phase=Phase.STAGE2, sigma=None) for i in range(4, 7)]
    stores.leases.save_progress(lease, progress(6), {}, [*first, *second])
    runs = stores.jobs.steps(lease.job_id, resolution=2)
    assert [(s.step, s.sigma) for s in runs] == [(3, 0.2), (6, None)]
    (whole,) = stores.jobs.steps(lease.job_id, resolution=1)
    assert (whole.step, whole.sigma) == (6, None)


def test_deleting_a_job_leaves_its_prompt(stores: Stores) -> None:
    job = stores.claimed(name="pets")
    stores.leases.succeed(lease_of(job), prompt_of(job), {})
    stores.jobs.delete(job.id)
    assert stores.prompts.get("pets").job_id == job.id


def test_a_job_needs_a_dataset_that_is_ready(stores: Stores) -> None:
    dataset = stores.datasets.create("photos")
    with pytest.raises(StateConflict, match="processing"):
        stores.jobs.create(NewJob(dataset_id=dataset.id, backbone="tiny", config={}))
    with pytest.raises(NotFound):
        stores.jobs.create(NewJob(dataset_id=new_id(Prefix.DATASET), backbone="tiny", config={}))


def test_a_dataset_leaves_processing_once(stores: Stores) -> None:
    dataset = stores.datasets.create("photos", {"upload": "a.zip"})
    assert stores.datasets.processing_ids() == {dataset.id}
    failed = stores.datasets.mark_failed(dataset.id, "archive_corrupt", "cut off", {"images": 0})
    assert (failed.status, failed.error_code) == (DatasetStatus.FAILED, "archive_corrupt")
    with pytest.raises(StateConflict):
        stores.datasets.mark_ready(dataset.id, classes=[], counts={}, sha256="")
    assert not stores.datasets.processing_ids()


def test_a_ready_dataset_counts_its_splits(stores: Stores) -> None:
    dataset = stores.ready_dataset(images=5)
    assert stores.datasets.get(dataset.id) == dataset
    assert dataset.splits == {"train": 10, "val": 0, "test": 3}


def test_a_dataset_in_use_is_not_deleted(stores: Stores) -> None:
    job = stores.job()
    with pytest.raises(StateConflict):
        stores.datasets.delete(job.dataset_id)
    stores.jobs.request_cancel(job.id)
    stores.datasets.delete(job.dataset_id)
    with pytest.raises(NotFound):
        stores.datasets.get(job.dataset_id)
    assert stores.jobs.get(job.id).dataset_id == job.dataset_id


def test_versions_of_a_name_count_up_and_are_never_reused(stores: Stores) -> None:
    job = stores.job(name="pets")
    versions = [stores.prompts.publish(prompt_of(job)).version for _ in range(3)]
    assert versions == [1, 2, 3]
    assert stores.prompts.get("pets").version == 3
    deleted = stores.prompts.delete("pets:3")
    assert deleted.version == 3
    assert stores.prompts.get("pets").version == 2
    assert stores.prompts.publish(prompt_of(job)).version == 4
    with pytest.raises(NotFound):
        stores.prompts.get("pets:3")


def test_prompts_published_at_once_get_different_versions(stores: Stores) -> None:
    job = stores.job(name="pets")
    with ThreadPoolExecutor(8) as pool:
        published = pool.map(lambda _: stores.prompts.publish(prompt_of(job)), range(16))
    assert sorted(prompt.version for prompt in published) == list(range(1, 17))


def test_a_worker_is_alive_while_it_is_heard_of(stores: Stores) -> None:
    stores.workers.beat("wrk_a", "host", 1)
    stores.clock.pass_seconds(10)
    stores.workers.beat("wrk_a", "host", 1)
    stores.clock.pass_seconds(10)
    assert [worker.id for worker in stores.workers.active(15)] == ["wrk_a"]
    assert not stores.workers.active(5)
    assert stores.workers.delete_silent(5) == 1
    stores.workers.leave("wrk_a")


def test_a_name_with_several_versions_does_not_say_which_to_delete(stores: Stores) -> None:
    job = stores.job(name="pets")
    first, second = (stores.prompts.publish(prompt_of(job)) for _ in range(2))
    with pytest.raises(StateConflict, match="pets:2"):
        stores.prompts.delete("pets")
    stores.prompts.delete("pets:2")
    assert stores.prompts.delete("pets") == first
    with pytest.raises(NotFound):
        stores.prompts.delete(second.id)
