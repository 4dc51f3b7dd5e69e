"""`run_job` over real stores, with a tuning that does what the test says."""

import errno
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sharpzo_core.backbones import BackboneSpec
from sharpzo_core.errors import StorageUnavailable
from sharpzo_core.records.checkpoints import FILES, checkpoint_prefix
from sharpzo_core.records.jobs import EventType, Job, JobStatus, NewJob
from sharpzo_core.records.prompts import prompt_key, report_key
from sharpzo_core.schemas.prompts import PromptPublic
from sharpzo_engine import TunedPrompt, __version__
from sharpzo_engine.checksummed import ChecksumError
from sharpzo_engine.errors import (
    BackboneError,
    BackboneMismatch,
    EncoderAway,
    FinishSearch,
    TooFewImages,
    TuningInterrupted,
)
from sharpzo_engine.files import write_atomically
from sharpzo_engine.reports.report import RunReport
from sharpzo_engine.search.checkpoint import CheckpointEvent, OnCheckpoint
from sharpzo_engine.search.history import StepRecord
from sharpzo_engine.search.progress import Progress
from tests.engine.reports.pages import a_report
from tests.helpers import CLASSES, Workplace
from worker import slot
from worker.checkpoints import MAX_FAILURES
from worker.dataset_files import Materials
from worker.runner import RunnerDeps, run_job

OnStep = Callable[[Progress], None]
Script = Callable[[OnStep, OnCheckpoint], None]


def record(step: int, phase: str = "stage1", loss: float = 1.0) -> StepRecord:
    return StepRecord(step, phase, loss, None, 0.5, 0.4, 0.1, step * 10, step * 0.1)


def progress(step: int, phase: Any = "stage1", loss: float = 1.0) -> Progress:
    return Progress(phase, step, 10, step * 10, None, record(step, phase, loss))


HISTORY = (record(1), record(2, loss=float("inf")))


@dataclass(frozen=True)
class FakeResult:
    prompt: TunedPrompt
    metrics: dict[str, Any] = field(
        default_factory=lambda: {"test_accuracy": 0.9, "loss": float("nan"), "source": "official"}
    )
    history: tuple[StepRecord, ...] = ()
    stopped_by: str = "completed"
    report: RunReport = field(default_factory=lambda: a_report(CLASSES, steps=4))


def a_prompt() -> TunedPrompt:
    return TunedPrompt(
        class_names=CLASSES,
        class_embeddings=np.ones((3, 4), np.float32) / 2,
        context=np.zeros((4, 8), np.float32),
        logit_scale=100.0,
        metadata={
            "backbone": {"name": "tiny", "pretrained": None, "fingerprint": "f"},
            "engine_version": "1.2.3",
        },
    )


def no_space() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


class FakeTune:
    """Runs the test's script where the engine would search."""

    def __init__(
        self, script: Script | None = None, history: tuple[StepRecord, ...] = HISTORY
    ) -> None:
        self.history = history
        self.script = script or (lambda on_step, _: on_step(progress(1)))

    def __call__(self, dataset: Any, backbone: Any, config: Any, **options: Any) -> Any:
        self.dataset, self.backbone, self.config, self.options = dataset, backbone, config, options
        self.script(options["on_step"], options["on_checkpoint"])
        return FakeResult(a_prompt(), history=self.history)


@pytest.fixture
def deps(workplace: Workplace) -> RunnerDeps:
    return RunnerDeps(
        owner="wrk_a",
        settings=workplace.settings,
        leases=workplace.leases,
        datasets=workplace.datasets,
        prompts=workplace.prompts,
        artifacts=workplace.artifacts,
        materials=Materials(workplace.artifacts, workplace.settings.cache_dir),
        queue=workplace.queue,
        load_backbone=lambda spec: spec,  # type: ignore[arg-type,return-value] # tuning is faked
        tune=FakeTune(),
        apply=slot.apply_prompt,
        draining=lambda: False,
        sleep=lambda _: None,
    )


