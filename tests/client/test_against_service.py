"""The SDK against the real service and worker, started as processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from sharpzo_cli.demo.server import running_service
from sharpzo_client import (
    AsyncClient,
    Client,
    ConflictError,
    DatasetFailed,
    Job,
    JobCancelled,
    NotFoundError,
    UnprocessableEntityError,
)
from sharpzo_engine.prompts.interval import wilson_interval

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

COLOURS = {"red": (220, 20, 30), "green": (20, 200, 40), "blue": (30, 40, 230)}
CONFIG = {
    "shots": 4,
    "total_steps": 12,
    "change_point": 4,
    "prompt": {"intrinsic_dim": 8},
    "cma": {"population_size": 4},
}

LONG = {"total_steps": 100_000, "change_point": 100_000, "max_forward_passes": 10**9}


@pytest.fixture(scope="session")
def service(
    small_backbone: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Client, str]]:
    folder = tmp_path_factory.mktemp("service")
    settings = {"SHARPZO_BACKBONES": f"tiny=local-dir:{small_backbone}"}
    with running_service(folder / "data", folder / "log", settings) as client:
        yield client, str(client._transport._http.base_url)
    assert "Traceback" not in (folder / "log").read_text()


@pytest.fixture(scope="session")
def client(service: tuple[Client, str]) -> Client:
    return service[0]


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for split, count in {"train": 4, "val": 2, "test": 2}.items():
        for name, colour in COLOURS.items():
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                shade = tuple(max(0, part - 9 * index - len(split)) for part in colour)
                Image.new("RGB", (16, 16), shade).save(folder / split / name / f"{index}.png")
    (folder / "classnames.json").write_text(json.dumps({"red": "something red"}))
    return folder


@pytest.fixture(scope="session")
def dataset_id(client: Client, photos: Path) -> str:
    dataset = client.datasets.upload(photos, name="colours", poll=0.1)
    assert dataset.status == "ready"
    assert set(dataset.classes or ()) == {"something red", "green", "blue"}
    assert dataset.splits is not None
    assert dict(dataset.splits) == {"train": 12, "val": 6, "test": 6}
    return dataset.id


@pytest.fixture(scope="session")
def job(client: Client, dataset_id: str) -> Job:
    """A job that was watched to its good end."""
    submitted = client.jobs.create(
        dataset_id, config=CONFIG, name="colours", metadata={"who": "tests"}
    )
    assert submitted.status in {"queued", "running"}
    done = client.jobs.wait(submitted.id, poll=0.1, timeout=90)
    assert (done.status, done.metadata) == ("succeeded", {"who": "tests"})
    return done


def test_events_are_streamed_to_the_end_and_can_be_read_again(client: Client, job: Job) -> None:
    streamed = list(client.jobs.stream_events(job.id))
    assert [event.seq for event in streamed] == list(range(1, len(streamed) + 1))
    assert streamed[0].type == "queued"
    assert streamed[-1].type == "succeeded"
    assert list(client.jobs.events(job.id, page_size=2)) == streamed
    assert list(client.jobs.stream_events(job.id, after=2)) == streamed[2:]
    assert list(client.jobs.stream_events(job.id, after=streamed[-1].seq)) == []


def test_metrics_follow_the_steps(client: Client, job: Job) -> None:
    steps = client.jobs.metrics(job.id)
    assert [record.step for record in steps] == list(range(1, 13))
    assert steps[0].phase == "stage1"
    assert steps[-1].phase == "stage2"
    assert job.progress.forward_passes >= (steps[-1].forward_passes or 0) > 0
    assert job.metrics.zero_shot_accuracy is not None
    assert job.metrics.test_accuracy is not None
    assert job.metrics.prompt_test_accuracy is not None
    interval = (job.metrics.test_accuracy_low, job.metrics.test_accuracy_high)
    assert interval == wilson_interval(job.metrics.test_accuracy, job.metrics.test_images or 0)
    published = client.prompts.get(str(job.prompt_id)).metrics
    assert (published.test_accuracy_low, published.test_accuracy_high) == interval
    assert len(client.jobs.metrics(job.id, from_step=3, to_step=10)) == 8


def test_downloaded_prompt_answers_as_the_service_does(
    client: Client, job: Job, photos: Path, small_backbone: Path, tmp_path: Path
) -> None:
    from sharpzo_engine import PromptClassifier, TunedPrompt, load_backbone

    assert job.prompt_id is not None
    images = sorted(photos.glob("test/*/*.png"))
    answer = client.prompts.classify(job.prompt_id, images, top_k=3)
    assert (answer.prompt_id, answer.version) == (job.prompt_id, 1)
    path = client.prompts.download(job.prompt_id, tmp_path / "prompt.safetensors")
    prompt = TunedPrompt.load(path)
    assert prompt.metadata["backbone"]["name"] == "tiny"  # what the operator calls it
    backbone = load_backbone(f"local-dir:{small_backbone}")
    local = PromptClassifier(prompt, backbone).predict(images, top_k=3)
    for remote, own in zip(answer.results, local, strict=True):
        assert [p.label for p in remote.predictions] == [p.label for p in own]
        assert [p.score for p in remote.predictions] == pytest.approx(
            [p.score for p in own], abs=1e-4
        )


def test_several_prompts_and_options_of_an_answer(client: Client, job: Job, photos: Path) -> None:
    images = sorted(photos.glob("test/*/*.png"))
    options = {"calibrated": True, "zero_shot": True, "deadline": 30.0, "top_k": 3}
    alone = client.prompts.classify("colours", images, **options)  # type: ignore[arg-type]
    for result in alone.results:
        assert sum(p.score for p in result.predictions) == pytest.approx(1, abs=1e-5)
        assert sum(p.score for p in result.zero_shot) == pytest.approx(1, abs=1e-5)
    one, missing = client.classify(images, ["colours:1", "nobody"], **options)  # type: ignore[arg-type]
    assert (one.prompt_id, one.version, one.error) == (job.prompt_id, 1, None)
    for found, expected in zip(one.results, alone.results, strict=True):
        assert [p.score for p in found.predictions] == pytest.approx(
            [p.score for p in expected.predictions], abs=1e-5
        )
    assert missing.error is not None
    assert missing.error.code == "not_found"
    assert client.base_url.startswith("http://127.0.0.1:")


def test_an_exported_prompt_answers_as_the_service_does(
    client: Client, job: Job, photos: Path, small_backbone: Path, tmp_path: Path
) -> None:
    from sharpzo_engine import PromptClassifier, TunedPrompt, load_backbone

    images = sorted(photos.glob("test/*/*.png"))
    prompt = client.prompts.get(str(job.prompt_id))
    artifact = TunedPrompt.load(client.prompts.download(prompt.id, tmp_path / "p.safetensors"))
    classifier = PromptClassifier(artifact, load_backbone(f"local-dir:{small_backbone}"))
    embeddings = classifier.embed(images)
    matrix = np.load(client.prompts.export(prompt.id, tmp_path / "p.npy"), allow_pickle=False)
    logits = embeddings @ matrix[:, :-1].T + matrix[:, -1]
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    answer = client.prompts.classify(prompt.id, images, top_k=3)
    for row, result in zip(scores, answer.results, strict=True):
        assert {p.label: p.score for p in result.predictions} == pytest.approx(
            dict(zip(prompt.classes, row.tolist(), strict=True)), abs=1e-5
        )
    calibrated = client.prompts.export(prompt.id, tmp_path / "c.npy", calibrated=True)
    assert artifact.temperature is not None
    np.testing.assert_allclose(np.load(calibrated), matrix / artifact.temperature, rtol=1e-6)


def test_names_and_versions_lead_to_the_prompt(client: Client, job: Job) -> None:
    prompt = client.prompts.get("colours")
    assert (prompt.id, prompt.version, prompt.job_id) == (job.prompt_id, 1, job.id)
    assert client.prompts.get("colours:1") == prompt
    assert prompt.residency is not None
    listed = prompt.model_copy(update={"residency": None})
    assert listed in list(client.prompts.list(page_size=1))


def test_a_prompt_can_be_carried_over(client: Client, job: Job, tmp_path: Path) -> None:
    path = client.prompts.download("colours", tmp_path / "p.safetensors")
    copy = client.prompts.upload(path, "copied")
    assert copy.sha256 == client.prompts.get("colours").sha256
    assert (copy.name, copy.version) == ("copied", 1)
    client.prompts.delete(copy.id)
    with pytest.raises(NotFoundError):
        client.prompts.get(copy.id)


def test_a_version_is_promoted_pinned_and_rolled_back(
    client: Client, job: Job, dataset_id: str, photos: Path, tmp_path: Path
) -> None:
    first = client.prompts.get(str(job.prompt_id))
    assert first.lineage.source == "job"
    assert (first.lineage.job_id, first.lineage.dataset_id) == (job.id, dataset_id)
    assert first.lineage.seed == (job.config or {})["seed"]
    path = client.prompts.download(first.id, tmp_path / "p.safetensors")
    better, worse = (client.prompts.upload(path, "promoted") for _ in range(2))
    assert (better.lineage.source, better.lineage.config) == ("import", first.lineage.config)
    assert better.lineage.engine_version == first.lineage.engine_version

    client.aliases.set("promoted@live", better.id, expected_prompt_id=None, comment="first")
    gate = {"metric": "test_accuracy", "min_improvement": 0.01}
    with pytest.raises(ConflictError) as caught:
        client.aliases.set("promoted@live", worse.id, gate=gate)
    assert caught.value.code == "gate_failed"
    moved = client.aliases.set("live", worse.id, expected_prompt_id=better.id)
    assert client.prompts.pin("promoted@live").pinned
    assert client.prompts.get(worse.id).aliases == ("live",)
    images = [photos / "test" / "red" / "0.png"]
    assert client.prompts.classify("promoted@live", images).version == worse.version
    with pytest.raises(ConflictError) as caught:
        client.prompts.delete(worse.id)
    assert caught.value.code == "prompt_in_use"

    assert client.aliases.rollback("live").prompt_id == better.id
    with pytest.raises(ConflictError) as caught:
        client.aliases.rollback("live")
    assert caught.value.code == "nothing_to_roll_back"
    assert client.aliases.get("live", at=moved.updated_at).prompt_id == worse.id
    history = list(client.aliases.history("live", page_size=2))
    assert [change.action for change in history] == ["rollback", "set", "set"]
    assert history == list(client.aliases.get("live").history)
    assert [alias.ref for alias in client.aliases.list(name="promoted")] == ["promoted@live"]
    versions = [prompt.id for prompt in client.prompts.list(name="promoted", page_size=1)]
    assert versions == [worse.id, better.id]
    client.prompts.delete(worse.id)
    client.aliases.delete("live")
    with pytest.raises(NotFoundError):
        client.aliases.get("live")
    client.prompts.delete(better.id)


async def test_the_async_client_promotes_and_rolls_back(
    service: tuple[Client, str], job: Job, tmp_path: Path
) -> None:
    async with AsyncClient(service[1]) as client:
        path = await client.prompts.download(str(job.prompt_id), tmp_path / "p.safetensors")
        first, second = [await client.prompts.upload(path, "elsewhere") for _ in range(2)]
        for prompt in (first, second):
            await client.aliases.set("elsewhere@test", prompt.id)
        assert (await client.aliases.rollback("elsewhere@test")).prompt_id == first.id
        assert [change.seq async for change in client.aliases.history("test")] == [3, 2, 1]
        assert [alias.ref async for alias in client.aliases.list(name="elsewhere")] == [
            "elsewhere@test"
        ]
        assert (await client.prompts.pin(first.id)).pinned
        assert not (await client.prompts.unpin(first.id)).pinned
        await client.aliases.delete("test")
        for prompt in (first, second):
            await client.prompts.delete(prompt.id)


def test_one_bad_image_spoils_only_itself(client: Client, job: Job, photos: Path) -> None:
    images = [b"", photos / "test" / "red" / "0.png"]
    answer = client.prompts.classify(str(job.prompt_id), images)
    assert answer.results[0].error is not None
    assert answer.results[0].error.code == "image_undecodable"
    assert answer.results[1].best is not None


def test_wrong_values_are_pointed_at(client: Client, dataset_id: str) -> None:
    with pytest.raises(UnprocessableEntityError) as caught:
        client.jobs.create(dataset_id, config={"shots": 0, "zo": {"nonsense": 1}})
    assert caught.value.code
    assert caught.value.request_id
    pointers = {fault.pointer for fault in caught.value.errors}
    assert pointers == {"/config/shots", "/config/zo/nonsense"}
    with pytest.raises(UnprocessableEntityError):
        client.jobs.create(dataset_id, backbone="local-dir:/etc")


def test_what_is_not_there_is_not_found(client: Client, dataset_id: str) -> None:
    for call in (client.jobs.get, client.jobs.cancel, client.datasets.get, client.prompts.get):
        with pytest.raises(NotFoundError):
            call("nothing")  # type: ignore[operator]
    with pytest.raises(NotFoundError):
        list(client.jobs.stream_events("nothing"))
    with pytest.raises((NotFoundError, UnprocessableEntityError)):
        client.jobs.create("ds_nothing")


def test_a_dataset_without_classes_fails(client: Client, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    source = photos / "test" / "red" / "0.png"
    (tmp_path / "one" / "a.png").write_bytes(source.read_bytes())
    with pytest.raises(DatasetFailed) as caught:
        client.datasets.upload(tmp_path / "one", poll=0.1)
    assert caught.value.dataset.error is not None
    assert caught.value.dataset.error.code == "dataset_layout_invalid"


def test_a_running_job_can_be_cancelled(client: Client, dataset_id: str) -> None:
    job = client.jobs.create(
        dataset_id, config=CONFIG | {"total_steps": 1_000_000, "max_forward_passes": 10**9}
    )
    with pytest.raises(ConflictError):
        client.jobs.delete(job.id)
    types = [event.type for event in _cancel_when_it_runs(client, job.id)]
    assert types[-1] == "cancelled"
    with pytest.raises(JobCancelled):
        client.jobs.wait(job.id, poll=0.1, timeout=60)
    client.jobs.delete(job.id)
    with pytest.raises(NotFoundError):
        client.jobs.get(job.id)


def test_a_job_is_put_by_and_goes_on_and_another_goes_on_from_there(
    client: Client, dataset_id: str
) -> None:
    job = client.jobs.create(dataset_id, config=CONFIG | LONG)
    _await(client, job.id, lambda job: job.progress.step > 20)
    client.jobs.pause(job.id)
    paused = _await(client, job.id, lambda job: job.status == "paused")
    assert paused.checkpoint is not None
    assert paused.checkpoint.step >= 20
    assert paused.attempt == 0

    longer = client.jobs.create(
        dataset_id,
        config={"total_steps": paused.checkpoint.step + 5},
        from_checkpoint=job.id,
        idempotency_key="five more steps",
    )
    ended = client.jobs.wait(longer.id, poll=0.1, timeout=120)
    assert ended.progress.step == paused.checkpoint.step + 5
    (resumed,) = [e for e in client.jobs.events(longer.id) if e.type == "resumed"]
    assert resumed.data == {"step": paused.checkpoint.step}

    client.jobs.resume(job.id)
    running = _await(client, job.id, lambda job: job.status == "running")
    assert running.attempt == 1
    _await(client, job.id, lambda job: job.progress.step > paused.checkpoint.step)
    client.jobs.cancel(job.id)
    _await(client, job.id, lambda job: job.is_terminal)
    assert [event.type for event in client.jobs.stream_events(job.id)][-1] == "cancelled"


def test_a_job_finishes_early_with_its_best_prompt_so_far(client: Client, dataset_id: str) -> None:
    job = client.jobs.create(dataset_id, config=CONFIG | LONG)
    _await(client, job.id, lambda job: job.progress.step > 5)
    asked = client.jobs.finish(job.id)
    assert asked.finishing
    ended = client.jobs.wait(job.id, poll=0.1, timeout=120)
    assert (ended.status, ended.stopped_by) == ("succeeded", "finished")
    assert 5 < ended.progress.step < LONG["total_steps"]
    assert ended.metrics.test_accuracy is not None
    assert client.prompts.get(str(ended.prompt_id)).job_id == job.id
    assert client.jobs.report(job.id)["headline"]["stopped_by"] == "finished"
    assert [e.type for e in client.jobs.events(job.id)].count("finishing") == 1
    assert client.jobs.finish(job.id) == ended

    ended = client.jobs.wait(client.jobs.create(dataset_id, config=CONFIG).id, poll=0.1)
    assert ended.stopped_by == "completed"
    with pytest.raises(ConflictError, match="has published its prompt already"):
        client.jobs.finish(ended.id)


def _await(client: Client, job_id: str, condition: Callable[[Job], bool]) -> Job:
    deadline = time.monotonic() + 30
    while not condition(job := client.jobs.get(job_id)):
        assert time.monotonic() < deadline, job
        time.sleep(0.05)
    return job


def _cancel_when_it_runs(client: Client, job_id: str) -> Iterator[object]:
    for event in client.jobs.stream_events(job_id):
        if event.type == "phase" or event.type == "started":
            client.jobs.cancel(job_id)
        yield event


async def test_the_async_client_does_the_same(
    service: tuple[Client, str], job: Job, photos: Path, tmp_path: Path
) -> None:
    async with AsyncClient(service[1]) as client:
        assert (await client.health.readyz()).status == "ok"
        assert [item.name for item in await client.backbones.list()] == ["tiny"]
        dataset = await client.datasets.upload(photos, "again", poll=0.1)
        assert dataset.id in [item.id async for item in client.datasets.list(page_size=1)]
        events = [event async for event in client.jobs.stream_events(job.id)]
        assert events[-1].type == "succeeded"
        assert (await client.jobs.wait(job.id, progress=True)).id == job.id
        with pytest.raises(ConflictError, match="has published its prompt already"):
            await client.jobs.finish(job.id)
        answer = await client.prompts.classify("colours", [photos / "test" / "red" / "0.png"])
        assert answer.results[0].best is not None
        await client.prompts.download("colours", tmp_path / "p.safetensors")
        await client.prompts.export("colours", tmp_path / "p.onnx", "onnx")
        await client.datasets.delete(dataset.id)


def test_a_dataset_is_evaluated_and_labelled(
    client: Client, job: Job, dataset_id: str, photos: Path, tmp_path: Path
) -> None:
    measured = client.jobs.wait(client.prompts.evaluate(str(job.prompt_id), dataset_id).id)
    assert (measured.kind, measured.prompt_id) == ("evaluation", job.prompt_id)
    assert measured.metrics.accuracy == pytest.approx(job.metrics.test_accuracy)
    report = client.jobs.report(measured.id)
    assert report["figures"]["accuracy"] == measured.metrics.accuracy
    assert report["figures"]["accuracy_low"] == measured.metrics.accuracy_low
    page = client.jobs.download_report(measured.id, tmp_path / "evaluation.html")
    assert "<svg" in page.read_text()

    batch = client.prompts.classify_dataset(str(job.prompt_id), dataset_id, split="test", top_k=1)
    batch = client.jobs.wait(batch.id)
    records = list(client.jobs.results(batch.id))
    right = [record.best is not None and record.best.label == record.label for record in records]
    assert sum(right) / len(right) == pytest.approx(measured.metrics.accuracy)
    assert [record.file for record in records] == sorted(record.file for record in records)
    table = client.jobs.download_results(batch.id, tmp_path / "labels.csv", format="csv")
    assert len(table.read_text().splitlines()) == len(records) + 1
    assert [found.id for found in client.jobs.list(kind="classification")][:1] == [batch.id]


def test_the_batch_example_runs(
    service: tuple[Client, str], job: Job, photos: Path, tmp_path: Path
) -> None:
    loose = tmp_path / "loose"
    (loose / "deeper").mkdir(parents=True)
    Image.new("RGB", (16, 16), COLOURS["red"]).save(loose / "one.png")
    Image.new("RGB", (16, 16), COLOURS["blue"]).save(loose / "deeper" / "two.png")
    (loose / "torn.png").write_bytes(b"no image")
    example = Path(__file__).parents[2] / "examples" / "batch_inference.py"
    ran = subprocess.run(
        [sys.executable, example, str(job.prompt_id), loose, photos],
        env=os.environ | {"SHARPZO_URL": service[1], "PYTHONPATH": ":".join(sys.path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    for name in ("one.png", "deeper/two.png", "torn.png", "accuracy:", "labels.csv"):
        assert name in ran.stdout
    assert "not JPEG, PNG or WebP" in ran.stdout
    assert (tmp_path / "evaluation.html").is_file()
