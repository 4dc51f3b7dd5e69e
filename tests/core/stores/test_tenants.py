"""Tenants, quotas and turns in both databases."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Barrier
from typing import Any

import pytest

from sharpzo_core.errors import CoreError, NotFound, QuotaExceeded
from sharpzo_core.ids import Prefix, new_id
from sharpzo_core.records.jobs import Job, JobProgress, JobStatus, NewJob, Phase
from sharpzo_core.records.prompts import NewPrompt
from sharpzo_core.stores.audit import AuditEntry, AuditStore
from sharpzo_core.stores.dataset_store import DatasetStore
from sharpzo_core.stores.idempotency import IdempotencyStore, Reservation, StoredAnswer
from sharpzo_core.stores.job_leases import JobLeases, lease_of
from sharpzo_core.stores.job_store import JobStore
from sharpzo_core.stores.prompt_store import PromptStore
from sharpzo_core.stores.quotas import Quotas, UsageStore
from tests.core.conftest import LEASE_SECONDS, Stores

DAY = timedelta(days=1)


def new_prompt(name: str = "pets", size: int = 0) -> NewPrompt:
    return NewPrompt(
        id=new_id(Prefix.PROMPT),
        name=name,
        job_id=None,
        backbone={"name": "tiny", "pretrained": None, "fingerprint": "f"},
        classes=("cat", "dog"),
        metrics={"val_accuracy": 0.5},
        sha256="0" * 64,
        bytes=size,
    )


def ready(stores: Stores, tenant: str) -> str:
    store = stores.datasets.for_tenant(tenant)
    dataset = store.create("photos")
    store.mark_ready(dataset.id, classes=["cat"], counts={}, sha256="0" * 64)
    return dataset.id


def job_for(stores: Stores, tenant: str, jobs: JobStore | None = None, **values: Any) -> Job:
    store = (jobs or stores.jobs).for_tenant(tenant)
    dataset = values.pop("dataset_id", None) or ready(stores, tenant)
    return store.create(NewJob(dataset_id=dataset, backbone="tiny", config={}, **values))


def test_names_are_counted_for_each_tenant(stores: Stores) -> None:
    tenants = ("a", "b", "a", "b", "a")
    versions = [
        stores.prompts.for_tenant(tenant).publish(new_prompt()).version for tenant in tenants
    ]
    assert versions == [1, 1, 2, 2, 3]
    a, b = (stores.prompts.for_tenant(tenant) for tenant in ("a", "b"))
    assert a.get("pets").version == 3
    assert b.get("pets").version == 2
    assert a.get("pets:2").id != b.get("pets:2").id
    with pytest.raises(NotFound):
        b.get("pets:3")
    with pytest.raises(NotFound):
        stores.prompts.for_all_tenants().get("pets")  # a name alone says nothing of whose it is


def test_aliases_move_for_each_tenant(stores: Stores) -> None:
    prompts = {
        t: [stores.prompts.for_tenant(t).publish(new_prompt()) for _ in "12"] for t in ("a", "b")
    }
    for number in range(2):
        for tenant in ("a", "b"):
            stores.aliases.for_tenant(tenant).set("pets@live", prompts[tenant][number].id)
    stores.aliases.for_tenant("a").rollback("live")
    assert stores.prompts.for_tenant("a").get("pets@live") == stores.prompts.for_tenant("a").get(
        "pets:1"
    )
    assert stores.prompts.for_tenant("b").get("pets@live") == stores.prompts.for_tenant("b").get(
        "pets:2"
    )
    assert stores.prompts.for_tenant("b").get("pets:2").aliases == ("live",)
    assert len(stores.aliases.for_tenant("a").get("live").changes.items) == 3
    assert len(stores.aliases.for_tenant("b").get("live").changes.items) == 2
    stores.aliases.for_tenant("a").delete("live")
    assert stores.aliases.for_tenant("b").get("live").alias.version == 2
    with pytest.raises(NotFound):
        stores.aliases.for_tenant("a").set("pets@live", prompts["b"][0].id)


def test_nothing_of_another_tenant_can_be_touched(stores: Stores) -> None:
    job, prompt = job_for(stores, "a"), stores.prompts.for_tenant("a").publish(new_prompt())
    jobs, prompts, datasets = (
        store.for_tenant("b") for store in (stores.jobs, stores.prompts, stores.datasets)
    )
    ended = {"classes": [], "counts": {}, "sha256": "0" * 64}
    acts: list[Callable[[], Any]] = [
        lambda: jobs.get(job.id),
        lambda: jobs.delete(job.id),
        lambda: jobs.request_cancel(job.id),
        lambda: jobs.request_pause(job.id),
        lambda: jobs.request_resume(job.id),
        lambda: jobs.events(job.id),
        lambda: jobs.steps(job.id),
        lambda: jobs.create(NewJob(dataset_id=job.dataset_id, backbone="tiny", config={})),
        lambda: job_for(stores, "b", prompt_id=prompt.id),
        lambda: prompts.get(prompt.id),
        lambda: prompts.delete(prompt.id),
        lambda: prompts.pin(prompt.id),
        lambda: datasets.get(job.dataset_id),
        lambda: datasets.delete(job.dataset_id),
        lambda: datasets.mark_ready(job.dataset_id, **ended),
        lambda: datasets.mark_failed(job.dataset_id, "code", "message"),
    ]
    for act in acts:
        with pytest.raises(NotFound):
            act()
    assert stores.jobs.for_tenant("a").get(job.id) == job
    assert not stores.prompts.for_tenant("a").get(prompt.id).pinned
    assert sum(jobs.count_by_status().values()) == 0


def test_a_published_prompt_is_that_of_its_jobs_tenant(stores: Stores) -> None:
    job = stores.leases.claim(job_for(stores, "a").id, "wrk")
    assert job is not None
    stores.prompts.for_tenant("b").publish(new_prompt())
    done = stores.leases.succeed(lease_of(job), new_prompt(), {})
    assert stores.prompts.for_tenant("a").get("pets").id == done.prompt_id
    assert stores.prompts.for_tenant("a").get("pets").version == 1


def test_the_parent_of_a_prompt_is_looked_for_at_home(stores: Stores) -> None:
    origin = stores.leases.claim(job_for(stores, "a").id, "wrk")
    assert origin is not None
    stores.leases.succeed(lease_of(origin), new_prompt(), {})
    claimed = NewPrompt(**vars(new_prompt()) | {"lineage": {"from_checkpoint": origin.id}})
    assert stores.prompts.for_tenant("b").publish(claimed).lineage["parent"] is None


def test_idempotency_keys_are_a_tenants_own(stores: Stores) -> None:
    store = IdempotencyStore(stores.engine, 1.0, stores.clock)
    a, b = (store.for_tenant(tenant).reserve("k") for tenant in ("a", "b"))
    assert isinstance(a, Reservation)
    assert isinstance(b, Reservation)
    with stores.engine.begin() as connection:
        store.for_tenant("a").complete(connection, a, StoredAnswer("f", 201, "{}"))
    assert isinstance(store.for_tenant("a").reserve("k"), StoredAnswer)
    store.for_tenant("b").release(b)
    assert isinstance(store.for_tenant("b").reserve("k"), Reservation)


# Turns


def test_tenants_take_turns(stores: Stores) -> None:
    waiting = {
        tenant: [job_for(stores, tenant).id for _ in range(count)]
        for tenant, count in (("a", 8), ("b", 3), ("c", 1))
    }
    order = []
    for _ in range(6):  # a single worker, which only ever hears of a's jobs
        rung = next(
            j for j in waiting["a"] if stores.jobs.for_tenant("a").get(j).status == "queued"
        )
        job = stores.leases.claim(stores.leases.whose_turn(rung), "wrk")
        assert job is not None
        order.append(job.tenant)
        stores.clock.pass_seconds(1)
        stores.leases.complete(lease_of(job), "f", {})
    assert sorted(order[:3]) == ["a", "b", "c"]
    assert sorted(order[3:5]) == ["a", "b"]
    assert order.count("c") == 1


def test_who_runs_less_comes_first(stores: Stores) -> None:
    for _ in range(2):
        assert stores.leases.claim(job_for(stores, "a").id, "wrk") is not None
        stores.clock.pass_seconds(1)
    assert stores.leases.claim(job_for(stores, "b").id, "wrk") is not None
    mine, theirs = job_for(stores, "a"), job_for(stores, "b")
    assert stores.leases.whose_turn(mine.id) == theirs.id
    assert stores.leases.whose_turn(theirs.id) == theirs.id


# Quotas


def report(leases: JobLeases, job: Job, passes: int) -> JobStatus:
    progress = JobProgress(Phase.STAGE1, 1, 10, passes)
    return leases.save_progress(lease_of(job), progress, {}).status


def test_passes_are_charged_once_whatever_is_repeated(stores: Stores) -> None:
    usage = UsageStore(stores.engine, stores.clock)
    job = stores.leases.claim(job_for(stores, "a").id, "wrk")
    assert job is not None
    for passes in (10, 30, 20, 25, 30, 45):  # went back to a checkpoint in between
        report(stores.leases, job, passes)
    assert usage.for_tenant("a").get().forward_passes == 45
    assert usage.for_tenant("b").get().forward_passes == 0
    stores.leases.complete(lease_of(job), "f", {})
    origin = stores.jobs.for_tenant("a").get(job.id)
    more = job_for(stores, "a", from_checkpoint=origin.id, charged_passes=origin.forward_passes)
    again = stores.leases.claim(more.id, "wrk")
    assert again is not None
    report(stores.leases, again, 60)  # counts what the checkpoint brought along
    assert usage.for_tenant("a").get().forward_passes == 60


def test_passes_begin_anew_every_month(stores: Stores) -> None:
    usage = UsageStore(stores.engine, stores.clock, "a")
    job = stores.leases.claim(job_for(stores, "a").id, "wrk")
    assert job is not None
    stores.clock.now = datetime(2026, 1, 31, 23, 59, 59, tzinfo=UTC)
    report(stores.leases, job, 10)
    assert (usage.get().month, usage.get().forward_passes) == ("2026-01", 10)
    stores.clock.pass_seconds(1)
    report(stores.leases, job, 25)
    assert (usage.get().month, usage.get().forward_passes) == ("2026-02", 15)


def two_claimed(stores: Stores, passes: int) -> tuple[JobStore, JobLeases, list[Job]]:
    """Two running jobs of the tenant `a`, which may take so many passes."""
    jobs = JobStore(stores.engine, stores.clock, quotas=Quotas(max_forward_passes=passes))
    leases = JobLeases(
        stores.engine,
        lease_seconds=LEASE_SECONDS,
        max_attempts=3,
        clock=stores.clock,
        max_passes=passes,
    )
    claimed = [leases.claim(job_for(stores, "a", jobs).id, "wrk") for _ in range(2)]
    return jobs, leases, [job for job in claimed if job is not None]


def test_a_job_is_paused_when_the_passes_are_used_up(stores: Stores) -> None:
    jobs, leases, (first, second) = two_claimed(stores, passes=100)
    assert report(leases, first, 60) is JobStatus.RUNNING
    assert report(leases, second, 40) is JobStatus.PAUSING
    assert leases.release(lease_of(second)).status is JobStatus.PAUSED
    assert report(leases, first, 61) is JobStatus.PAUSING
    assert "forward passes" in jobs.for_tenant("a").events(second.id)[-2].message
    for act in (
        lambda: jobs.for_tenant("a").request_resume(second.id),
        lambda: job_for(stores, "a", jobs),
    ):
        with pytest.raises(QuotaExceeded, match="101 of 100 are used") as caught:
            act()
        assert caught.value.retry_after is not None
        assert 30 * 86_400 < caught.value.retry_after <= 31 * 86_400 + 1
    assert job_for(stores, "b", jobs).status is JobStatus.QUEUED
    stores.clock.now = datetime(2026, 2, 1, tzinfo=UTC)
    assert jobs.for_tenant("a").request_resume(second.id).status is JobStatus.QUEUED


def test_a_job_that_finishes_is_not_paused_for_passes_that_it_no_longer_takes(
    stores: Stores,
) -> None:
    jobs, leases, (first, second) = two_claimed(stores, passes=100)
    jobs.for_tenant("a").request_finish(first.id)
    assert report(leases, second, 100) is JobStatus.PAUSING
    assert leases.release(lease_of(second)).status is JobStatus.PAUSED
    assert report(leases, first, 5) is JobStatus.RUNNING
    # Nor does a paused job need passes to finish.
    assert jobs.for_tenant("a").request_finish(second.id).status is JobStatus.QUEUED


def test_a_budget_beyond_what_is_left_is_refused(stores: Stores) -> None:
    jobs = JobStore(stores.engine, stores.clock, quotas=Quotas(max_forward_passes=100)).for_tenant(
        "a"
    )
    dataset = ready(stores, "a")

    def submit(budget: int | None) -> Job:
        config = {"max_forward_passes": budget}
        return jobs.create(NewJob(dataset_id=dataset, backbone="tiny", config=config))

    with pytest.raises(QuotaExceeded, match="may take 101"):
        submit(101)
    assert submit(100).status is JobStatus.QUEUED
    assert submit(None).status is JobStatus.QUEUED


def count_granted(act: Callable[[], object], threads: int) -> tuple[int, list[CoreError]]:
    """How many of so many calls at once succeed, and what the others raise."""
    barrier, refused = Barrier(threads), []

    def call() -> bool:
        barrier.wait()
        try:
            act()
        except CoreError as error:
            refused.append(error)
            return False
        return True

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(lambda _: call(), range(threads))), refused


def test_jobs_that_come_together_do_not_pass_one_by_one(stores: Stores) -> None:
    jobs = JobStore(stores.engine, stores.clock, quotas=Quotas(max_active_jobs=3)).for_tenant("a")
    dataset = ready(stores, "a")

    def submit() -> Job:
        return jobs.create(NewJob(dataset_id=dataset, backbone="tiny", config={}))

    granted, refused = count_granted(submit, 8)
    assert granted == 3
    assert {type(error) for error in refused} == {QuotaExceeded}
    assert "3 of 3" in refused[0].detail
    mine = [job for job in jobs.list(10).items if job.status is JobStatus.QUEUED]
    jobs.request_pause(mine[0].id)  # a paused one counts
    assert count_granted(submit, 1)[0] == 0
    jobs.request_cancel(mine[0].id)
    assert count_granted(submit, 1)[0] == 1
    with pytest.raises(QuotaExceeded):
        jobs.request_resume(mine[0].id)


def test_storage_is_bounded_together(stores: Stores) -> None:
    quotas = Quotas(max_storage_bytes=100)
    datasets = DatasetStore(stores.engine, stores.clock, quotas=quotas).for_tenant("a")
    prompts = PromptStore(stores.engine, stores.clock, quotas=quotas).for_tenant("a")
    granted, refused = count_granted(lambda: datasets.create("d", size=40), 5)
    assert granted == 2
    assert "80 of 100 bytes" in refused[0].detail
    assert refused[0].retry_after is None  # type: ignore[attr-defined]
    prompts.publish(new_prompt(size=20))
    with pytest.raises(QuotaExceeded, match="100 of 100"):
        prompts.publish(new_prompt(size=1))
    with pytest.raises(QuotaExceeded):
        datasets.require_room()
    one, other = datasets.list(2).items
    report: dict[str, Any] = {"classes": [], "counts": {}, "sha256": "0" * 64}
    with pytest.raises(QuotaExceeded, match="would make 101"):
        datasets.mark_ready(one.id, **report, report={"bytes": 41})
    assert datasets.get(one.id) == one
    assert datasets.mark_ready(one.id, **report, report={"bytes": 10}).bytes == 10
    datasets.mark_failed(other.id, "code", "message")
    assert UsageStore(stores.engine, stores.clock, "a").get().storage_bytes == 30
    datasets.require_room(70)


# The audit log


def entry(tenant: str, at: datetime, **changes: Any) -> AuditEntry:
    values: dict[str, Any] = {
        "id": new_id(Prefix.AUDIT),
        "tenant": tenant,
        "at": at,
        "key_id": None,
        "method": "POST",
        "route": "/v1/jobs",
        "object_id": "job_1",
        "status": 201,
        "code": None,
        "request_id": "req_1",
        "address": "127.0.0.1",
    }
    return AuditEntry(**values | changes)


def test_the_audit_log_is_a_tenants_own_and_forgets(stores: Stores) -> None:
    store, now = AuditStore(stores.engine, stores.clock), stores.clock.now
    ids = sorted(new_id(Prefix.AUDIT) for _ in range(3))  # of one millisecond
    a = [
        entry("a", now - n * DAY, id=one, key_id=f"key_{n % 2}")
        for one, n in zip(ids, (2, 1, 0), strict=True)
    ]
    b = entry("b", now)
    store.append([*a, b])
    store.append([*a, b])  # the answer of the first time was lost
    assert store.for_tenant("a").list().items == a[::-1]
    assert store.for_tenant("a").list(key_id="key_1").items == [a[1]]
    assert store.for_tenant("b").list().items == [b]
    assert store.delete_before(now - DAY) == 1
    assert store.for_tenant("a").list().items == a[:0:-1]