def after(
    workplace: Workplace,
    deps: RunnerDeps,
    script: Script | None = None,
    history: tuple[StepRecord, ...] = HISTORY,
) -> Job:
    job = workplace.submit(notify=False)
    run_job(job.id, replace(deps, tune=FakeTune(script, history)) if script else deps)
    return workplace.jobs.get(job.id)


def test_success_publishes_a_prompt_and_a_report(workplace: Workplace, deps: RunnerDeps) -> None:
    job = after(workplace, deps)
    assert (job.status, job.attempt) == (JobStatus.SUCCEEDED, 1)
    assert job.metrics == {"test_accuracy": 0.9, "loss": None}
    assert job.prompt_id is not None
    prompt = workplace.prompts.get(job.prompt_id)
    assert (prompt.name, prompt.version, prompt.classes) == (job.id, 1, CLASSES)
    stored = TunedPrompt.load(workplace.artifacts.get_bytes(prompt_key(prompt.id)))
    assert stored.vectors_sha256 == a_prompt().vectors_sha256
    page = workplace.artifacts.get_bytes(report_key(job.id, "html")).decode()
    report = json.loads(workplace.artifacts.get_bytes(report_key(job.id, "json")))
    assert report["metrics"]["loss"] is None
    assert report["labels"]["job"] == job.id
    dataset = workplace.datasets.get(job.dataset_id)
    assert report["labels"]["dataset_sha256"] == dataset.sha256
    assert page.startswith("<!doctype html>")
    assert job.id in page
    assert str(dataset.sha256) in page


def test_a_published_prompt_knows_where_it_comes_from(
    workplace: Workplace, deps: RunnerDeps
) -> None:
    job = after(workplace, deps)
    dataset = workplace.datasets.get(job.dataset_id)
    prompt = workplace.prompts.get(str(job.prompt_id))
    assert prompt.lineage == {
        "dataset_id": dataset.id,
        "dataset_name": "shapes",
        "dataset_sha256": dataset.sha256,
        "config": job.config,
        "seed": job.config["seed"],
        "engine_version": "1.2.3",
        "from_checkpoint": None,
    }
    workplace.jobs.delete(job.id)
    told = PromptPublic.from_record(workplace.prompts.get(prompt.id)).lineage
    assert (told.source, told.job_id, told.parent) == ("job", job.id, None)


def test_a_page_that_cannot_be_drawn_does_not_cost_the_job(
    workplace: Workplace, deps: RunnerDeps, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: RunReport) -> str:
        raise RuntimeError("no fonts")

    monkeypatch.setattr(RunReport, "to_html", fail)
    job = after(workplace, deps)
    assert job.status is JobStatus.SUCCEEDED
    assert workplace.artifacts.exists(report_key(job.id, "json"))
    assert not workplace.artifacts.exists(report_key(job.id, "html"))


def test_the_engine_gets_local_files_and_the_jobs_configuration(
    workplace: Workplace, deps: RunnerDeps
) -> None:
    tune = FakeTune()
    job = workplace.submit(notify=False)
    run_job(job.id, replace(deps, tune=tune))
    assert tune.config.model_dump(mode="json") == job.config
    assert tune.dataset.class_names == CLASSES
    assert (len(tune.dataset.train), len(tune.dataset.test)) == (12, 6)
    assert all(example.path.is_file() for example in tune.dataset.train)
    assert tune.options["checkpoint_dir"].parent == workplace.artifacts.local_path(
        checkpoint_prefix(job.id)
    )
    assert tune.options["resume"]


