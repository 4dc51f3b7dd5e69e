"""What can happen to the broker and its network, and what jobs and requests notice of it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.faults.cluster import ENDLESS, Cluster, Redis, history_faults
from tests.faults.proxy import FAIR, Proxy, Weather
from tests.faults.scenarios.workers import pause

#: What a running job's history holds if nothing ever happened to it.
CALM = frozenset({"queued", "started", "phase", "message"})


def empty(redis: Redis) -> None:
    """Forget every message, without a restart."""
    redis.command("FLUSHALL")


def kill(redis: Redis) -> None:
    """`kill -9` without persistence: it comes back empty."""
    redis.kill()
    redis.start()


def restart(redis: Redis) -> None:
    """A clean end and a new start."""
    redis.stop()
    redis.start()


@dataclass(frozen=True)
class Emptied:
    """What became of the jobs while Redis lost its memory again and again."""

    lost: int  #: Waiting jobs that did not succeed, once
    disturbed: int  #: Events of the running job that it would not have had without
    slowest: float  #: Seconds from the submission of a job to its end


def emptied(cluster: Cluster, faults: list[Callable[[Redis], None]], seed: int = 0) -> Emptied:
    """One long job runs, a short one is submitted right before every fault. Needs two workers."""
    assert cluster.redis is not None
    rng = random.Random(seed)
    running = cluster.submit(**ENDLESS)
    cluster.wait_until_running(running.id)
    short = []
    for fault in faults:
        short.append(cluster.submit().id)
        pause(rng.uniform(0, 0.3))
        fault(cluster.redis)
    ended = [cluster.wait_until_ended(job_id) for job_id in short]
    disturbed = len(set(cluster.event_types(running.id)) - CALM)
    disturbed += cluster.client.jobs.get(running.id).status != "running"
    cluster.cancel(running.id)
    return Emptied(
        lost=sum(job.status != "succeeded" or once_only(cluster, job.id) != [] for job in ended),
        disturbed=disturbed,
        slowest=max(
            (job.finished_at - job.created_at).total_seconds()
            for job in ended
            if job.finished_at and job.created_at
        ),
    )


def once_only(cluster: Cluster, job_id: str) -> list[str]:
    """What speaks against a job having been run once and published once."""
    events = cluster.events(job_id)
    faults = history_faults(events)
    started = sum(event.type == "started" for event in events)
    if started != 1:
        faults.append(f"started {started} times")
    if (prompts := cluster.prompts_of(job_id)) != 1:
        faults.append(f"{prompts} prompts")
    return faults


@dataclass(frozen=True)
class Storm:
    """What requests noticed of bad weather between the service and its broker."""

    slowest: float  #: Seconds of a request while it lasted
    reason: str  #: What readiness said
    healed: float  #: Seconds from fair weather to readiness
    lost: int  #: Jobs submitted meanwhile that did not run once


def storm(cluster: Cluster, proxy: Proxy, weather: Weather, requests: int) -> Storm:
    """Submit and look while the weather is bad; then wait until all is well again."""
    job_ids, seconds = [], []
    proxy.set(weather)
    for _ in range(requests):
        started = time.monotonic()
        job_ids.append(cluster.submit().id)
        submitted = time.monotonic()
        cluster.client.jobs.get(job_ids[-1])
        seconds += [submitted - started, time.monotonic() - submitted]
    reason = cluster.ready()
    proxy.set(FAIR)
    fair = time.monotonic()
    cluster.wait_until_ready()
    healed = time.monotonic() - fair
    ended = [cluster.wait_until_ended(job_id) for job_id in job_ids]
    lost = sum(job.status != "succeeded" or once_only(cluster, job.id) != [] for job in ended)
    return Storm(max(seconds), reason, healed, lost)


@contextmanager
def full(redis: Redis) -> Iterator[None]:
    """Redis takes no more messages, for its memory is used up."""
    redis.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
    redis.command("CONFIG", "SET", "maxmemory", "1")
    try:
        yield
    finally:
        redis.command("CONFIG", "SET", "maxmemory", "0")


def kill_api_before_it_rings(cluster: Cluster, proxy: Proxy) -> str:
    """A job is accepted while no message can go out, and the API dies; then both come back.

    Returns the job's id at the moment the API answers again.
    """
    assert cluster.api is not None
    proxy.set(Weather(refuse=True))
    job = cluster.submit()
    cluster.api.kill()
    proxy.set(FAIR)
    cluster.start_api()
    return job.id
