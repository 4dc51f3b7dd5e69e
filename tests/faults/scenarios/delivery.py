"""Messages that arrive several times, and at the wrong time."""

from __future__ import annotations

from tests.faults.cluster import Cluster
from tests.faults.scenarios.broker import once_only

COPIES = 5


def deliver(cluster: Cluster, job_id: str, copies: int) -> None:
    """Put copies of a job's message straight into the broker."""
    for _ in range(copies):
        assert cluster.stores.queue.notify(job_id)


def wait_until_heard(cluster: Cluster) -> None:
    """Return when every message has been taken and a job behind them has run."""
    ended = cluster.wait_until_ended(cluster.submit().id)
    assert ended.status == "succeeded", ended


def duplicates(cluster: Cluster, jobs: int) -> list[str]:
    """Five copies of every job's message at once, and one more after its end: what went wrong."""
    job_ids = []
    for _ in range(jobs):
        job_ids.append(cluster.submit().id)
        deliver(cluster, job_ids[-1], COPIES - 1)  # the API has sent the first
    for job_id in job_ids:
        cluster.wait_until_ended(job_id)
        deliver(cluster, job_id, 1)
    wait_until_heard(cluster)
    faults = {job_id: once_only(cluster, job_id) for job_id in job_ids}
    published = sum(prompt.job_id in faults for prompt in cluster.client.prompts.list())
    wrong = [f"{job_id}: {what}" for job_id, what in faults.items() if what]
    return wrong if published == jobs else [*wrong, f"{published} prompts of {jobs} jobs"]
