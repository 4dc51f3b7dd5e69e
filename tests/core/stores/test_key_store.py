"""API keys in both databases: what they open, how they end, and what ends with them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from threading import Barrier

import pytest

from sharpzo_core.errors import AuthInvalid, NotFound, StateConflict
from sharpzo_core.records.jobs import TERMINAL, Job, JobStatus, NewJob, Origin
from sharpzo_core.records.keys import NewKey, Scope, digest_of, make_key, prefix_of
from sharpzo_core.stores.job_leases import lease_of
from sharpzo_core.stores.key_store import KeyStore
from tests.core.conftest import Stores


@pytest.fixture
def keys(stores: Stores) -> KeyStore:
    return KeyStore(stores.engine, stores.clock)


def opens(keys: KeyStore, text: str) -> bool:
    return keys.find(prefix_of(text), digest_of(text)) is not None


def job_of(stores: Stores, key: NewKey) -> Job:
    return stores.job(key_id=key.record.id)


def test_a_key_opens_until_it_is_revoked(keys: KeyStore) -> None:
    assert not keys.any()
    made = keys.create("a", [Scope.JOBS])
    assert keys.any()
    found = keys.for_all_tenants().find(prefix_of(made.text), digest_of(made.text))
    assert found == made.record
    assert not opens(keys, make_key())
    assert not opens(keys.for_tenant("other"), made.text)
    revoked = keys.revoke(made.record.prefix)
    assert keys.revoke(made.record.id) == revoked  # again changes nothing
    assert not opens(keys, made.text)
    assert keys.any()


def test_a_key_expires(keys: KeyStore, stores: Stores) -> None:
    made = keys.create("a", [Scope.JOBS], expires_at=stores.clock.now + timedelta(seconds=5))
    assert opens(keys, made.text)
    stores.clock.pass_seconds(5)
    assert not opens(keys, made.text)
    with pytest.raises(StateConflict, match="expired"):
        keys.rotate(made.record.id)


@pytest.mark.parametrize("ref", ["", "key_x", "szo_1", "' OR 1=1--", "a\0", "key_" + "u" * 26])
def test_what_names_no_key_is_not_found(keys: KeyStore, ref: str) -> None:
    keys.create("a", [Scope.JOBS])
    for act in (keys.get, keys.revoke, keys.rotate):
        with pytest.raises(NotFound):
            act(ref)


def test_a_revocation_cancels_what_the_key_started_and_nothing_else(
    keys: KeyStore, stores: Stores
) -> None:
    mine, other = keys.create("a", [Scope.JOBS]), keys.create("b", [Scope.JOBS])
    waiting, running, paused, done = (job_of(stores, mine) for _ in range(4))
    kept = [job_of(stores, other), stores.job()]
    claimed = stores.leases.claim(running.id, "wrk")
    assert claimed is not None
    stores.jobs.request_pause(paused.id)
    ended = stores.leases.claim(done.id, "wrk")
    assert ended is not None
    stores.leases.complete(lease_of(ended), "f", {})
    keys.revoke(mine.record.id)
    found = {job.id: job.status for job in stores.jobs.list(100).items}
    assert found[waiting.id] == found[paused.id] == JobStatus.CANCELLED
    assert found[running.id] is JobStatus.CANCELLING  # its worker hears at its next heartbeat
    assert found[done.id] is JobStatus.SUCCEEDED
    assert {found[job.id] for job in kept} == {JobStatus.QUEUED}
    assert stores.leases.renew(lease_of(claimed)).status is JobStatus.CANCELLING
    assert stores.leases.release(lease_of(claimed)).status is JobStatus.CANCELLED
    assert stores.jobs.events(waiting.id)[-1].type == "cancelled"


def test_a_revoked_key_starts_and_resumes_nothing(keys: KeyStore, stores: Stores) -> None:
    mine, other = keys.create("a", [Scope.JOBS]), keys.create("b", [Scope.JOBS])
    job = job_of(stores, mine)
    keys.revoke(mine.record.id)
    with pytest.raises(AuthInvalid):
        job_of(stores, mine)
    with pytest.raises(AuthInvalid):
        stores.jobs.request_resume(job.id, Origin(mine.record.id))
    resumed = stores.jobs.request_resume(job.id, Origin(other.record.id))
    assert (resumed.status, resumed.key_id) == (JobStatus.QUEUED, other.record.id)
    keys.revoke(other.record.id)  # who resumes a job answers for it
    assert stores.jobs.get(job.id).status is JobStatus.CANCELLED


def test_no_job_slips_past_a_revocation(keys: KeyStore, stores: Stores) -> None:
    """Jobs that are submitted while the key is revoked are refused or cancelled, every one."""
    dataset = stores.ready_dataset()
    for _ in range(5):
        made, barrier = keys.create("a", [Scope.JOBS]), Barrier(5)

        def submit(key: NewKey = made, barrier: Barrier = barrier) -> None:
            barrier.wait()
            for _ in range(4):
                try:
                    new = NewJob(dataset_id=dataset.id, backbone="tiny", config={})
                    stores.jobs.create(new, Origin(key.record.id))
                except AuthInvalid:
                    return

        with ThreadPoolExecutor(5) as pool:
            submitted = [pool.submit(submit) for _ in range(4)]
            barrier.wait()
            keys.revoke(made.record.id)
            for future in submitted:
                future.result()
        left = [
            job
            for job in stores.jobs.list(1000).items
            if job.key_id == made.record.id and job.status not in TERMINAL
        ]
        assert left == []


def test_a_rotation_hands_rights_and_jobs_on(keys: KeyStore, stores: Stores) -> None:
    old = keys.create("a", [Scope.JOBS, Scope.INFER], rate_limit="5/second")
    job = job_of(stores, old)
    new = keys.rotate(old.record.id, timedelta(seconds=60))
    same = {"id", "prefix", "sha256", "created_at", "expires_at"}
    left, right = (
        {name: value for name, value in vars(key.record).items() if name not in same}
        for key in (old, new)
    )
    assert left == right
    assert opens(keys, old.text)
    assert opens(keys, new.text)
    assert stores.jobs.get(job.id).key_id == new.record.id
    stores.clock.pass_seconds(60)
    assert not opens(keys, old.text)
    assert opens(keys, new.text)
    assert stores.jobs.get(job.id).status is JobStatus.QUEUED
    keys.revoke(new.record.id)
    assert stores.jobs.get(job.id).status is JobStatus.CANCELLED


def test_a_grace_lengthens_no_life(keys: KeyStore, stores: Stores) -> None:
    end = stores.clock.now + timedelta(seconds=10)
    old = keys.create("a", [Scope.JOBS], expires_at=end)
    keys.rotate(old.record.id, timedelta(days=1))
    assert keys.get(old.record.id).expires_at == end


def test_the_last_use_only_grows(keys: KeyStore, stores: Stores) -> None:
    made, now = keys.create("a", [Scope.JOBS]), stores.clock.now
    for moment in (now, now - timedelta(hours=1), now + timedelta(hours=1)):
        keys.mark_used({made.record.id: moment})
    expected = replace(made.record, last_used_at=now + timedelta(hours=1))
    assert keys.get(made.record.id) == expected


def test_lists_are_a_tenants_own(keys: KeyStore) -> None:
    mine = [keys.for_tenant("a").create(str(n), [Scope.JOBS]).record for n in range(3)]
    keys.for_tenant("b").create("b", [Scope.JOBS])
    first = keys.for_tenant("a").list(2)
    assert first.items == mine[:0:-1]
    assert keys.for_tenant("a").list(2, first.next).items == mine[:1]
    assert len(keys.for_all_tenants().list(10).items) == 4
