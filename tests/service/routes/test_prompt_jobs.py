"""Jobs that apply a prompt: what is refused, what is accepted, and what they leave behind."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from functools import partial
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from service.routes import prompt_jobs
from service.services import Services
from sharpzo_core.ids import Prefix, new_id
from sharpzo_core.records.prompts import NewPrompt, prompt_key
from sharpzo_core.records.results import evaluation_key, part_key, results_key
from sharpzo_core.settings import Settings
from sharpzo_core.stores.job_leases import JobLeases, lease_of
from sharpzo_engine import TunedPrompt, load_backbone
from tests.service.conftest import (
    MakeClient,
    assert_problem,
    dataset_members,
    files_below,
    png,
    ready_dataset,
    settle,
    upload,
    zip_of,
)
from worker import slot
from worker.dataset_files import Materials
from worker.runner import RunnerDeps, run_job

NOBODY = "ds_00000000000000000000000000"


def publish(
    services: Services,
    classes: tuple[str, ...] = ("dog", "cat"),
    name: str = "pets",
    backbone: str = "tiny",
    data: bytes = b"an artifact",
) -> str:
    """A prompt whose file nobody looks at."""
    fingerprint = "f" * 64
    record = NewPrompt(
        id=new_id(Prefix.PROMPT),
        name=name,
        job_id=None,
        backbone={"name": backbone, "pretrained": None, "fingerprint": fingerprint},
        classes=classes,
        metrics={},
        sha256=hashlib.sha256(data).hexdigest(),
    )
    services.artifacts.put_bytes(prompt_key(record.id), data)
    return services.prompts.publish(record).id


def loose(client: TestClient, members: dict[str, bytes] | None = None) -> dict[str, Any]:
    """A ready dataset without labels."""
    members = members or {"a.png": png(), "deep/er/b.PNG": png((1, 2, 3)), "c.txt": b"text"}
    response = client.post(
        "/v1/datasets",
        data={"name": "loose", "unlabelled": "true"},
        files={"file": ("a.zip", zip_of(members))},
    )
    assert response.status_code == 202, response.text
    assert response.json()["labelled"] is False
    return settle(client, response.json()["id"])


@pytest.fixture(params=["evaluate", "batch"])
def action(request: pytest.FixtureRequest) -> str:
    return str(request.param)


KINDS = {"evaluate": "evaluation", "batch": "classification"}


def test_a_job_is_accepted(client: TestClient, services: Services, action: str) -> None:
    dataset, prompt_id = ready_dataset(client), publish(services)
    body = {"dataset_id": dataset["id"], "name": "a run", "metadata": {"who": "me"}}
    response = client.post(f"/v1/prompts/pets/{action}", json=body)
    assert response.status_code == 202, response.text
    job = response.json()
    assert (job["kind"], job["status"]) == (KINDS[action], "queued")
    assert (job["prompt_id"], job["backbone"]) == (prompt_id, "tiny")
    assert (job["name"], job["metadata"]) == ("a run", {"who": "me"})
    assert (
        job["config"]
        == {
            "evaluate": {"split": "test", "zero_shot": True, "classes": None},
            "batch": {"split": None, "top_k": 5, "calibrated": False, "zero_shot": False},
        }[action]
    )
    assert client.get(f"/v1/jobs/{job['id']}").json() == job
    assert services.jobs.get(job["id"]).format == 2
    publish(services)  # the job stays with the version that it began with
    assert client.get(f"/v1/jobs/{job['id']}").json()["prompt_id"] == prompt_id


def test_jobs_are_listed_by_kind(client: TestClient, services: Services) -> None:
    dataset_id = ready_dataset(client)["id"]
    publish(services)
    tuning = {"dataset_id": dataset_id, "config": {"shots": 2}}
    made = [
        client.post("/v1/jobs", json=tuning).json(),
        client.post("/v1/prompts/pets/evaluate", json={"dataset_id": dataset_id}).json(),
        client.post("/v1/prompts/pets/batch", json={"dataset_id": dataset_id}).json(),
        client.post("/v1/prompts/pets/evaluate", json={"dataset_id": dataset_id}).json(),
    ]
    assert [job["kind"] for job in made] == ["tuning", "evaluation", "classification", "evaluation"]

    def listed(**query: Any) -> list[str]:
        return [job["id"] for job in client.get("/v1/jobs", params=query).json()["data"]]

    ids = [job["id"] for job in made]
    assert listed() == ids[::-1]
    assert listed(kind="tuning") == [ids[0]]
    assert listed(kind="classification") == [ids[2]]
    first = client.get("/v1/jobs", params={"kind": "evaluation", "limit": 1}).json()
    assert (first["data"][0]["id"], first["has_more"]) == (ids[3], True)
    assert listed(kind="evaluation", limit=1, after=first["next"]) == [ids[1]]
    assert_problem(client.get("/v1/jobs?kind=nonesuch"), 422, "validation_error")


def test_what_cannot_work_is_refused_early(
    client: TestClient, services: Services, action: str
) -> None:
    publish(services)
    publish(services, name="elsewhere", backbone="ViT-Z-99")
    dataset, slow = ready_dataset(client), services.datasets.create("slow")
    members = {name: data for name, data in dataset_members().items() if "val/" not in name}
    without_val = settle(client, upload(client, zip_of(members)).json()["id"])

    def refuse(ref: str, status: int, code: str, **body: Any) -> dict[str, Any]:
        body = {"dataset_id": dataset["id"]} | body
        return assert_problem(client.post(f"/v1/prompts/{ref}/{action}", json=body), status, code)

    refuse("nobody", 404, "not_found")
    refuse("pets:2", 404, "not_found")
    refuse("pets", 404, "not_found", dataset_id=NOBODY)
    refuse("pets", 409, "state_conflict", dataset_id=slow.id)
    refuse("elsewhere", 409, "backbone_mismatch")
    for field, value in (
        ("split", "all"),
        ("zero_shot", "yes"),
        ("metadata", {"a": 1}),
        ("name", ""),
        ("nonesuch", 1),
    ):
        (error,) = refuse("pets", 422, "validation_error", **{field: value})["errors"][:1]
        assert error["pointer"].startswith(f"/{field}")
    empty = refuse("pets", 422, "validation_error", dataset_id=without_val["id"], split="val")
    assert empty["errors"] == [
        {
            "pointer": "/split",
            "message": "has no images in this dataset (it has: train, test)",
        }
    ]
    assert client.get("/v1/jobs").json()["data"] == []


@pytest.mark.parametrize("top_k", [0, 1001, 1.5, "5", True])
def test_a_batch_has_a_sensible_number_of_classes(
    client: TestClient, services: Services, top_k: Any
) -> None:
    publish(services)
    body = {"dataset_id": NOBODY, "top_k": top_k}
    problem = assert_problem(
        client.post("/v1/prompts/pets/batch", json=body), 422, "validation_error"
    )
    assert [error["pointer"] for error in problem["errors"]] == ["/top_k"]


def test_classes_are_matched_by_name(client: TestClient, services: Services) -> None:
    dataset_id = ready_dataset(client)["id"]  # cat and dog
    publish(services, ("dog", "bird", "cat"), "more")
    publish(services, ("cat", *(f"fish {n}" for n in range(9))), "fewer")

    def evaluate(ref: str) -> Any:
        return client.post(f"/v1/prompts/{ref}/evaluate", json={"dataset_id": dataset_id})

    assert evaluate("more").status_code == 202
    (error,) = assert_problem(evaluate("fewer"), 422, "validation_error")["errors"]
    assert error["pointer"] == "/dataset_id"
    assert "does not know: 'dog'" in error["message"]
    assert "'fish 0', 'fish 1', 'fish 2', 'fish 3', 'fish 4' and 4 more" in error["message"]
    batch = client.post("/v1/prompts/fewer/batch", json={"dataset_id": dataset_id})
    assert batch.status_code == 202


def test_images_without_labels_are_classified_and_nothing_else(
    client: TestClient, services: Services
) -> None:
    publish(services)
    dataset = loose(client)
    assert (dataset["labelled"], dataset["classes"], dataset["images"]) == (False, [], 2)
    assert dataset["splits"] == {"train": 0, "val": 0, "test": 0}
    assert dataset["report"]["skipped"] == 1
    body = {"dataset_id": dataset["id"]}
    assert client.post("/v1/prompts/pets/batch", json=body).status_code == 202

    def pointer(path: str, **more: Any) -> str:
        response = client.post(path, json=body | more)
        (error,) = assert_problem(response, 422, "validation_error")["errors"]
        return str(error["pointer"])

    assert pointer("/v1/prompts/pets/evaluate") == "/dataset_id"
    assert pointer("/v1/prompts/pets/batch", split="test") == "/split"
    assert pointer("/v1/jobs") == "/dataset_id"


def test_an_unlabelled_dataset_takes_what_others_refuse(
    client: TestClient, services: Services
) -> None:
    members = {
        "one.png": png(),
        "bad.jpg": b"no image",
        "x/.hidden.png": png(),
        "x/y/z/2.png": png(),
    }
    dataset = loose(client, members)
    assert (dataset["status"], dataset["images"]) == ("ready", 3)
    assert dataset["report"]["unreadable_images"] == 1
    assert dataset["report"]["unreadable"] == [
        {"file": "bad.jpg", "reason": "the image is not JPEG, PNG or WebP (convert it)"}
    ]
    record = services.datasets.get(dataset["id"])
    materials = Materials(services.artifacts, services.settings.cache_dir)
    listed = materials.images(record, None)
    assert [image.name for image in listed] == ["bad.jpg", "one.png", "x/y/z/2.png"]
    assert listed[0].error is not None
    assert (listed[0].path, listed[0].error.code) == (None, "image_format_not_allowed")
    assert [image.split for image in listed] == [None] * 3
    assert all(image.path is not None and image.path.is_file() for image in listed[1:])
    nothing = client.post(
        "/v1/datasets",
        data={"name": "x", "unlabelled": "true"},
        files={"file": ("a.zip", zip_of({"a.txt": b"x"}))},
    )
    failed = settle(client, nothing.json()["id"])
    assert (failed["status"], failed["error"]["code"]) == ("failed", "dataset_layout_invalid")


@pytest.mark.parametrize("flag", ["yes", "True", "1", "", "x" * 6])
def test_the_flag_has_two_values(client: TestClient, flag: str) -> None:
    response = client.post(
        "/v1/datasets",
        data={"name": "x", "unlabelled": flag},
        files={"file": ("a.zip", zip_of({"a.png": png()}))},
    )
    assert response.status_code in (413, 422), response.text
    assert client.get("/v1/datasets").json()["data"] == []


def test_an_import_may_be_without_labels(
    make_client: MakeClient, settings: Settings, tmp_path: Any
) -> None:
    place = tmp_path / "allowed"
    place.mkdir()
    (place / "a.zip").write_bytes(zip_of({"a.png": png()}))
    client = make_client(settings.model_copy(update={"allowed_dataset_uris": str(place)}))
    body = {"name": "x", "uri": str(place / "a.zip"), "unlabelled": True}
    dataset = settle(client, client.post("/v1/datasets", json=body).json()["id"])
    assert (dataset["status"], dataset["labelled"], dataset["images"]) == ("ready", False, 1)


def test_the_manifest_keeps_the_names_of_files(client: TestClient, services: Services) -> None:
    members = dict(dataset_members()) | {"train/cat/=é 日本.png": png((9, 9, 9))}
    dataset = settle(client, upload(client, zip_of(members)).json()["id"])
    assert dataset["labelled"] is True
    assert dataset["images"] == sum(dataset["splits"].values()) == 19
    record = services.datasets.get(dataset["id"])
    images = Materials(services.artifacts, services.settings.cache_dir).images(record, "train")
    assert [(image.name, image.label) for image in images[:4]] == [
        *((f"train/cat/{number}.png", "cat") for number in range(3)),
        ("train/cat/=é 日本.png", "cat"),
    ]


def test_the_same_request_makes_one_job(
    client: TestClient, services: Services, action: str
) -> None:
    publish(services)
    dataset_id = ready_dataset(client)["id"]

    def post(key: str, **body: Any) -> Any:
        body = {"dataset_id": dataset_id} | body
        headers = {"Idempotency-Key": key}
        return client.post(f"/v1/prompts/pets/{action}", json=body, headers=headers)

    first = post("a")
    publish(services)  # `pets` means another version now; the request is still the same
    again = post("a")
    assert (again.status_code, again.json()) == (202, first.json())
    assert again.headers["idempotency-replayed"] == "true"
    assert_problem(post("a", split="train"), 422, "idempotency_mismatch")
    other = {"evaluate": "batch", "batch": "evaluate"}[action]
    elsewhere = client.post(
        f"/v1/prompts/pets/{other}",
        json={"dataset_id": dataset_id},
        headers={"Idempotency-Key": "a"},
    )
    assert_problem(elsewhere, 422, "idempotency_mismatch")
    assert len(client.get("/v1/jobs").json()["data"]) == 1
    # A refused request frees its key.
    assert_problem(post("b", dataset_id=NOBODY), 404, "not_found")
    assert post("b").status_code == 202


def test_a_full_queue(make_client: MakeClient, settings: Settings, action: str) -> None:
    client = make_client(settings.model_copy(update={"max_queued_jobs": 1}))
    services: Services = client.app.state.services  # type: ignore[attr-defined]
    publish(services)
    body = {"dataset_id": ready_dataset(client)["id"]}
    assert client.post(f"/v1/prompts/pets/{action}", json=body).status_code == 202
    full = client.post(f"/v1/prompts/pets/{action}", json=body)
    assert_problem(full, 429, "too_many_jobs")
    assert int(full.headers["retry-after"]) > 0


def test_a_job_that_applies_a_prompt_is_paused_resumed_cancelled_and_not_tuned_on_from(
    client: TestClient, services: Services, action: str
) -> None:
    publish(services)
    body = {"dataset_id": ready_dataset(client)["id"]}
    job = client.post(f"/v1/prompts/pets/{action}", json=body).json()
    for move, status in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled")):
        assert client.post(f"/v1/jobs/{job['id']}/{move}").json()["status"] == status
        finished = client.post(f"/v1/jobs/{job['id']}/finish")
        assert (
            "has no search to finish" in assert_problem(finished, 409, "state_conflict")["detail"]
        )
    response = client.post("/v1/jobs", json=body | {"from_checkpoint": job["id"]})
    (error,) = assert_problem(response, 422, "validation_error")["errors"]
    assert error["pointer"] == "/from_checkpoint"
    assert KINDS[action] in error["message"]
    types = [e["type"] for e in client.get(f"/v1/jobs/{job['id']}/events").json()["data"]]
    assert types == ["queued", "paused", "resumed", "cancelled"]


# What jobs leave behind


@pytest.fixture
def done(client: TestClient, services: Services) -> dict[str, str]:
    """Ended jobs by kind, with files as a worker leaves them."""
    publish(services)
    dataset_id = ready_dataset(client)["id"]
    leases = JobLeases.from_settings(services.database, services.settings)
    ids = {"tuning": submit_tuning(client, dataset_id)}
    for action, kind in KINDS.items():
        response = client.post(f"/v1/prompts/pets/{action}", json={"dataset_id": dataset_id})
        ids[kind] = response.json()["id"]
        claimed = leases.claim(ids[kind], "worker")
        assert claimed is not None
        leases.complete(lease_of(claimed), "folder", {"images": 2, "errors": 1, "accuracy": 0.5})
    lines = b'{"index":0}\n{"index":1}\n'
    services.artifacts.put_bytes(results_key(ids["classification"], "folder", "jsonl"), lines)
    services.artifacts.put_bytes(results_key(ids["classification"], "folder", "csv"), b"index\n0\n")
    services.artifacts.put_bytes(results_key(ids["classification"], "zombie", "csv"), b"wrong")
    services.artifacts.put_bytes(evaluation_key(ids["evaluation"], "folder", "json"), b'{"a":1}')
    services.artifacts.put_bytes(evaluation_key(ids["evaluation"], "folder", "html"), b"<html>")
    return ids


def submit_tuning(client: TestClient, dataset_id: str) -> str:
    response = client.post("/v1/jobs", json={"dataset_id": dataset_id, "config": {"shots": 2}})
    return str(response.json()["id"])


@pytest.mark.parametrize(
    ("accept", "query", "form"),
    [
        (None, "", "jsonl"),
        ("application/x-ndjson", "", "jsonl"),
        ("text/csv", "", "csv"),
        (None, "?format=csv", "csv"),
        ("text/csv", "?format=jsonl", "jsonl"),
    ],
)
def test_results_are_lines_or_a_table(
    client: TestClient, done: dict[str, str], accept: str | None, query: str, form: str
) -> None:
    headers = {} if accept is None else {"Accept": accept}
    url = f"/v1/jobs/{done['classification']}/results{query}"
    response = client.get(url, headers=headers)
    assert response.status_code == 200
    media = {"jsonl": "application/x-ndjson", "csv": "text/csv; charset=utf-8"}
    assert response.headers["content-type"] == media[form]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert f".{form}" in response.headers["content-disposition"]
    assert response.content.count(b"\n") == 2


def test_results_come_in_pieces(
    client: TestClient, services: Services, done: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_jobs, "CHUNK", 7)
    pieces = list(
        prompt_jobs._chunks(
            services.artifacts, results_key(done["classification"], "folder", "jsonl")
        )
    )
    assert max(map(len, pieces)) == 7
    url = f"/v1/jobs/{done['classification']}/results"
    assert b"".join(pieces) == client.get(url).content


def test_results_that_there_are_not(
    client: TestClient, services: Services, done: dict[str, str]
) -> None:
    def results(job_id: str) -> Any:
        return client.get(f"/v1/jobs/{job_id}/results")

    assert_problem(results("job_00000000000000000000000000"), 404, "not_found")
    for kind in ("tuning", "evaluation"):
        problem = assert_problem(results(done[kind]), 404, "results_not_available")
        assert kind in problem["detail"]
    waiting = client.post(
        "/v1/prompts/pets/batch",
        json={"dataset_id": services.jobs.get(done["classification"]).dataset_id},
    ).json()["id"]
    assert_problem(results(waiting), 409, "state_conflict")
    services.artifacts.delete(results_key(done["classification"], "folder", "jsonl"))
    assert_problem(results(done["classification"]), 404, "results_not_available")
    assert_problem(
        client.get(f"/v1/jobs/{done['classification']}/results?format=xml"), 422, "validation_error"
    )


def test_an_evaluation_has_a_report(client: TestClient, done: dict[str, str]) -> None:
    url = f"/v1/jobs/{done['evaluation']}/report"
    assert client.get(url, headers={"Accept": "application/json"}).json() == {"a": 1}
    page = client.get(url)
    assert page.text == "<html>"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert_problem(
        client.get(f"/v1/jobs/{done['classification']}/report"), 404, "report_not_available"
    )


def test_metrics_are_shown(client: TestClient, done: dict[str, str]) -> None:
    metrics = client.get(f"/v1/jobs/{done['evaluation']}").json()["metrics"]
    assert (metrics["accuracy"], metrics["images"], metrics["errors"]) == (0.5, 2, 1)
    assert metrics["ece"] is None


def test_a_deleted_job_leaves_no_file(
    client: TestClient, services: Services, done: dict[str, str]
) -> None:
    services.artifacts.put_bytes(part_key(done["classification"], 0), b"left by a zombie")
    for kind in KINDS.values():
        assert client.delete(f"/v1/jobs/{done[kind]}").status_code == 204
        assert_problem(client.get(f"/v1/jobs/{done[kind]}/results"), 404, "not_found")
    root = services.artifacts.local_path("jobs")
    assert root is not None
    assert files_below(root) == []
    assert len(client.get("/v1/prompts").json()["data"]) == 1  # the prompt stays


def test_a_dataset_is_kept_for_jobs_that_need_it(
    client: TestClient, services: Services, action: str
) -> None:
    publish(services)
    dataset_id = ready_dataset(client)["id"]
    job = client.post(f"/v1/prompts/pets/{action}", json={"dataset_id": dataset_id}).json()
    assert_problem(client.delete(f"/v1/datasets/{dataset_id}"), 409, "state_conflict")
    client.post(f"/v1/jobs/{job['id']}/cancel")
    assert client.delete(f"/v1/datasets/{dataset_id}").status_code == 204


# All of it, with the real backbone and a worker in this process


@pytest.fixture
def worker(services: Services) -> RunnerDeps:
    return RunnerDeps(
        owner="wrk_a",
        settings=services.settings,
        leases=JobLeases.from_settings(services.database, services.settings),
        datasets=services.datasets,
        prompts=services.prompts,
        artifacts=services.artifacts,
        materials=Materials(services.artifacts, services.settings.cache_dir),
        queue=services.queue,
        load_backbone=partial(slot.load_backbone, services.settings.device),
        tune=slot.tune,
        apply=slot.apply_prompt,
        draining=lambda: False,
    )


def test_uploaded_images_are_labelled_as_a_request_would(
    client: TestClient, services: Services, worker: RunnerDeps
) -> None:
    backbone = load_backbone("tiny", device="cpu")
    embeddings = np.eye(2, backbone.embed_dim, dtype=np.float32)
    context = np.zeros((4, backbone.text_width), np.float32)
    metadata = {"backbone": backbone.describe()}
    artifact = TunedPrompt(("cat", "dog"), embeddings, context, 10.0, metadata).to_bytes()
    client.post("/v1/prompts", data={"name": "pets"}, files={"file": ("p", artifact)})
    images = {"x/a.png": png(), "b.png": png((0, 200, 0)), "torn.png": png()[:-30]}
    dataset = loose(client, images)
    job = client.post("/v1/prompts/pets/batch", json={"dataset_id": dataset["id"]}).json()
    run_job(job["id"], worker)

    url = f"/v1/jobs/{job['id']}/results"
    found = [json.loads(line) for line in client.get(url).text.splitlines()]
    assert [record["file"] for record in found] == ["b.png", "torn.png", "x/a.png"]
    files = [("images", (name, images[name])) for name in ("b.png", "x/a.png")]
    answers = client.post("/v1/prompts/pets/classify", files=files).json()["results"]
    for record, answer in zip((found[0], found[2]), answers, strict=True):
        for one, other in zip(record["predictions"], answer["predictions"], strict=True):
            assert one["label"] == other["label"]
            assert one["score"] == pytest.approx(other["score"], abs=1e-5)
    assert found[1]["error"]["code"] == "image_undecodable"
    table = list(csv.DictReader(io.StringIO(client.get(f"{url}?format=csv").text)))
    assert [row["error_code"] for row in table] == ["", "image_undecodable", ""]
    assert [row["prediction_1"] for row in table] == [
        record.get("predictions", [{"label": ""}])[0]["label"] for record in found
    ]