def test_the_engine_gets_the_files_of_unlabelled_images(
    workplace: Workplace, deps: RunnerDeps
) -> None:
    tune = FakeTune()
    first = workplace.submit(notify=False)
    run_job(first.id, replace(deps, tune=tune))
    assert tune.options["unlabelled"] is None
    new = NewJob(
        dataset_id=first.dataset_id,
        unlabelled_dataset_id=first.dataset_id,
        backbone=first.backbone,
        config=first.config,
    )
    job = workplace.jobs.create(new)
    run_job(job.id, replace(deps, tune=tune))
    paths = tune.options["unlabelled"]
    assert {example.path for example in tune.dataset.train} <= set(paths)
    assert all(path.is_file() for path in paths)
    assert not {example.path for example in tune.dataset.test} & set(paths)


def test_progress_phases_and_steps_are_written(workplace: Workplace, deps: RunnerDeps) -> None:
    def script(on_step: OnStep, _: OnCheckpoint) -> None:
        on_step(Progress("preparing", 0, 10, 0, message="embedding"))
        for step in (1, 2, 3):
            on_step(progress(step, loss=float("nan")))
        on_step(progress(4, "stage2"))
        on_step(Progress("evaluating", 4, 10, 40))

    history = (*map(record, (1, 2, 3)), record(4, "stage2"))
    job = after(workplace, deps, script, history)
    assert [(s.step, s.phase) for s in workplace.jobs.steps(job.id)] == [
        (1, "stage1"),
        (2, "stage1"),
        (3, "stage1"),
        (4, "stage2"),
    ]
    assert (job.step, job.forward_passes) == (4, 40)
    phases = [e.data["phase"] for e in workplace.jobs.events(job.id) if e.type is EventType.PHASE]
    assert phases == ["preparing", "stage1", "stage2", "evaluating"]


def test_the_label_of_a_phase_stands_in_the_job_and_in_the_event(
    workplace: Workplace, deps: RunnerDeps
) -> None:
    seen: list[str | None] = []

    def script(on_step: OnStep, _: OnCheckpoint) -> None:
        seen.append(workplace.jobs.get(job_id()).phase_label)
        on_step(replace(progress(4, "stage2"), stage_label="Gauss-Newton"))
        seen.append(workplace.jobs.get(job_id()).phase_label)

    def job_id() -> str:
        return workplace.jobs.list().items[0].id

    job = after(workplace, deps, script)
    assert [*seen, job.phase_label] == ["Preparing", "Gauss-Newton", "Evaluating"]
    labels = [
        e.data["phase_label"] for e in workplace.jobs.events(job.id) if e.type is EventType.PHASE
    ]
    assert labels == ["Gauss-Newton"]


def test_steps_that_a_killed_worker_did_not_write_are_written_at_the_end(
    workplace: Workplace, deps: RunnerDeps
) -> None:
    # The checkpoint was newer than the last write: the resumed run tells of step 2 alone.
    job = after(workplace, deps, lambda on_step, _: on_step(progress(2)))
    assert [step.step for step in workplace.jobs.steps(job.id)] == [1, 2]
    assert (job.step, job.total_steps) == (2, 2)


def test_a_dataset_without_test_images_loses_no_step(
    workplace: Workplace, deps: RunnerDeps
) -> None:
    job = after(workplace, deps, lambda *_: None)
    assert job.step == len(workplace.jobs.steps(job.id)) == 2


def test_writes_are_about_one_a_second(workplace: Workplace, deps: RunnerDeps) -> None:
    now = [0.0]
    written = []

    def script(on_step: OnStep, _: OnCheckpoint) -> None:
        for step in range(1, 41):
            now[0] += 0.1
            on_step(progress(step))
            written.append(workplace.leases.held()[0].expires_at)

    after(workplace, replace(deps, ticks=lambda: now[0]), script)
    assert 3 <= len(set(written)) <= 6


def test_a_cancel_is_noticed_at_the_next_write(workplace: Workplace, deps: RunnerDeps) -> None:
    now = [0.0]

    def script(on_step: OnStep, _: OnCheckpoint) -> None:
        on_step(progress(1))
        workplace.jobs.request_cancel(workplace.leases.held()[0].lease.job_id)
        now[0] += 1.0
        on_step(progress(2))
        raise AssertionError("went on")

    job = after(workplace, replace(deps, ticks=lambda: now[0]), script)
    assert job.status is JobStatus.CANCELLED
    assert workplace.prompts.list().items == []


