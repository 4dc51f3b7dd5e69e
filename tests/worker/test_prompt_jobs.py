"""Jobs that apply a prompt, by `run_job` over real stores, a real backbone and real images."""

import csv
import hashlib
import io
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from numpy.typing import NDArray
from PIL import Image

from sharpzo_core.database import tables
from sharpzo_core.errors import (
    NotFound,
    PromptInUse,
    StorageFull,
    StorageUnavailable,
    ValidationFailed,
)
from sharpzo_core.ids import Prefix, new_id
from sharpzo_core.records.datasets import UNLABELLED, DatasetRecord, image_key, manifest_key
from sharpzo_core.records.jobs import EventType, Job, JobKind, JobStatus
from sharpzo_core.records.prompts import NewPrompt, PromptRecord, prompt_key
from sharpzo_core.records.results import (
    evaluation_key,
    part_key,
    parts_prefix,
    results_key,
    results_prefix,
)
from sharpzo_core.schemas.jobs import BatchCreate, EvaluationCreate
from sharpzo_core.storage.artifact_store import LocalArtifacts
from sharpzo_core.stores.job_leases import lease_of
from sharpzo_core.submission.prompt_jobs import PromptJobSubmitter
from sharpzo_engine import (
    Backbone,
    TunedPrompt,
    TuningConfig,
    load_backbone,
    load_dataset,
    tune,
)
from sharpzo_engine.checksummed import seal
from sharpzo_engine.prompts.interval import wilson_interval
from sharpzo_engine.reports.evaluation_report import EvaluationReport
from tests.helpers import CLASSES, Workplace
from worker import shards, slot
from worker.dataset_files import Materials
from worker.results import as_cell
from worker.runner import RunnerDeps, run_job

ALL = 24  # images of the dataset of `Workplace`
SIZE = 5  # images of a part here
LAST = 4  # the number of the last part


@pytest.fixture(scope="module")
def backbone(small_backbone: Path) -> Backbone:
    return load_backbone(f"local-dir:{small_backbone}", device="cpu")


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "PART_IMAGES", SIZE)


@pytest.fixture
def deps(
    workplace: Workplace, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RunnerDeps]:
    return deps_of(workplace, backbone)


def deps_of(place: Workplace, backbone: Backbone) -> RunnerDeps:
    return RunnerDeps(
        owner="wrk_a",
        settings=place.settings,
        leases=place.leases,
        datasets=place.datasets,
        prompts=place.prompts,
        artifacts=place.artifacts,
        materials=Materials(place.artifacts, place.settings.cache_dir),
        queue=place.queue,
        load_backbone=lambda _: backbone,
        tune=slot.tune,
        apply=slot.apply_prompt,
        draining=lambda: False,
        sleep=lambda _: None,
    )


