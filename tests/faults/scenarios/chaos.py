"""Random `kill -9` of workers, API and Redis while jobs are submitted and run."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from sharpzo_client import Client
from sharpzo_client.models import Job
from tests.faults.cluster import END_SECONDS, Cluster, history_faults
from tests.faults.scenarios.workers import pause, restore
from tests.helpers import eventually

PAUSE_SECONDS = (0.3, 2.0)  # between a kill and the next
WEIGHTS = {"worker": 3, "api": 1, "redis": 1}


@dataclass(frozen=True)
class Losses:
    """What random kills did to jobs."""

    accepted: int
    kills: Counter[str] = field(default_factory=Counter)
    hits: int = 0  #: Kills that took a job from its worker
    lost: list[str] = field(default_factory=list)  #: Accepted jobs that did not succeed once
    doubled: list[str] = field(default_factory=list)  #: Names of which there are several jobs


def random_kills(cluster: Cluster, *, workers: int, jobs: int, kills: int, seed: int = 0) -> Losses:
    """Submit `jobs` while `kills` processes die, and count what was lost.

    A process is killed only once it is up, so that every kill can do harm; and it is started again
    at once. The work is spread evenly over the kills.
    """
    rng = random.Random(seed)
    restore(cluster, workers)
    allowed = threading.Semaphore(0)
    killed: Counter[str] = Counter()
    with ThreadPoolExecutor(1) as submitter:
        accepted = submitter.submit(_submit_all, cluster, jobs, allowed)
        for kill in range(kills):
            allowed.release(len(range(kill, jobs, kills)))
            pause(rng.uniform(*PAUSE_SECONDS))
            killed[_kill_one(cluster, rng)] += 1
        names = accepted.result()
    eventually(cluster.api_answers, END_SECONDS, "the API")
    for job_id in names.values():
        cluster.wait_until_ended(job_id)
    return audit(cluster, names, killed)


def _submit_all(cluster: Cluster, jobs: int, allowed: threading.Semaphore) -> dict[str, str]:
    """Have every job accepted, as the client of a service that comes and goes: name -> id."""
    names = {}
    with Client(cluster.url, timeout=30, max_retries=0) as client:
        for number in range(jobs):
            allowed.acquire()
            name = f"chaos-{number:04}"
            names[name] = cluster.submit_until_accepted(client, name)
    return names


def _kill_one(cluster: Cluster, rng: random.Random) -> str:
    """Kill something that is up, and start it again."""
    targets = eventually(lambda: _targets(cluster), END_SECONDS, "something that is up")
    name = rng.choices(list(targets), [WEIGHTS[target] for target in targets])[0]
    targets[name]()
    return name


def _targets(cluster: Cluster) -> dict[str, Callable[[], None]]:
    targets: dict[str, Callable[[], None]] = {}
    if any(worker.is_up for worker in cluster.workers):
        targets["worker"] = lambda: _replace_worker(cluster)
    if cluster.api_answers():
        targets["api"] = lambda: _replace_api(cluster)
    if cluster.redis is not None and cluster.redis.is_up:
        targets["redis"] = lambda: _replace_redis(cluster)
    return targets


def _replace_worker(cluster: Cluster) -> None:
    """Kill the worker that has been up longest: it is the likeliest to hold a job."""
    worker = next(worker for worker in cluster.workers if worker.is_up)
    worker.kill()
    cluster.workers.remove(worker)
    cluster.start_worker()


def _replace_api(cluster: Cluster) -> None:
    assert cluster.api is not None
    cluster.api.kill()
    cluster.start_api(wait=False)


def _replace_redis(cluster: Cluster) -> None:
    assert cluster.redis is not None
    cluster.redis.kill()
    cluster.redis.start(wait=False)


def audit(cluster: Cluster, accepted: Mapping[str, str], killed: Counter[str]) -> Losses:
    """Ask the API what became of every job that it accepted."""
    found = {job.id: job for job in cluster.client.jobs.list()}
    names = Counter(job.name for job in found.values())
    prompts = Counter(prompt.job_id for prompt in cluster.client.prompts.list())
    lost, hits = [], 0
    for job_id in accepted.values():
        events = cluster.events(job_id)
        hits += sum(event.type == "worker_lost" for event in events)
        job: Job | None = found.get(job_id)
        wrong = history_faults(events)
        if job is None or job.status != "succeeded" or prompts[job_id] != 1 or wrong:
            lost.append(f"{job_id}: {job and job.status}, {prompts[job_id]} prompts, {wrong}")
    doubled = [str(name) for name, count in names.items() if count > 1 and name in accepted]
    return Losses(len(accepted), killed, hits, lost, doubled)
