"""Real signals to real worker processes that hold a real job."""

import os
import signal
import time
from collections.abc import Callable

import pytest

import sharpzo_engine
from sharpzo_core.jobs import EventType, JobStatus
from sharpzo_core.prompts import prompt_key
from sharpzo_engine import TunedPrompt, TuningConfig
from tests.helpers import Workplace
from worker.materials import Materials

RECOVERY_SECONDS = 30  # with the default timings
CHILD_RECOVERY_SECONDS = 15
DRAIN_SECONDS = 20
LONG = {"total_steps": 400, "change_point": 20}
ENDLESS = {"total_steps": 20_000, "change_point": 20}  # long enough on any machine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

MODES = [
    "embedded",
    pytest.param("servers", marks=[pytest.mark.needs("redis"), pytest.mark.needs("postgres")]),
]


@pytest.fixture(params=MODES)
def place(request: pytest.FixtureRequest, make_workplace: Callable[..., Workplace]) -> Workplace:
    """Default timings, but for frequent checkpoints."""
    if request.param == "embedded":
        return make_workplace(checkpoint_seconds=0.2)
    return make_workplace(
        checkpoint_seconds=0.2,
        broker_url=request.getfixturevalue("redis_url"),
        database_url=request.getfixturevalue("postgres_url"),
    )


def test_a_killed_worker_group_costs_one_attempt_and_changes_nothing(place: Workplace) -> None:
    job = place.submit(**LONG)
    first = place.start_worker()
    place.wait_for_checkpoint(job.id)

    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    place.start_worker()
    place.wait(job.id, lambda _: len(place.workers.alive(3600)) == 2)
    started = time.monotonic()
    place.wait(job.id, lambda job: job.attempt == 2)
    recovery = time.monotonic() - started
    ended = place.wait_until_ended(job.id)

    assert recovery < RECOVERY_SECONDS
    assert (ended.status, ended.attempt) == (JobStatus.SUCCEEDED, 2)
    assert EventType.WORKER_LOST in [event.type for event in place.jobs.events(job.id)]
    steps = [step.step for step in place.jobs.steps(job.id, resolution=10_000)]
    assert steps == list(range(1, ended.step + 1))
    assert ended.prompt_id is not None
    prompt = TunedPrompt.load(place.artifacts.get_bytes(prompt_key(ended.prompt_id)))
    assert prompt.vectors_sha256 == undisturbed(place, job.id)
    assert not (place.settings.checkpoint_dir / job.id).exists()


def test_sigterm_puts_the_job_back_and_the_attempt_does_not_count(place: Workplace) -> None:
    job = place.submit(**ENDLESS)
    first = place.start_worker()
    place.wait_for_checkpoint(job.id)

    started = time.monotonic()
    for _ in range(3):
        first.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    assert first.wait(60) == 0
    took = time.monotonic() - started
    put_down = place.jobs.get(job.id)

    assert took < DRAIN_SECONDS
    assert (put_down.status, put_down.attempt) == (JobStatus.QUEUED, 0)
    assert put_down.step > 0
    assert place.workers.alive(3600) == []
    assert place.queue.depth() == 1

    place.start_worker()
    resumed = place.wait(job.id, lambda job: job.attempt == 1 and job.step > put_down.step)
    steps = [step.step for step in place.jobs.steps(job.id, 0, resumed.step, 10_000)]
    assert steps == list(range(1, resumed.step + 1))
    place.jobs.request_cancel(job.id)
    assert place.wait_until_ended(job.id).status is JobStatus.CANCELLED


def test_a_killed_pool_child_is_replaced_and_its_parent_serves_on(
    make_workplace: Callable[..., Workplace],
) -> None:
    place = make_workplace(checkpoint_seconds=0.2)
    job = place.submit(**LONG)
    worker = place.start_worker()
    place.wait_for_checkpoint(job.id)

    (held,) = place.leases.held()
    os.kill(int((held.process or "").split("/")[2]), signal.SIGKILL)
    killed = time.monotonic()
    place.wait(job.id, lambda job: job.attempt == 2)
    recovery = time.monotonic() - killed
    ended = place.wait_until_ended(job.id)

    assert recovery < CHILD_RECOVERY_SECONDS
    assert (ended.status, ended.attempt) == (JobStatus.SUCCEEDED, 2)
    assert worker.poll() is None


def undisturbed(place: Workplace, job_id: str) -> str:
    """The hash of the vectors that a run without accidents learns."""
    job = place.jobs.get(job_id)
    config = TuningConfig.model_validate(job.config)
    spec = place.settings.backbone(job.backbone)
    materials = Materials(place.artifacts, place.settings.cache_dir)
    dataset = materials.dataset(place.datasets.get(job.dataset_id), config.shots, config.seed)
    backbone = sharpzo_engine.load_backbone(spec.model, spec.pretrained, "cpu")
    return sharpzo_engine.tune(dataset, backbone, config).prompt.vectors_sha256
