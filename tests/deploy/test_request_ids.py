"""From a request to everything that is done because of it: the log of real processes tells."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from sharpzo_core.settings import Settings
from tests.helpers import CONFIG, eventually
from tests.service.conftest import dataset_members, zip_of
from tests.service.servers import ServerProcess, server_process

UPLOAD, TUNE, EVALUATE, CANCEL = "upload-1", "tune-1", "evaluate.1", "cancel_1"
#: What a worker tells of a job that it brings to its end, in this order.
STEPS = ["job_claimed", "job_phase", "prompt_published", "job_left"]


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, small_backbone: Path
) -> Iterator[ServerProcess]:
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("service") / "data",
        backbones=f"tiny=local-dir:{small_backbone}",
        device="cpu",
        log_format="json",
        log_level="debug",
        checkpoint_seconds=0.1,
    )
    with server_process(settings, with_worker=True) as server:
        yield server


class Desk:
    """A client that gives its requests the ids that the tests look for."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.client = httpx2.Client(base_url=server.url(), timeout=30)

    def post(self, path: str, request_id: str, **content: Any) -> dict[str, Any]:
        response = self.client.post(path, headers={"X-Request-ID": request_id}, **content)
        assert response.is_success, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def status(self, path: str) -> str:
        return str(self.client.get(path).json()["status"])

    def ended(self, job_id: str, status: str = "succeeded") -> None:
        eventually(lambda: self.status(f"/v1/jobs/{job_id}") == status, 120)
        eventually(lambda: "job_left" in actions(self.lines(job_id=job_id)))

    def lines(self, **fields: object) -> list[dict[str, Any]]:
        """Lines with these fields, in the order in which they were written."""
        lines = [json.loads(line) for line in self.server.log if line.startswith("{")]
        return [line for line in lines if fields.items() <= line.items()]

    def events(self, job_id: str) -> list[dict[str, Any]]:
        page: dict[str, Any] = self.client.get(f"/v1/jobs/{job_id}/events").json()
        return list(page["data"])


@pytest.fixture(scope="module")
def desk(server: ServerProcess) -> Iterator[Desk]:
    desk = Desk(server)
    with desk.client:
        yield desk


@pytest.fixture(scope="module")
def dataset(desk: Desk) -> str:
    archive = {"file": ("a.zip", zip_of(dataset_members(per_class=4)))}
    made = desk.post("/v1/datasets", UPLOAD, data={"name": "pets"}, files=archive)
    dataset_id = str(made["id"])
    eventually(lambda: desk.status(f"/v1/datasets/{dataset_id}") == "ready")
    return dataset_id


@pytest.fixture(scope="module")
def tuned(desk: Desk, dataset: str) -> dict[str, Any]:
    job = desk.post("/v1/jobs", TUNE, json={"dataset_id": dataset, "config": CONFIG})
    desk.ended(job["id"])
    return dict(desk.client.get(f"/v1/jobs/{job['id']}").json())


def actions(lines: list[dict[str, Any]]) -> list[str]:
    return [line["action"] for line in lines if "action" in line]


def test_an_upload_is_read_under_the_id_of_its_request(desk: Desk, dataset: str) -> None:
    (line,) = desk.lines(action="dataset_ready")
    assert (line["request_id"], line["dataset_id"]) == (UPLOAD, dataset)


def test_a_worker_tells_the_request_from_claim_to_publication(
    desk: Desk, tuned: dict[str, Any]
) -> None:
    ours = desk.lines(job_id=tuned["id"])
    assert {line["request_id"] for line in ours} == {TUNE}
    done = [line for line in ours if "worker" in line]
    found = [action for action in dict.fromkeys(actions(done)) if action in STEPS]
    assert found == STEPS
    assert {line["phase"] for line in done if line.get("action") == "job_phase"} == {
        *("preparing", "stage1", "stage2", "evaluating")
    }
    assert "checkpoint_saved" in actions(done)
    for line in done:
        assert (line["tenant"], line["kind"], line["attempt"]) == ("default", "tuning", 1)
    (published,) = (line for line in done if line.get("action") == "prompt_published")
    assert published["prompt_id"] == tuned["prompt_id"]
    workers = {line["worker"] for line in done}
    assert workers == {line["worker"] for line in desk.lines(action="worker_started")}


def test_the_api_tells_the_same_ids_and_a_line_of_the_request_itself(
    desk: Desk, tuned: dict[str, Any]
) -> None:
    (accepted,) = desk.lines(action="job_accepted", job_id=tuned["id"])
    assert accepted["request_id"] == TUNE
    (answered,) = desk.lines(action="request_answered", request_id=TUNE)
    assert (answered["status"], answered["message"]) == (201, "POST /v1/jobs: 201")


def test_a_job_that_applies_the_prompt_tells_its_own_request(
    desk: Desk, dataset: str, tuned: dict[str, Any]
) -> None:
    path = f"/v1/prompts/{tuned['prompt_id']}/evaluate"
    job = desk.post(path, EVALUATE, json={"dataset_id": dataset})
    desk.ended(job["id"])
    ours = desk.lines(job_id=job["id"])
    assert {line["request_id"] for line in ours} == {EVALUATE}
    assert {"job_claimed", "results_published", "job_left"} <= set(actions(ours))
    assert {line["prompt_id"] for line in ours} == {tuned["prompt_id"]}


def test_events_name_the_request_that_they_tell_of(desk: Desk, dataset: str) -> None:
    endless = {
        **CONFIG,
        "total_steps": 1_000_000,
        "change_point": 1_000_000,
        "max_forward_passes": 10**9,
    }
    job = desk.post("/v1/jobs", TUNE, json={"dataset_id": dataset, "config": endless})
    desk.post(f"/v1/jobs/{job['id']}/cancel", CANCEL)
    desk.client.post(f"/v1/jobs/{job['id']}/cancel")
    eventually(lambda: desk.status(f"/v1/jobs/{job['id']}") == "cancelled", 60)
    told = {
        event["type"]: event["data"]["request_id"]
        for event in desk.events(job["id"])
        if "request_id" in event["data"]
    }
    assert told.pop("queued") == TUNE
    assert list(told.values()) == [CANCEL]
    assert set(told) <= {"cancelling", "cancelled"}