def test_a_cancel_during_publication_wins(workplace: Workplace, deps: RunnerDeps) -> None:
    def script(on_step: OnStep, _: OnCheckpoint) -> None:
        workplace.jobs.request_cancel(workplace.leases.held()[0].lease.job_id)

    job = after(workplace, deps, script)
    assert (job.status, job.prompt_id) == (JobStatus.CANCELLED, None)
    assert not list((workplace.settings.data_dir / "artifacts" / "prompts").glob("*"))


def test_draining_puts_the_job_back_and_rings(workplace: Workplace, deps: RunnerDeps) -> None:
    job = after(workplace, replace(deps, draining=lambda: True))
    assert (job.status, job.attempt, job.lease_token) == (JobStatus.QUEUED, 0, None)
    assert workplace.queue.depth() == 1
    assert workplace.jobs.events(job.id)[-1].type is EventType.RELEASED


def test_a_pause_is_noticed_and_the_attempt_does_not_count(
    workplace: Workplace, deps: RunnerDeps
) -> None:
    def script(on_step: OnStep, _: OnCheckpoint) -> None:
        on_step(progress(1))
        workplace.jobs.request_pause(workplace.leases.held()[0].lease.job_id)
        on_step(progress(2, "stage2"))
        raise AssertionError("went on")

    job = after(workplace, deps, script)
    assert (job.status, job.attempt, job.lease_token) == (JobStatus.PAUSED, 0, None)
    assert workplace.queue.depth() == 0
    assert workplace.jobs.events(job.id)[-1].type is EventType.PAUSED


def test_a_request_to_finish_is_noticed_at_the_next_write(
    workplace: Workplace, deps: RunnerDeps
) -> None:
    now = [0.0]
    asked = []

    def script(on_step: OnStep, _: OnCheckpoint) -> None:
        on_step(progress(1))
        workplace.jobs.request_finish(workplace.leases.held()[0].lease.job_id)
        now[0] += 1.0
        for step in (2, 3):
            with suppress(FinishSearch):
                on_step(progress(step))
                continue
            asked.append(step)
        with suppress(FinishSearch):
            on_step(Progress("evaluating", 3, 10, 30))

    job = after(workplace, replace(deps, ticks=lambda: now[0]), script)
    assert asked == [2, 3]
    assert job.status is JobStatus.SUCCEEDED
    assert job.prompt_id is not None


def test_a_pause_that_is_taken_back_too_late_queues_the_job(
    workplace: Workplace, deps: RunnerDeps
) -> None:
    def script(on_step: OnStep, _: OnCheckpoint) -> None:
        job_id = workplace.leases.held()[0].lease.job_id
        workplace.jobs.request_pause(job_id)
        with suppress(TuningInterrupted):
            on_step(progress(1))
        workplace.jobs.request_resume(job_id)
        raise TuningInterrupted

    job = after(workplace, deps, script)
    assert job.status is JobStatus.QUEUED
    assert workplace.queue.depth() == 1


def test_a_job_whose_remote_encoder_is_away_waits_for_it(
    workplace: Workplace, deps: RunnerDeps
) -> None:
    def script(on_step: OnStep, _: OnCheckpoint) -> None:
        on_step(progress(1))
        raise EncoderAway("it does not answer")

    job = after(workplace, deps, script)
    assert (job.status, job.error_code, job.attempt) == (JobStatus.QUEUED, None, 0)
    assert workplace.queue.depth() == 1