def a_prompt(
    backbone: Backbone, names: tuple[str, ...] = CLASSES, temperature: float | None = 2.0
) -> TunedPrompt:
    """Each class is a random direction of its own, by its name."""
    rows = [
        np.random.default_rng(sum(name.encode())).standard_normal(backbone.embed_dim)
        for name in names
    ]
    embeddings = np.array(rows, np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    head = {} if temperature is None else {"head": {"kind": "none", "temperature": temperature}}
    metadata = {"backbone": {**backbone.describe(), "name": "tiny"}, **head}
    return TunedPrompt(
        names, embeddings, np.zeros((4, backbone.text_width), np.float32), 20.0, metadata
    )


def publish(place: Workplace, prompt: TunedPrompt, name: str = "shapes") -> PromptRecord:
    data = prompt.to_bytes()
    record = NewPrompt(
        id=new_id(Prefix.PROMPT),
        name=name,
        job_id=None,
        backbone=dict(prompt.metadata["backbone"]),
        classes=prompt.class_names,
        metrics={},
        sha256=hashlib.sha256(data).hexdigest(),
    )
    place.artifacts.put_bytes(prompt_key(record.id), data)
    return place.prompts.publish(record)


def classify(place: Workplace, prompt: PromptRecord, dataset: DatasetRecord, **asked: Any) -> Job:
    request = BatchCreate(dataset_id=dataset.id, **asked)
    return PromptJobSubmitter(place.settings, place.jobs, place.datasets).submit_classification(
        prompt, request
    )


def evaluate(place: Workplace, prompt: PromptRecord, dataset: DatasetRecord, **asked: Any) -> Job:
    request = EvaluationCreate(dataset_id=dataset.id, **asked)
    return PromptJobSubmitter(place.settings, place.jobs, place.datasets).submit_evaluation(
        prompt, request
    )


def results(place: Workplace, job: Job, form: Any = "jsonl") -> bytes:
    job = place.jobs.get(job.id)
    assert job.status is JobStatus.SUCCEEDED, (job.error_code, job.error_message)
    assert job.result_folder is not None
    return place.artifacts.get_bytes(results_key(job.id, job.result_folder, form))


def lines(place: Workplace, job: Job) -> list[dict[str, Any]]:
    return [json.loads(line) for line in results(place, job).splitlines()]


def report(place: Workplace, job: Job) -> dict[str, Any]:
    job = place.jobs.get(job.id)
    assert job.status is JobStatus.SUCCEEDED, (job.error_code, job.error_message)
    assert job.result_folder is not None
    found: dict[str, Any] = json.loads(
        place.artifacts.get_bytes(evaluation_key(job.id, job.result_folder, "json"))
    )
    return found


def files_of(place: Workplace, job: Job) -> set[str]:
    folder = place.artifacts.local_path(f"jobs/{job.id}")
    assert folder is not None
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


class Embedder:
    """The backbone, with a count of images and a script that is run before each pass."""

    def __init__(self, backbone: Backbone, before: Callable[[int], None] = lambda _: None) -> None:
        self._backbone = backbone
        self._before = before
        self.images = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)

    def encode_images(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        self._before(self.images)
        self.images += len(batch)
        return self._backbone.encode_images(batch)


class Killed(BaseException):
    """What no `except Exception` sees, like the end of a process."""


def expected(place: Workplace, prompt: TunedPrompt, dataset: DatasetRecord, backbone: Any) -> Any:
    """Probabilities [N, C] of all images, computed plainly."""
    images = Materials(place.artifacts, place.settings.cache_dir).images(dataset, None)
    from sharpzo_engine.prompts.classifier import PromptClassifier

    classifier = PromptClassifier(prompt, backbone)
    return classifier.probabilities(classifier.embed([str(image.path) for image in images]))


def test_every_image_is_classified_in_the_datasets_order(
    workplace: Workplace, deps: RunnerDeps, backbone: Backbone
) -> None:
    tuned, dataset = a_prompt(backbone), workplace.add_dataset()
    job = classify(workplace, publish(workplace, tuned), dataset, top_k=2, zero_shot=True)
    assert run_job(job.id, deps) is JobStatus.SUCCEEDED

    found = lines(workplace, job)
    assert [line["index"] for line in found] == list(range(ALL))
    assert [line["split"] for line in found] == ["train"] * 12 + ["val"] * 6 + ["test"] * 6
    assert [line["label"] for line in found][12:18] == ["cat", "cat", "dog", "dog", "bird", "bird"]
    scores = expected(workplace, tuned, dataset, backbone)
    for line, row in zip(found, scores, strict=True):
        best = np.argsort(-row)[:2]
        assert [p["label"] for p in line["predictions"]] == [CLASSES[i] for i in best]
        assert [p["score"] for p in line["predictions"]] == pytest.approx(row[best], abs=1e-5)
        assert len(line["zero_shot"]) == 2
    done = workplace.jobs.get(job.id)
    assert (done.kind, done.phase, done.prompt_id) == (
        "classification",
        "evaluating",
        job.prompt_id,
    )
    assert (done.step, done.total_steps, done.metrics) == (ALL, ALL, {"images": ALL, "errors": 0})
    assert files_of(workplace, job) == {
        f"results/{done.result_folder}/images.{form}" for form in ("jsonl", "csv")
    }
    assert not list(workplace.settings.cache_dir.glob(".*.tmp"))
    assert workplace.jobs.events(job.id)[-1].type is EventType.SUCCEEDED


def test_the_table_says_the_same_as_the_lines(
    workplace: Workplace, deps: RunnerDeps, backbone: Backbone
) -> None:
    prompt = publish(workplace, a_prompt(backbone))
    job = classify(workplace, prompt, workplace.add_dataset(), split="test", zero_shot=True)
    run_job(job.id, deps)
    table = list(csv.DictReader(io.StringIO(results(workplace, job, "csv").decode())))
    for row, line in zip(table, lines(workplace, job), strict=True):
        assert (row["index"], row["file"]) == (str(line["index"]), line["file"])
        assert (row["split"], row["label"], row["error_code"]) == ("test", line["label"], "")
        for name in ("prediction", "zero_shot"):
            key = {"prediction": "predictions"}.get(name, name)
            for rank, prediction in enumerate(line[key], 1):
                assert row[f"{name}_{rank}"] == prediction["label"]
                assert float(row[f"{name}_score_{rank}"]) == prediction["score"]
    assert len(table[0]) == 6 + 2 * 2 * len(CLASSES)  # top_k is more than there are classes


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\tx", "\rx"])
def test_no_cell_is_a_formula(text: str) -> None:
    assert as_cell(text) == f"'{text}"
    assert as_cell(f"a{text}") == f"a{text}"


def test_calibrated_scores_are_those_at_the_prompts_temperature(
    workplace: Workplace, deps: RunnerDeps, backbone: Backbone
) -> None:
    dataset, tuned = workplace.add_dataset(), a_prompt(backbone, temperature=4.0)
    prompt = publish(workplace, tuned)
    plain, calibrated = (
        classify(workplace, prompt, dataset, calibrated=value) for value in (False, True)
    )
    for job in (plain, calibrated):
        run_job(job.id, deps)
    for cold, warm in zip(lines(workplace, plain), lines(workplace, calibrated), strict=True):
        scores = {p["label"]: p["score"] ** 0.25 for p in cold["predictions"]}
        for prediction in warm["predictions"]:
            share = scores[prediction["label"]] / sum(scores.values())
            assert prediction["score"] == pytest.approx(share, rel=1e-3)


def test_a_prompt_without_a_temperature_is_not_calibrated(
    workplace: Workplace, deps: RunnerDeps, backbone: Backbone
) -> None:
    prompt = publish(workplace, a_prompt(backbone, temperature=None))
    job = classify(workplace, prompt, workplace.add_dataset(), calibrated=True)
    assert run_job(job.id, deps) is JobStatus.FAILED
    assert workplace.jobs.get(job.id).error_code == "not_calibrated"


def test_an_evaluation_measures_by_class_names(
    workplace: Workplace, deps: RunnerDeps, backbone: Backbone
) -> None:
    """The prompt's classes are in another order, and one more."""
    names = ("fish", "bird", "cat", "dog")
    tuned, dataset = a_prompt(backbone, names), workplace.add_dataset()
    job = evaluate(workplace, publish(workplace, tuned), dataset)
    assert run_job(job.id, deps) is JobStatus.SUCCEEDED

    scores = expected(workplace, tuned, dataset, backbone)[18:]
    truth = ["cat", "cat", "dog", "dog", "bird", "bird"]
    right = [names[row.argmax()] == name for row, name in zip(scores, truth, strict=True)]
    found = report(workplace, job)
    done = workplace.jobs.get(job.id)
    assert found["figures"]["accuracy"] == done.metrics["accuracy"] == pytest.approx(np.mean(right))
    assert sum(images for _, _, images in found["confusion"]) == found["images"] == 6
    assert [row["images"] for row in found["classes"]] == [0, 2, 2, 2]
    assert found["classes"][0]["accuracy"] is None
    own = [row[names.index(name)] for row, name in zip(scores, truth, strict=True)]
    assert found["figures"]["nll"] == pytest.approx(-np.log(own).mean(), rel=1e-4)
    assert found["calibration"]["calibrated"]["temperature"] == 2.0
    assert found["labels"]["prompt"] == "shapes:1"
    assert done.metrics["zero_shot_accuracy"] == found["zero_shot"]["accuracy"]
    assert (done.metrics["images"], done.metrics["errors"]) == (6, 0)
    for name in ("accuracy", "zero_shot_accuracy"):
        interval = wilson_interval(done.metrics[name] or 0.0, 6)
        assert (done.metrics[f"{name}_low"], done.metrics[f"{name}_high"]) == interval
    page = workplace.artifacts.get_bytes(
        evaluation_key(job.id, str(done.result_folder), "html")
    ).decode()
    assert "shapes:1" in page
    assert page.count("<svg") == 3


def test_an_evaluation_may_be_of_a_part_of_the_classes(
    workplace: Workplace, deps: RunnerDeps, backbone: Backbone
) -> None:
    """Of cat, dog and bird the first two are the base classes; bird alone is no part."""
    tuned, dataset = a_prompt(backbone, ("bird", "dog", "cat")), workplace.add_dataset()
    prompt = publish(workplace, tuned)
    # One after the other, because embeddings of the same images are used again.
    whole = evaluate(workplace, prompt, dataset)
    job = evaluate(workplace, prompt, dataset, classes="base")
    for one in (whole, job):
        assert run_job(one.id, deps) is JobStatus.SUCCEEDED
    scores = expected(workplace, tuned, dataset, backbone)[18:22]  # of cats and dogs
    truth = ["cat", "cat", "dog", "dog"]
    right = [
        ("dog" if row[1] > row[2] else "cat") == name
        for row, name in zip(scores, truth, strict=True)
    ]
    found = report(workplace, job)
    assert [row["name"] for row in found["classes"]] == ["cat", "dog"]
    assert found["images"] == 4
    assert found["figures"]["accuracy"] == pytest.approx(np.mean(right))
    with pytest.raises(ValidationFailed) as refused:
        evaluate(workplace, prompt, dataset, classes="new")
    assert refused.value.errors[0][0] == "/classes"


def test_classes_that_are_new_to_a_prompt_get_its_context(
    workplace: Workplace, deps: RunnerDeps, backbone: Backbone
) -> None:
    config = TuningConfig(shots=4, total_steps=4, change_point=2, classes="base")
    dataset = load_dataset(folder_of(workplace.settings.data_dir), classes="base")
    tuned = tune(dataset, backbone, config).prompt
    assert tuned.class_names == ("bird", "cat")
    prompt = publish(workplace, tuned)
    job = evaluate(workplace, prompt, workplace.add_dataset(), classes="all")
    assert run_job(job.id, deps) is JobStatus.SUCCEEDED
    found = report(workplace, job)
    assert [row["name"] for row in found["classes"]] == list(CLASSES)
    assert found["images"] == 6
    with pytest.raises(ValidationFailed):  # without saying so
        evaluate(workplace, prompt, workplace.add_dataset())


def folder_of(parent: Path) -> Path:
    """A dataset of the same classes as a folder."""
    rng = np.random.default_rng(0)
    for name in CLASSES:
        place = parent / "photos" / "train" / name
        place.mkdir(parents=True)
        for number in range(4):
            pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(place / f"{number}.png")
    return parent / "photos"


def test_an_evaluation_without_zero_shot_has_none(
    workplace: Workplace, deps: RunnerDeps, backbone: Backbone
) -> None:
    prompt = publish(workplace, a_prompt(backbone, temperature=None))
    job = evaluate(workplace, prompt, workplace.add_dataset(), split="train", zero_shot=False)
    run_job(job.id, deps)
    found = report(workplace, job)
    assert found["zero_shot"] is None
    assert list(found["calibration"]) == ["tuned"]
    assert workplace.jobs.get(job.id).metrics["zero_shot_accuracy"] is None


def test_a_page_that_cannot_be_drawn_does_not_cost_the_evaluation(
    workplace: Workplace, deps: RunnerDeps, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: EvaluationReport) -> str:
        raise RuntimeError("no fonts")

    monkeypatch.setattr(EvaluationReport, "to_html", fail)
    job = evaluate(workplace, publish(workplace, a_prompt(backbone)), workplace.add_dataset())
    assert run_job(job.id, deps) is JobStatus.SUCCEEDED
    assert report(workplace, job)["images"] == 6


def undisturbed(place: Workplace, deps: RunnerDeps, job: Job) -> bytes:
    """What another job with the same request finds, to which nothing happens."""
    dataset = place.datasets.get(job.dataset_id)
    again = classify(place, place.prompts.get(str(job.prompt_id)), dataset)
    fresh = deps.settings.model_copy(update={"data_dir": deps.settings.data_dir / "undisturbed"})
    run_job(again.id, replace(deps, settings=fresh))
    return results(place, again)


@pytest.mark.parametrize("remote", [False, True])
def test_another_worker_goes_on_where_a_killed_one_stopped(
    make_workplace: Callable[..., Workplace], backbone: Backbone, tmp_path: Path, remote: bool
) -> None:
    place = make_workplace(artifact_url=f"memory://{tmp_path.name}" if remote else "")
    deps = deps_of(place, backbone)

    def kill(images: int) -> None:
        if images >= 2 * SIZE:
            raise Killed

    job = classify(place, publish(place, a_prompt(backbone)), place.add_dataset())
    first = Embedder(backbone, kill)
    with pytest.raises(Killed):
        run_job(job.id, replace(deps, load_backbone=lambda _: first))
    died = place.jobs.get(job.id)
    assert (died.status, died.checkpoint and died.checkpoint.step) == (JobStatus.RUNNING, 2 * SIZE)
    recover(place)

    second = Embedder(backbone)
    elsewhere = place.settings.model_copy(update={"data_dir": tmp_path / "elsewhere"})
    resumed = replace(
        deps,
        owner="wrk_b",
        settings=elsewhere,
        materials=Materials(place.artifacts, elsewhere.cache_dir),
        load_backbone=lambda _: second,
    )
    assert run_job(job.id, resumed) is JobStatus.SUCCEEDED
    assert second.images == ALL - 2 * SIZE
    assert results(place, job) == undisturbed(place, deps, job)
    assert place.artifacts.names(parts_prefix(job.id)) == []
    told = [event.type for event in place.jobs.events(job.id)]
    assert told.count(EventType.RESUMED) == told.count(EventType.WORKER_LOST) == 1


def recover(place: Workplace) -> None:
    """Take the job from its worker."""
    # The lease may be renewed between a look and the recovery, which then does nothing.
    while held := place.leases.held():
        place.leases.recover(held[0], crashed=True)


@pytest.mark.parametrize("number", [0, 2, LAST])
def test_a_killed_worker_is_forgiven_once_the_job_got_ahead(
    workplace: Workplace, deps: RunnerDeps, backbone: Backbone, number: int
) -> None:
    """A job whose workers die at every part ends all the same, and one that stays put does not."""
    job = classify(workplace, publish(workplace, a_prompt(backbone)), workplace.add_dataset())

    def kill(images: int) -> None:
        if images >= SIZE or images >= number * SIZE:
            raise Killed

    runs = 0
    while not workplace.jobs.get(job.id).finished_at:
        runs += 1
        embedder = Embedder(backbone, kill)
        try:
            run_job(job.id, replace(deps, load_backbone=lambda _, one=embedder: one))
        except Killed:
            recover(workplace)
    ended = workplace.jobs.get(job.id)
    if number == 0:
        assert (ended.status, ended.error_code, runs) == (JobStatus.FAILED, "worker_lost", 3)
    else:
        assert (ended.status, runs) == (JobStatus.SUCCEEDED, LAST + 1)


@pytest.mark.parametrize(
    ("ask", "status"),
    [("pause", JobStatus.PAUSED), ("cancel", JobStatus.CANCELLED), (None, JobStatus.QUEUED)],
)
def test_a_job_is_put_down_within_a_part_and_goes_on(
    workplace: Workplace, deps: RunnerDeps, backbone: Backbone, ask: str | None, status: JobStatus
) -> None:
    job = classify(workplace, publish(workplace, a_prompt(backbone)), workplace.add_dataset())
    now, draining = [0.0], [False]

    def tell(images: int) -> None:
        if images >= SIZE:
            now[0] += 1.0  # progress is written once a second, and requests are heard of then
            draining[0] = ask is None
            if ask is not None:
                getattr(workplace.jobs, f"request_{ask}")(job.id)

    first = Embedder(backbone, tell)
    asked = replace(
        deps,
        load_backbone=lambda _: first,
        ticks=lambda: now[0],
        draining=lambda: draining[0],
    )
    assert run_job(job.id, asked) is status
    put_down = workplace.jobs.get(job.id)
    assert (put_down.attempt, put_down.lease_token) == (1 if ask == "cancel" else 0, None)
    # One pass is under way when it is told, and one may have begun beside it.
    assert first.images < ALL - SIZE
    if ask is not None:
        workplace.jobs.request_resume(job.id)
    second = Embedder(backbone)
    assert run_job(job.id, replace(deps, load_backbone=lambda _: second)) is JobStatus.SUCCEEDED
    assert second.images == ALL - SIZE
    assert results(workplace, job) == undisturbed(workplace, deps, job)


def put_down_after(place: Workplace, deps: RunnerDeps, backbone: Backbone, job: Job) -> None:
    """Run the job until all its parts are stored."""
    embedder = Embedder(backbone)
    draining = replace(
        deps,
        load_backbone=lambda _: embedder,
        draining=lambda: place.artifacts.exists(part_key(job.id, LAST)),
    )
    assert run_job(job.id, draining) is JobStatus.QUEUED
    assert embedder.images == ALL


def flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize(
    "spoil",
    [
        flip,
        lambda data: data[: len(data) // 2],
        lambda _: b"",
        lambda _: seal({"rows": np.zeros(1)}, {"identity": {}, "errors": []}, "other/1"),
    ],
)
def test_a_damaged_part_is_made_anew(
    workplace: Workplace,
    deps: RunnerDeps,
    backbone: Backbone,
    spoil: Callable[[bytes], bytes],
) -> None:
    job = classify(workplace, publish(workplace, a_prompt(backbone)), workplace.add_dataset())
    put_down_after(workplace, deps, backbone, job)
    key = part_key(job.id, 1)
    workplace.artifacts.put_bytes(key, spoil(workplace.artifacts.get_bytes(key)))

    second = Embedder(backbone)
    elsewhere = deps.settings.model_copy(update={"data_dir": deps.settings.data_dir / "elsewhere"})
    resumed = replace(deps, settings=elsewhere, load_backbone=lambda _: second)
    assert run_job(job.id, resumed) is JobStatus.SUCCEEDED
    assert second.images == SIZE
    assert results(workplace, job) == undisturbed(workplace, deps, job)
    corrupt = [e for e in workplace.jobs.events(job.id) if e.type is EventType.CHECKPOINT_CORRUPT]
    assert [event.data for event in corrupt] == [{"part": 1}]


def test_a_part_of_another_dataset_or_backbone_is_not_used(
    workplace: Workplace, deps: RunnerDeps, backbone: Backbone
) -> None:
    prompt = publish(workplace, a_prompt(backbone))
    job = classify(workplace, prompt, workplace.add_dataset())
    other = classify(workplace, prompt, workplace.add_dataset(), split="train")
    put_down_after(workplace, deps, backbone, job)
    workplace.artifacts.put_bytes(
        part_key(other.id, 0), workplace.artifacts.get_bytes(part_key(job.id, 0))
    )
    assert run_job(other.id, deps) is JobStatus.SUCCEEDED
    assert EventType.CHECKPOINT_CORRUPT in [e.type for e in workplace.jobs.events(other.id)]


def test_many_prompts_on_one_split_embed_it_once(
    workplace: Workplace, deps: RunnerDeps, backbone: Backbone
) -> None:
    embedder, dataset = Embedder(backbone), workplace.add_dataset()
    for number in range(3):
        prompt = publish(workplace, a_prompt(backbone), f"shapes-{number}")
        job = evaluate(workplace, prompt, dataset, split="train")
        run_job(job.id, replace(deps, load_backbone=lambda _: embedder))
        assert report(workplace, job)["images"] == 12
    assert embedder.images == 12


def test_an_image_that_cannot_be_read_has_an_error_in_its_place(
    workplace: Workplace, deps: RunnerDeps, backbone: Backbone
) -> None:
    dataset = workplace.add_dataset()
    prompt = publish(workplace, a_prompt(backbone))
    job = classify(workplace, prompt, dataset)
    images = deps.materials.images(dataset, None)
    assert images[7].path is not None
    images[7].path.write_bytes(b"no image")
    assert run_job(job.id, deps) is JobStatus.SUCCEEDED
    found = lines(workplace, job)
    assert found[7] == {
        "index": 7,
        "file": images[7].path.name,  # the manifest of this dataset tells no path
        "split": "train",
        "label": "dog",
        "error": {
            "code": "image_format_not_allowed",
            "message": "the image is not JPEG, PNG or WebP (convert it)",
        },
    }
    assert all("predictions" in line for line in found[:7] + found[8:])
    assert workplace.jobs.get(job.id).metrics == {"images": ALL, "errors": 1}
    row = list(csv.DictReader(io.StringIO(results(workplace, job, "csv").decode())))[7]
    assert (row["error_code"], row["prediction_1"]) == ("image_format_not_allowed", "")

    measured = evaluate(workplace, prompt, dataset, split="train")
    run_job(measured.id, deps)
    assert report(workplace, measured)["errors"]["count"] == 1
    assert report(workplace, measured)["images"] == 11


def test_images_without_labels_are_classified(
    workplace: Workplace, deps: RunnerDeps, backbone: Backbone
) -> None:
    dataset = workplace.datasets.create("photos", {UNLABELLED: True})
    source = workplace.add_dataset()
    stored = json.loads(workplace.artifacts.get_bytes(manifest_key(source.id)))["splits"]["test"]
    fault = {"code": "image_too_large", "message": "the image has more than 5 pixels"}
    images: list[dict[str, Any]] = [{"image": None, "path": "=bad.png", "error": fault}]
    for number, item in enumerate(stored):
        data = workplace.artifacts.get_bytes(image_key(source.id, item["image"]))
        workplace.artifacts.put_bytes(image_key(dataset.id, item["image"]), data)
        images.append({"image": item["image"], "path": f"deep/{number}.png"})
    manifest = json.dumps({"class_names": [], "splits": {UNLABELLED: images}}).encode()
    workplace.artifacts.put_bytes(manifest_key(dataset.id), manifest)
    counts = {UNLABELLED: {"": len(images)}}
    workplace.datasets.mark_ready(dataset.id, classes=[], counts=counts, sha256="0" * 64)

    job = classify(workplace, publish(workplace, a_prompt(backbone)), dataset, top_k=1)
    assert run_job(job.id, deps) is JobStatus.SUCCEEDED
    found = lines(workplace, job)
    assert found[0] == {"index": 0, "file": "=bad.png", "error": fault}
    assert [line["file"] for line in found[1:]] == [f"deep/{number}.png" for number in range(6)]
    assert all(set(line) == {"index", "file", "predictions"} for line in found[1:])
    assert "\n0,'=bad.png,,,image_too_large," in results(workplace, job, "csv").decode()


@pytest.mark.parametrize("spoil", ["missing", "damaged", "deleted"])
def test_a_prompt_whose_file_is_of_no_use_fails_the_job(
    workplace: Workplace, deps: RunnerDeps, backbone: Backbone, spoil: str
) -> None:
    prompt = publish(workplace, a_prompt(backbone))
    job = evaluate(workplace, prompt, workplace.add_dataset())
    if spoil == "missing":
        workplace.artifacts.delete(prompt_key(prompt.id))
    elif spoil == "damaged":
        data = workplace.artifacts.get_bytes(prompt_key(prompt.id))
        workplace.artifacts.put_bytes(prompt_key(prompt.id), flip(data))
    else:  # by hand, or by a version that does not know that jobs need it
        with workplace.engine.begin() as connection:
            connection.execute(sa.delete(tables.prompts))
    assert run_job(job.id, deps) is JobStatus.FAILED
    assert workplace.jobs.get(job.id).error_code == "artifact_corrupt"


def test_a_prompt_is_not_deleted_under_its_job_nor_a_job_resumed_without_its_prompt(
    workplace: Workplace, backbone: Backbone
) -> None:
    prompt = publish(workplace, a_prompt(backbone))
    job = evaluate(workplace, prompt, workplace.add_dataset())
    with pytest.raises(PromptInUse, match=job.id):
        workplace.prompts.delete(prompt.id)
    workplace.jobs.request_cancel(job.id)
    workplace.prompts.delete(prompt.id)
    with pytest.raises(NotFound, match="no such prompt"):
        workplace.jobs.request_resume(job.id)
    with pytest.raises(NotFound, match="no such prompt"):
        evaluate(workplace, prompt, workplace.datasets.get(job.dataset_id))


def test_another_backbone_fails_the_job(
    workplace: Workplace, deps: RunnerDeps, backbone: Backbone
) -> None:
    tuned = a_prompt(backbone)
    described = {**tuned.metadata["backbone"], "fingerprint": "f" * 64}
    prompt = publish(workplace, replace(tuned, metadata={**tuned.metadata, "backbone": described}))
    job = evaluate(workplace, prompt, workplace.add_dataset())
    assert run_job(job.id, deps) is JobStatus.FAILED
    assert workplace.jobs.get(job.id).error_code == "backbone_mismatch"


def test_files_that_are_gone_fail_the_job(
    workplace: Workplace, deps: RunnerDeps, backbone: Backbone
) -> None:
    prompt, dataset = publish(workplace, a_prompt(backbone)), workplace.add_dataset()
    without_images, without_manifest = (classify(workplace, prompt, dataset) for _ in range(2))
    workplace.artifacts.delete_prefix(f"datasets/{dataset.id}/images")
    assert run_job(without_images.id, deps) is JobStatus.FAILED
    workplace.artifacts.delete_prefix(f"datasets/{dataset.id}")
    assert run_job(without_manifest.id, deps) is JobStatus.FAILED
    for job in (without_images, without_manifest):
        assert workplace.jobs.get(job.id).error_code == "dataset_missing"


def test_a_worker_that_lost_its_lease_spoils_nothing(
    workplace: Workplace, deps: RunnerDeps, backbone: Backbone
) -> None:
    """It wakes up when another worker has finished the job."""
    job = classify(workplace, publish(workplace, a_prompt(backbone)), workplace.add_dataset())
    stored: list[dict[str, bytes]] = []

    def overtake(images: int) -> None:
        if images == SIZE and not stored:
            recover(workplace)
            assert run_job(job.id, replace(deps, owner="wrk_b")) is JobStatus.SUCCEEDED
            stored.append({form: results(workplace, job, form) for form in ("jsonl", "csv")})

    zombie = Embedder(backbone, overtake)
    assert run_job(job.id, replace(deps, load_backbone=lambda _: zombie)) is None
    assert {form: results(workplace, job, form) for form in ("jsonl", "csv")} == stored[0]
    assert workplace.jobs.get(job.id).attempt == 2


def test_a_worker_that_lost_its_lease_at_the_very_end_spoils_nothing(
    workplace: Workplace, deps: RunnerDeps, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = classify(workplace, publish(workplace, a_prompt(backbone)), workplace.add_dataset())
    put, stored = workplace.artifacts.put_file, []

    def overtaken(key: str, source: Path) -> None:
        monkeypatch.setattr(workplace.artifacts, "put_file", put)
        recover(workplace)
        assert run_job(job.id, replace(deps, owner="wrk_b")) is JobStatus.SUCCEEDED
        stored.append(results(workplace, job))
        put(key, source)

    monkeypatch.setattr(workplace.artifacts, "put_file", overtaken)
    assert run_job(job.id, deps) is None
    assert results(workplace, job) == stored[0]
    assert len([e for e in workplace.jobs.events(job.id) if e.type == "succeeded"]) == 1


def test_a_cancel_at_the_very_end_wins(
    workplace: Workplace, deps: RunnerDeps, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = evaluate(workplace, publish(workplace, a_prompt(backbone)), workplace.add_dataset())
    put = workplace.artifacts.put_bytes

    def cancelled(key: str, data: bytes) -> None:
        put(key, data)
        if key.endswith("report.html"):
            workplace.jobs.request_cancel(job.id)

    monkeypatch.setattr(workplace.artifacts, "put_bytes", cancelled)
    assert run_job(job.id, deps) is JobStatus.CANCELLED
    ended = workplace.jobs.get(job.id)
    assert (ended.result_folder, ended.metrics) == (None, {})
    assert workplace.artifacts.names(results_prefix(job.id)) == []


def test_leftovers_of_a_worker_that_died_at_the_end_are_removed(
    workplace: Workplace, deps: RunnerDeps, backbone: Backbone
) -> None:
    job = classify(workplace, publish(workplace, a_prompt(backbone)), workplace.add_dataset())
    workplace.artifacts.put_bytes(results_key(job.id, "dead", "csv"), b"half")
    assert run_job(job.id, deps) is JobStatus.SUCCEEDED
    folder = workplace.jobs.get(job.id).result_folder
    assert workplace.artifacts.names(results_prefix(job.id)) == [folder]


def test_a_storage_that_is_away_for_a_while_costs_nothing(
    workplace: Workplace, deps: RunnerDeps, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = classify(workplace, publish(workplace, a_prompt(backbone)), workplace.add_dataset())

    def flaky(method: Callable[..., Any]) -> Callable[..., Any]:
        failures = [StorageUnavailable(), StorageUnavailable()]

        def call(*args: Any, **options: Any) -> Any:
            if failures:
                raise failures.pop()
            return method(*args, **options)

        return call

    for store, name in (
        *((workplace.artifacts, name) for name in ("get_bytes", "put_bytes", "put_file")),
        *((workplace.leases, name) for name in ("complete", "save_checkpoint", "save_progress")),
        (workplace.prompts, "get"),
    ):
        monkeypatch.setattr(store, name, flaky(getattr(store, name)))
    assert run_job(job.id, deps) is JobStatus.SUCCEEDED
    monkeypatch.undo()
    assert len(lines(workplace, job)) == ALL


def test_a_full_storage_fails_the_job_and_it_can_be_resumed(
    workplace: Workplace, deps: RunnerDeps, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = classify(workplace, publish(workplace, a_prompt(backbone)), workplace.add_dataset())
    put = LocalArtifacts.put_bytes

    def full(store: LocalArtifacts, key: str, data: bytes, **options: Any) -> None:
        if key == part_key(job.id, 2):
            raise StorageFull
        put(store, key, data, **options)

    monkeypatch.setattr(LocalArtifacts, "put_bytes", full)
    assert run_job(job.id, deps) is JobStatus.FAILED
    assert workplace.jobs.get(job.id).error_code == "storage_full"
    monkeypatch.setattr(LocalArtifacts, "put_bytes", put)
    workplace.jobs.request_resume(job.id)
    assert run_job(job.id, deps) is JobStatus.SUCCEEDED


def test_a_second_delivery_does_nothing(
    workplace: Workplace, deps: RunnerDeps, backbone: Backbone
) -> None:
    job = evaluate(workplace, publish(workplace, a_prompt(backbone)), workplace.add_dataset())
    run_job(job.id, deps)
    before = workplace.jobs.get(job.id)
    assert run_job(job.id, deps) is None
    assert workplace.jobs.get(job.id) == before
    assert before.kind is JobKind.EVALUATION
    assert before.lease_token is None


def test_progress_and_pace_are_told(
    workplace: Workplace, deps: RunnerDeps, backbone: Backbone
) -> None:
    job = classify(workplace, publish(workplace, a_prompt(backbone)), workplace.add_dataset())
    now, seen = [0.0], []

    def tick(images: int) -> None:
        now[0] += 2.0
        seen.append(workplace.jobs.get(job.id))

    embedder = Embedder(backbone, tick)
    run_job(job.id, replace(deps, load_backbone=lambda _: embedder, ticks=lambda: now[0]))
    steps = [job.step for job in seen]
    assert steps == sorted(steps)
    assert {job.total_steps for job in seen} == {ALL}
    assert all(job.phase == "preparing" for job in seen)
    last = seen[-1]
    assert last.eta_seconds is not None
    assert 0 < last.eta_seconds < 2.0 * ALL


def test_the_lease_of_a_job_that_ended_is_of_no_use(
    workplace: Workplace, deps: RunnerDeps, backbone: Backbone
) -> None:
    job = classify(workplace, publish(workplace, a_prompt(backbone)), workplace.add_dataset())
    claimed = workplace.leases.claim(job.id, "wrk_b")
    assert claimed is not None
    ended = workplace.leases.complete(lease_of(claimed), "folder", {"images": 1})
    assert (ended.status, ended.result_folder) == (JobStatus.SUCCEEDED, "folder")
    assert run_job(job.id, deps) is None


# Real worker processes


def many_images(place: Workplace, count: int) -> DatasetRecord:
    """A dataset whose list has so many images, which are few files."""
    dataset = place.add_dataset()
    manifest = json.loads(place.artifacts.get_bytes(manifest_key(dataset.id)))
    listed = manifest["splits"]["train"]
    manifest["splits"] = {"train": listed, "val": [], "test": listed * (count // len(listed))}
    data = json.dumps(manifest).encode()
    large = place.datasets.create("many")
    for item in listed:
        image = place.artifacts.get_bytes(image_key(dataset.id, item["image"]))
        place.artifacts.put_bytes(image_key(large.id, item["image"]), image)
    place.artifacts.put_bytes(manifest_key(large.id), data)
    images = len(manifest["splits"]["test"]) // len(CLASSES)
    return place.datasets.mark_ready(
        large.id,
        classes=CLASSES,
        counts={"test": dict.fromkeys(CLASSES, images)},
        sha256=hashlib.sha256(data).hexdigest(),
    )


@pytest.mark.slow
def test_workers_that_are_killed_or_told_to_end_leave_the_same_results(
    make_workplace: Callable[..., Workplace], backbone: Backbone
) -> None:
    place = make_workplace(lease_seconds=2.0, heartbeat_seconds=0.5, sweep_seconds=0.5)
    prompt, dataset = publish(place, a_prompt(backbone)), many_images(place, 12_000)
    job = classify(place, prompt, dataset, split="test")
    place.queue.notify(job.id)

    def half_done(found: Job) -> bool:
        return found.checkpoint is not None and found.checkpoint.step >= done + 512

    done = 0
    for strike in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        worker = place.start_worker()
        running = place.wait(job.id, half_done)
        assert running.status is JobStatus.RUNNING, "the job was too short for this test"
        os.killpg(worker.pid, strike)
        assert worker.wait(30) == (0 if strike == signal.SIGTERM else -strike)
        left = place.jobs.get(job.id)
        assert strike != signal.SIGTERM or (left.status, left.attempt) == (JobStatus.QUEUED, 1)
        assert left.checkpoint is not None
        done = left.checkpoint.step
    place.start_worker()
    ended = place.wait_until_ended(job.id)
    assert (ended.status, ended.attempt) == (JobStatus.SUCCEEDED, 3)

    found = results(place, job)
    assert found.count(b"\n") == 12_000
    again = classify(place, prompt, dataset, split="test")
    place.queue.notify(again.id)
    place.wait_until_ended(again.id)
    assert results(place, again) == found
