"""Messages that come several times, at once and too late."""

from __future__ import annotations

import pytest

from sharpzo_client.errors import NotFoundError
from tests.faults.cluster import ENDLESS, Cluster, history_faults
from tests.faults.scenarios.delivery import COPIES, deliver, duplicates, wait_until_heard

pytestmark = pytest.mark.timeout(300)


@pytest.mark.fast
def test_five_copies_of_a_message_run_a_job_once(cluster: Cluster) -> None:
    assert duplicates(cluster, jobs=2) == []


def test_messages_for_jobs_that_are_over_change_nothing(cluster: Cluster) -> None:
    succeeded = cluster.wait_until_ended(cluster.submit().id)
    endless = cluster.submit(**ENDLESS)
    cluster.wait_until_running(endless.id)
    cancelled = cluster.cancel(endless.id)
    deleted = cluster.wait_until_ended(cluster.submit().id)
    cluster.client.jobs.delete(deleted.id)

    for job in (succeeded, cancelled, deleted):
        deliver(cluster, job.id, COPIES)
    wait_until_heard(cluster)

    for job in (succeeded, cancelled):
        assert cluster.client.jobs.get(job.id) == job
        assert history_faults(cluster.events(job.id)) == []
    with pytest.raises(NotFoundError):
        cluster.client.jobs.get(deleted.id)
    assert cluster.prompts_of(deleted.id) == 1
    assert sum(bool(worker.logged("claim_lost")) for worker in cluster.workers) >= 1