class FakeRemote:
    """A remote encoder whose model may be replaced, or be away."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.fault, self.changed, self.checks = fault, False, 0

    def check(self) -> None:
        self.checks += 1
        if self.fault is not None:
            raise self.fault


def test_remote_backbones_are_checked_for_every_job(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = [FakeRemote(), FakeRemote()]
    backbones, spec = iter(loaded), BackboneSpec("far", "remote:http://x/y")
    monkeypatch.setattr(slot, "load_backbone", lambda *_: next(backbones))
    load: Any = slot.Backbones("cpu")
    assert load(spec) is load(spec) is loaded[0]
    assert loaded[0].checks == 2
    loaded[0].fault = EncoderAway()
    with pytest.raises(EncoderAway):
        load(spec)
    loaded[0].fault = BackboneMismatch()
    assert load(spec) is load(spec) is loaded[1]  # a new job may use the new model


def test_checkpoints_are_noted_in_the_row_and_told(workplace: Workplace, deps: RunnerDeps) -> None:
    def script(on_step: OnStep, on_checkpoint: OnCheckpoint) -> None:
        on_checkpoint(CheckpointEvent("rejected", 0, ChecksumError("it is damaged")))
        on_checkpoint(CheckpointEvent("resumed", 7))
        on_checkpoint(CheckpointEvent("failed", 8, no_space()))
        on_checkpoint(CheckpointEvent("saved", 9))
        (held,) = workplace.leases.held()
        seen.append(workplace.jobs.get(held.lease.job_id))
        assert held.lease.token == (seen[0].checkpoint and seen[0].checkpoint.folder)

    seen: list[Job] = []
    job = after(workplace, deps, script)
    assert job.checkpoint is not None
    assert job.checkpoint.step == 9
    told = [(e.type, e.level, e.message) for e in workplace.jobs.events(job.id)]
    assert told[2:5] == [
        ("checkpoint_corrupt", "warning", "a checkpoint is not used: it is damaged"),
        ("resumed", "info", "resumed after step 7"),
        (
            "checkpoint_failed",
            "warning",
            "a checkpoint could not be written: no space is left",
        ),
    ]


@pytest.mark.parametrize(
    ("error", "code"),
    [(no_space, "storage_full"), (lambda: OSError(errno.EIO, "I/O"), "storage_unavailable")],
)
def test_a_disk_that_stays_full_ends_the_job_in_the_end(
    workplace: Workplace, deps: RunnerDeps, error: Callable[[], OSError], code: str
) -> None:
    told: list[int] = []

    def script(on_step: OnStep, on_checkpoint: OnCheckpoint) -> None:
        for step in range(1, 3 * MAX_FAILURES):
            if step == MAX_FAILURES - 1:  # one that succeeds makes good for those before
                on_checkpoint(CheckpointEvent("saved", step))
            else:
                told.append(step)
                on_checkpoint(CheckpointEvent("failed", step, error()))

    job = after(workplace, deps, script)
    assert (job.status, job.error_code) == (JobStatus.FAILED, code)
    assert len(told) == 2 * MAX_FAILURES - 2
    assert job.checkpoint is not None
    assert job.checkpoint.step == MAX_FAILURES - 1


@pytest.mark.parametrize("remote", [False, True])
def test_a_resumed_job_goes_on_from_what_its_row_names(
    make_workplace: Callable[..., Workplace], deps: RunnerDeps, tmp_path: Path, remote: bool
) -> None:
    url = f"memory://{tmp_path.name}" if remote else ""
    place = make_workplace(artifact_url=url, data_dir=tmp_path / "place")
    deps = replace(
        deps,
        settings=place.settings,
        leases=place.leases,
        datasets=place.datasets,
        artifacts=place.artifacts,
        materials=Materials(place.artifacts, place.settings.cache_dir),
        queue=place.queue,
    )
    job = place.submit(notify=False)
    contents: list[bytes | None] = []

    def interrupted(*_: Any, **options: Any) -> Any:
        newest = options["checkpoint_dir"] / FILES[0]
        contents.append(newest.read_bytes() if newest.exists() else None)
        write_atomically(newest, b"%d" % len(contents))
        options["on_checkpoint"](CheckpointEvent("saved", len(contents)))
        raise TuningInterrupted

    for _ in range(3):
        assert run_job(job.id, replace(deps, tune=interrupted)) is JobStatus.QUEUED
    assert contents == [None, b"1", b"2"]
    now = place.jobs.get(job.id).checkpoint
    assert now is not None
    assert now.step == 3
    assert place.artifacts.get_bytes(f"{checkpoint_prefix(job.id, now.folder)}/{FILES[0]}") == b"3"
    if remote:  # nothing is left of the copies
        assert not list((place.settings.cache_dir / "jobs").rglob("*.safetensors"))
    else:  # one claim's folder at a time
        folders = place.artifacts.local_path(checkpoint_prefix(job.id))
        assert folders is not None
        assert [folder.name for folder in folders.iterdir()] == [now.folder]

    place.artifacts.delete_prefix(checkpoint_prefix(job.id))
    assert run_job(job.id, replace(deps, tune=interrupted)) is JobStatus.QUEUED
    assert contents[-1] is None
    assert EventType.CHECKPOINT_CORRUPT in [e.type for e in place.jobs.events(job.id)]


def test_a_former_checkpoint_that_cannot_be_removed_costs_nothing(
    workplace: Workplace, deps: RunnerDeps, monkeypatch: pytest.MonkeyPatch
) -> None:
    def saves(on_step: OnStep, on_checkpoint: OnCheckpoint) -> None:
        on_checkpoint(CheckpointEvent("saved", 1))

    def fail(_: str) -> None:
        raise StorageUnavailable

    job = workplace.submit(notify=False)

    def puts_down(on_step: OnStep, on_checkpoint: OnCheckpoint) -> None:
        saves(on_step, on_checkpoint)
        raise TuningInterrupted

    assert run_job(job.id, replace(deps, tune=FakeTune(puts_down))) is JobStatus.QUEUED
    monkeypatch.setattr(workplace.artifacts, "delete_prefix", fail)
    assert run_job(job.id, replace(deps, tune=FakeTune(saves))) is JobStatus.SUCCEEDED


def test_a_worker_that_lost_its_lease_leaves_without_a_word(
    workplace: Workplace, deps: RunnerDeps
) -> None:
    def script(on_step: OnStep, _: OnCheckpoint) -> None:
        on_step(progress(1))
        # The lease may be renewed between a look and the recovery, which then does nothing.
        while held := workplace.leases.held():
            workplace.leases.recover(held[0])
        workplace.leases.claim(workplace.leases.waiting(1)[0].id, "wrk_b")
        on_step(progress(2, "stage2"))
        raise AssertionError("went on")

    job = after(workplace, deps, script)
    assert (job.status, job.lease_owner, job.step) == (JobStatus.RUNNING, "wrk_b", 1)


def test_a_second_delivery_does_nothing(workplace: Workplace, deps: RunnerDeps) -> None:
    job = after(workplace, deps)
    assert run_job(job.id, deps) is None
    assert workplace.jobs.get(job.id) == job


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TooFewImages("class 'cat' has 1"), "too_few_images"),
        (BackboneError("unknown"), "backbone_unavailable"),
        (no_space(), "storage_full"),
        (MemoryError(), "out_of_memory"),
        (RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate"), "out_of_memory"),
        (ZeroDivisionError("/secret/path"), "internal_error"),
    ],
)
def test_an_error_ends_the_job_with_its_code(
    workplace: Workplace, deps: RunnerDeps, error: Exception, code: str
) -> None:
    def script(on_step: OnStep, _: OnCheckpoint) -> None:
        raise error

    job = after(workplace, deps, script)
    assert (job.status, job.error_code) == (JobStatus.FAILED, code)
    assert "/secret" not in (job.error_message or "")


def test_a_dataset_whose_files_are_gone_fails_the_job(
    workplace: Workplace, deps: RunnerDeps
) -> None:
    job = workplace.submit(notify=False)
    workplace.artifacts.delete_prefix(f"datasets/{job.dataset_id}")
    assert run_job(job.id, deps) is JobStatus.FAILED
    assert workplace.jobs.get(job.id).error_code == "dataset_missing"


def test_a_backbone_nobody_offers_any_more_fails_the_job(
    make_workplace: Callable[..., Workplace], workplace: Workplace, deps: RunnerDeps
) -> None:
    job = workplace.submit(notify=False)
    settings = workplace.settings.model_copy(
        update={"backbones": "other", "default_backbone": "other"}
    )
    vars(settings).pop("backbone_specs", None)
    assert run_job(job.id, replace(deps, settings=settings)) is JobStatus.FAILED
    assert workplace.jobs.get(job.id).error_code == "backbone_unavailable"


def test_a_storage_that_is_away_for_a_while_costs_nothing(
    workplace: Workplace, deps: RunnerDeps, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, failures = workplace.artifacts.put_bytes, [StorageUnavailable(), StorageUnavailable()]

    def flaky(key: str, data: bytes) -> None:
        if failures:
            raise failures.pop()
        put(key, data)

    job = workplace.submit(notify=False)
    monkeypatch.setattr(workplace.artifacts, "put_bytes", flaky)
    assert run_job(job.id, deps) is JobStatus.SUCCEEDED


def test_remote_images_are_fetched_once(
    make_workplace: Callable[..., Workplace], tmp_path: Path
) -> None:
    place = make_workplace(artifact_url=f"memory://{tmp_path.name}")
    record = place.add_dataset()
    materials = Materials(place.artifacts, place.settings.cache_dir)
    dataset = materials.dataset(record, shots=2, seed=1)
    wanted = {e.path for e in (*dataset.train, *dataset.val, *dataset.test)}
    assert set((place.settings.cache_dir / "images").iterdir()) == wanted
    place.artifacts.delete_prefix(f"datasets/{record.id}/images")
    assert materials.dataset(record, shots=2, seed=1) == dataset


def test_half_of_the_classes_are_tuned_on(workplace: Workplace, deps: RunnerDeps) -> None:
    load = partial(slot.load_backbone, workplace.settings.device)
    real = replace(deps, load_backbone=load, tune=slot.tune)
    job = workplace.submit(notify=False, classes="base", total_steps=2, change_point=1)
    assert run_job(job.id, real) is JobStatus.SUCCEEDED
    done = workplace.jobs.get(job.id)
    assert workplace.prompts.get(str(done.prompt_id)).classes == ("cat", "dog")
    assert done.metrics["test_images"] == 4


def finishing_at(step: int, workplace: Workplace, job_id: str) -> Any:
    """The engine's `tune`, and a user who asks the job to finish after this step."""

    def tune(*args: Any, on_step: OnStep, **options: Any) -> Any:
        def watched(progress: Progress) -> None:
            if progress.step == step and progress.record:
                workplace.jobs.request_finish(job_id)
            on_step(progress)

        return slot.tune(*args, on_step=watched, **options)

    return tune


def test_a_real_run_that_is_asked_to_finish_publishes_its_best_prompt(
    workplace: Workplace, deps: RunnerDeps
) -> None:
    now = iter(range(10**6))
    load = partial(slot.load_backbone, workplace.settings.device)
    job = workplace.submit(notify=False)
    tune = finishing_at(7, workplace, job.id)
    real = replace(deps, load_backbone=load, tune=tune, ticks=lambda: float(next(now)))
    assert run_job(job.id, real) is JobStatus.SUCCEEDED
    done = workplace.jobs.get(job.id)
    assert (done.stopped_by, done.finishing, done.attempt) == ("finished", True, 1)
    assert (done.step, done.total_steps) == (7, 7)
    assert len(workplace.jobs.steps(job.id)) == 7
    assert done.metrics["test_accuracy"] is not None
    stored = TunedPrompt.load(workplace.artifacts.get_bytes(prompt_key(str(done.prompt_id))))
    assert stored.metadata["stopped_by"] == "finished"
    report = json.loads(workplace.artifacts.get_bytes(report_key(job.id, "json")))
    assert report["headline"]["stopped_by"] == "finished"
    types = [event.type for event in workplace.jobs.events(job.id)]
    assert types.index(EventType.FINISHING) < types.index(EventType.SUCCEEDED)
    # A longer run goes on from there.
    assert done.checkpoint is not None
    assert done.checkpoint.step == 7
    more = workplace.jobs.create(
        NewJob(
            dataset_id=job.dataset_id,
            backbone=job.backbone,
            config=job.config,
            from_checkpoint=job.id,
            checkpoint=done.checkpoint,
        )
    )
    prefix = checkpoint_prefix(more.id, done.checkpoint.folder)
    for name in FILES:
        key = f"{checkpoint_prefix(job.id, done.checkpoint.folder)}/{name}"
        if workplace.artifacts.exists(key):
            workplace.artifacts.put_bytes(f"{prefix}/{name}", workplace.artifacts.get_bytes(key))
    assert run_job(more.id, replace(real, tune=slot.tune)) is JobStatus.SUCCEEDED
    longer = workplace.jobs.get(more.id)
    assert (longer.step, longer.stopped_by) == (40, "completed")


def test_another_worker_finishes_at_once_what_one_was_asked_to_finish(
    workplace: Workplace, deps: RunnerDeps
) -> None:
    """The request came while its worker shut down; the job waited in the queue meanwhile."""
    draining = [False]

    def tune(*args: Any, on_step: OnStep, **options: Any) -> Any:
        def watched(progress: Progress) -> None:
            if progress.step == 5:
                workplace.jobs.request_finish(job.id)
                draining[0] = True
            on_step(progress)

        return slot.tune(*args, on_step=watched, **options)

    load = partial(slot.load_backbone, workplace.settings.device)
    job = workplace.submit(notify=False)
    real = replace(deps, load_backbone=load, tune=tune, draining=lambda: draining[0])
    assert run_job(job.id, real) is JobStatus.QUEUED
    assert workplace.jobs.get(job.id).finishing
    draining[0] = False
    assert run_job(job.id, replace(real, tune=slot.tune)) is JobStatus.SUCCEEDED
    done = workplace.jobs.get(job.id)
    assert (done.step, done.stopped_by) == (5, "finished")


def test_a_paused_job_is_finished_by_the_next_worker(
    workplace: Workplace, deps: RunnerDeps
) -> None:
    load = partial(slot.load_backbone, workplace.settings.device)
    job = workplace.submit(notify=False)
    workplace.jobs.request_pause(job.id)
    assert workplace.jobs.request_finish(job.id).status is JobStatus.QUEUED
    assert run_job(job.id, replace(deps, load_backbone=load, tune=slot.tune)) == "succeeded"
    done = workplace.jobs.get(job.id)
    assert (done.step, done.stopped_by, workplace.jobs.steps(job.id)) == (0, "finished", [])
    assert done.metrics["prompt_test_accuracy"] == done.metrics["zero_shot_accuracy"]


def test_the_real_engine_tunes_a_stored_dataset(workplace: Workplace, deps: RunnerDeps) -> None:
    load = partial(slot.load_backbone, workplace.settings.device)
    real = replace(deps, load_backbone=load, tune=slot.tune)
    job = workplace.submit(notify=False)
    assert run_job(job.id, real) is JobStatus.SUCCEEDED
    done = workplace.jobs.get(job.id)
    assert done.step == len(workplace.jobs.steps(job.id)) == 40
    assert done.metrics["test_accuracy"] is not None
    assert done.metrics["prompt_test_accuracy"] is not None
    assert done.metrics["zero_shot_accuracy"] is not None
    assert workplace.prompts.get(str(done.prompt_id)).lineage["engine_version"] == __version__
