from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, Final

import pytest
from starlette.testclient import TestClient

from service.services import Services
from sharpzo_core.clock import utc_now
from sharpzo_core.ids import Prefix, new_id
from sharpzo_core.records.checkpoints import FILES, checkpoint_prefix
from sharpzo_core.records.jobs import CheckpointRef, EventType, JobProgress, JobStep, Lease, Phase
from sharpzo_core.records.prompts import NewPrompt, report_key
from sharpzo_core.settings import Settings
from sharpzo_core.stores.job_leases import JobLeases, lease_of
from sharpzo_core.stores.job_rows import NewEvent
from tests.helpers import eventually
from tests.service.conftest import MakeClient, assert_problem, ready_dataset

HTML: Final = "html"
JSON: Final = "json"
SMALL = {"shots": 2, "total_steps": 20}


@pytest.fixture
def dataset_id(client: TestClient) -> str:
    return str(ready_dataset(client)["id"])


def submit(client: TestClient, dataset_id: str, **more: Any) -> dict[str, Any]:
    response = client.post("/v1/jobs", json={"dataset_id": dataset_id, "config": SMALL, **more})
    assert response.status_code == 201, response.text
    job: dict[str, Any] = response.json()
    return job


def claim(services: Services, job_id: str) -> tuple[JobLeases, Lease]:
    """Be the job's worker."""
    leases = JobLeases.from_settings(services.database, services.settings)
    job = leases.claim(job_id, "worker-1")
    assert job is not None
    return leases, lease_of(job)


def test_submit_get_list(client: TestClient, dataset_id: str) -> None:
    job = submit(client, dataset_id, name="pets", metadata={"who": "me"})
    assert job["status"] == "queued"
    assert job["backbone"] == "tiny"
    assert job["config"]["shots"] == 2
    assert job["config"]["cma"]["population_size"] == 40
    assert job["metadata"] == {"who": "me"}
    assert job["error"] is None
    assert client.get(f"/v1/jobs/{job['id']}").json() == job
    page = client.get("/v1/jobs").json()
    assert page == {"data": [job], "has_more": False, "next": None}


def test_submitting_rings_for_a_worker(
    client: TestClient, services: Services, dataset_id: str
) -> None:
    submit(client, dataset_id)
    eventually(services.queue.depth)
    assert services.queue.depth() == 1


@pytest.fixture(scope="module")
def shared_dataset_id(shared_client: TestClient) -> str:
    return str(ready_dataset(shared_client)["id"])


@pytest.mark.parametrize(
    ("changes", "code", "pointers"),
    [
        ({"backbone": "nonesuch"}, "validation_error", ["/backbone"]),
        ({"backbone": "local-dir:/etc"}, "validation_error", ["/backbone"]),
        ({"backbone": "hf-hub:evil/x"}, "validation_error", ["/backbone"]),
        ({"backbone": "../../m.pt"}, "validation_error", ["/backbone"]),
        ({"preset": "nonesuch"}, "validation_error", ["/preset"]),
        ({"config": {"nonesuch": 1}}, "validation_error", ["/config/nonesuch"]),
        ({"config": {"cma": {"x/y~z": 1}}}, "validation_error", ["/config/cma/x~1y~0z"]),
        ({"config": {"zo": {"learning_rate": 0}}}, "validation_error", None),
        ({"config": {"cma": {"population_size": 0}}}, "validation_error", None),
        ({"config": {"total_steps": 10**9}}, "validation_error", ["/config/total_steps"]),
        ({"config": {"seed": -1}}, "validation_error", ["/config/seed"]),
        ({"config": {"seed": "5"}}, "validation_error", ["/config/seed"]),
        ({"config": {"seed": True}}, "validation_error", ["/config/seed"]),
        ({"config": []}, "validation_error", ["/config"]),
        ({"status": "succeeded"}, "validation_error", ["/status"]),
        ({"name": "no spaces"}, "validation_error", ["/name"]),
        ({"config": {"shots": 4}}, "validation_error", ["/config/shots", "/config/shots"]),
    ],
)
def test_bad_jobs(
    shared_client: TestClient,
    shared_dataset_id: str,
    changes: dict[str, Any],
    code: str,
    pointers: list[str] | None,
) -> None:
    job = {"dataset_id": shared_dataset_id, "config": SMALL, **changes}
    body = assert_problem(shared_client.post("/v1/jobs", json=job), 422, code)
    if pointers is not None:
        assert [error["pointer"] for error in body["errors"]] == pointers
    assert shared_client.get("/v1/jobs").json()["data"] == []


def test_unknown_ids(shared_client: TestClient) -> None:
    body = {"dataset_id": "ds_00000000000000000000000000"}
    assert_problem(shared_client.post("/v1/jobs", json=body), 404, "not_found")
    for job_id in ("job_00000000000000000000000000", "' OR 1=1--", "%00", "x" * 5000):
        for path in ("", "/events", "/metrics", "/report"):
            assert_problem(shared_client.get(f"/v1/jobs/{job_id}{path}"), 404, "not_found")
        for move in ("pause", "resume", "cancel", "finish"):
            assert_problem(shared_client.post(f"/v1/jobs/{job_id}/{move}"), 404, "not_found")
        assert_problem(shared_client.delete(f"/v1/jobs/{job_id}"), 404, "not_found")


def test_a_dataset_must_be_ready(client: TestClient, services: Services) -> None:
    dataset = services.datasets.create("slow")
    response = client.post("/v1/jobs", json={"dataset_id": dataset.id})
    assert_problem(response, 409, "state_conflict")


def test_a_full_queue(make_client: MakeClient, settings: Settings) -> None:
    client = make_client(settings.model_copy(update={"max_queued_jobs": 1}))
    dataset_id = ready_dataset(client)["id"]
    submit(client, dataset_id)
    response = client.post("/v1/jobs", json={"dataset_id": dataset_id, "config": SMALL})
    assert_problem(response, 429, "too_many_jobs")
    assert int(response.headers["retry-after"]) > 0


def test_pause_resume_and_go_on_in_another_job(
    client: TestClient, services: Services, dataset_id: str
) -> None:
    def post(move: str, status: int = 202) -> dict[str, Any]:
        response = client.post(f"/v1/jobs/{job_id}/{move}")
        assert response.status_code == status, response.text
        answer: dict[str, Any] = response.json()
        return answer

    job_id = submit(client, dataset_id)["id"]
    assert post("pause")["status"] == post("pause")["status"] == "paused"
    assert_problem(client.delete(f"/v1/jobs/{job_id}"), 409, "state_conflict")
    assert post("resume")["status"] == post("resume")["status"] == "queued"
    leases, lease = claim(services, job_id)
    assert post("resume", 409)["code"] == "state_conflict"
    assert post("pause")["status"] == "pausing"
    assert post("resume")["status"] == "running"
    again = {"dataset_id": dataset_id, "from_checkpoint": job_id}
    assert_problem(client.post("/v1/jobs", json=again), 409, "state_conflict")

    services.artifacts.put_bytes(f"{checkpoint_prefix(job_id, 'claim')}/{FILES[0]}", b"state")
    leases.save_checkpoint(lease, CheckpointRef("claim", 7, utc_now()))
    post("pause")
    leases.release(lease)
    paused = client.get(f"/v1/jobs/{job_id}").json()
    assert (paused["status"], paused["attempt"]) == ("paused", 0)
    assert paused["checkpoint"]["step"] == 7
    more = client.post("/v1/jobs", json={**again, "config": {"total_steps": 30}}).json()
    assert (more["from_checkpoint"], more["checkpoint"]["step"]) == (job_id, 7)
    assert more["config"] == {**paused["config"], "total_steps": 30}
    wrong = client.post("/v1/jobs", json={**again, "config": {"seed": 9}})
    assert_problem(wrong, 409, "config_mismatch")

    assert post("cancel")["status"] == "cancelled"
    assert client.delete(f"/v1/jobs/{job_id}").status_code == 204
    assert not services.artifacts.exists(f"{checkpoint_prefix(job_id, 'claim')}/{FILES[0]}")
    assert services.artifacts.exists(f"{checkpoint_prefix(more['id'], 'claim')}/{FILES[0]}")


def finish(client: TestClient, job_id: str) -> dict[str, Any]:
    response = client.post(f"/v1/jobs/{job_id}/finish")
    assert response.status_code == 202, response.text
    job: dict[str, Any] = response.json()
    return job


def prompt_of(job_id: str) -> NewPrompt:
    return NewPrompt(
        id=new_id(Prefix.PROMPT),
        name="pets",
        job_id=job_id,
        backbone={"name": "tiny", "pretrained": None, "fingerprint": "f"},
        classes=("cat", "dog"),
        metrics={},
        sha256="1" * 64,
    )


def test_a_running_job_is_asked_to_finish_and_does(
    client: TestClient, services: Services, dataset_id: str
) -> None:
    job_id = submit(client, dataset_id)["id"]
    leases, lease = claim(services, job_id)
    before = client.get(f"/v1/jobs/{job_id}").json()
    assert (before["finishing"], before["stopped_by"]) == (False, None)
    asked = finish(client, job_id)
    assert (asked["status"], asked["finishing"]) == ("running", True)
    assert finish(client, job_id) == asked  # repeating changes nothing
    leases.succeed(lease, prompt_of(job_id), {}, "finished")
    done = client.get(f"/v1/jobs/{job_id}").json()
    assert (done["status"], done["stopped_by"]) == ("succeeded", "finished")
    assert finish(client, job_id) == done
    events = client.get(f"/v1/jobs/{job_id}/events").json()["data"]
    assert [event["type"] for event in events] == ["queued", "started", "finishing", "succeeded"]
    assert events[2]["message"] == "asked to finish with the best prompt so far"
    assert events[2]["data"].keys() == {"request_id"}
    assert events[3]["data"]["stopped_by"] == "finished"


def test_a_pausing_job_finishes_and_a_paused_one_is_queued_for_that(
    client: TestClient, services: Services, dataset_id: str
) -> None:
    job_id = submit(client, dataset_id)["id"]
    leases, lease = claim(services, job_id)
    client.post(f"/v1/jobs/{job_id}/pause")
    asked = finish(client, job_id)
    assert (asked["status"], asked["finishing"]) == ("running", True)
    paused = client.post(f"/v1/jobs/{job_id}/pause").json()  # takes it back
    assert (paused["status"], paused["finishing"]) == ("pausing", False)
    leases.release(lease)
    eventually(services.queue.depth)
    depth = services.queue.depth()
    asked = finish(client, job_id)
    assert (asked["status"], asked["finishing"]) == ("queued", True)
    eventually(lambda: services.queue.depth() == depth + 1)
    assert finish(client, job_id)["status"] == "queued"


@pytest.mark.parametrize(
    ("status", "detail"),
    [
        ("queued", "no worker has it (cancel it, or ask again once it runs)"),
        ("cancelling", "the request to cancel comes first (resume it once it is cancelled)"),
        ("succeeded", "it has published its prompt already"),
        ("failed", "it has ended (resume it, then ask again once it runs)"),
        ("cancelled", "it has ended (resume it, then ask again once it runs)"),
    ],
)
def test_a_job_that_cannot_finish_is_refused_with_what_to_do(
    client: TestClient, services: Services, dataset_id: str, status: str, detail: str
) -> None:
    job_id = submit(client, dataset_id)["id"]
    if status != "queued":
        leases, lease = claim(services, job_id)
    if status in ("cancelling", "cancelled"):
        finish(client, job_id)  # cancelling wins
        client.post(f"/v1/jobs/{job_id}/cancel")
    if status == "cancelled":
        leases.release(lease)
    elif status == "failed":
        leases.fail(lease, "code", "message")
    elif status == "succeeded":
        leases.succeed(lease, prompt_of(job_id), {})
    before = client.get(f"/v1/jobs/{job_id}").json()
    assert (before["status"], before["finishing"]) == (status, False)
    response = client.post(f"/v1/jobs/{job_id}/finish")
    body = assert_problem(response, 409, "state_conflict")
    assert body["detail"] == f"the job is {status}: {detail}"
    assert client.get(f"/v1/jobs/{job_id}").json() == before


def test_a_stream_passes_over_an_end_that_was_not_the_last(
    client: TestClient, services: Services, dataset_id: str
) -> None:
    job_id = submit(client, dataset_id)["id"]
    client.post(f"/v1/jobs/{job_id}/cancel")
    client.post(f"/v1/jobs/{job_id}/resume")
    leases, lease = claim(services, job_id)
    leases.fail(lease, "code", "message")
    events = stream(client, job_id)
    expected = ["queued", "cancelled", "resumed", "started", "failed"]
    assert [event["event"] for event in events] == expected
    # Whoever has seen the first end, or the last one, is told what there is and no more.
    for seen in range(len(expected) + 1):
        rest = stream(client, job_id, **{"last-event-id": str(seen)})
        assert [event["event"] for event in rest] == expected[seen:]


def test_cancel_delete_and_the_dataset_of_a_live_job(client: TestClient, dataset_id: str) -> None:
    job_id = submit(client, dataset_id)["id"]
    assert_problem(client.delete(f"/v1/datasets/{dataset_id}"), 409, "state_conflict")
    assert_problem(client.delete(f"/v1/jobs/{job_id}"), 409, "state_conflict")
    for _ in range(2):  # repeating changes nothing
        response = client.post(f"/v1/jobs/{job_id}/cancel")
        assert response.status_code == 202
        assert response.json()["status"] == "cancelled"
    assert client.delete(f"/v1/jobs/{job_id}").status_code == 204
    assert_problem(client.get(f"/v1/jobs/{job_id}"), 404, "not_found")
    assert client.delete(f"/v1/datasets/{dataset_id}").status_code == 204


def test_a_job_that_failed_cannot_be_cancelled(
    client: TestClient, services: Services, dataset_id: str
) -> None:
    job_id = submit(client, dataset_id)["id"]
    leases, lease = claim(services, job_id)
    leases.fail(lease, "out_of_memory", "no memory left")
    job = client.get(f"/v1/jobs/{job_id}").json()
    assert job["error"] == {"code": "out_of_memory", "message": "no memory left"}
    assert_problem(client.post(f"/v1/jobs/{job_id}/cancel"), 409, "state_conflict")


def test_events_as_pages(client: TestClient, services: Services, dataset_id: str) -> None:
    job_id = submit(client, dataset_id)["id"]
    leases, lease = claim(services, job_id)
    for i in range(5):
        leases.add_event(lease, NewEvent(EventType.MESSAGE, f"line {i}"))
    url = f"/v1/jobs/{job_id}/events"
    first = client.get(url, params={"limit": 4}).json()
    assert [event["seq"] for event in first["data"]] == [1, 2, 3, 4]
    assert (first["has_more"], first["next"]) == (True, "4")
    rest = client.get(url, params={"after": first["next"]}).json()
    assert [event["seq"] for event in rest["data"]] == [5, 6, 7]
    assert (rest["has_more"], rest["next"]) == (False, None)
    assert_problem(client.get(url, params={"after": -1}), 422, "validation_error")


def read_stream(response: Any) -> Iterator[dict[str, str]]:
    event: dict[str, str] = {}
    for line in response.iter_lines():
        if line.startswith(":"):
            continue
        if line:
            key, _, value = line.partition(": ")
            event[key] = value
        elif event:
            yield event
            event = {}


def stream(client: TestClient, job_id: str, **headers: str) -> list[dict[str, str]]:
    headers["accept"] = "text/event-stream"
    with client.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-cache"
        return list(read_stream(response))


def test_a_stream_replays_and_ends_after_the_last_event(
    client: TestClient, services: Services, dataset_id: str
) -> None:
    job_id = submit(client, dataset_id)["id"]
    leases, lease = claim(services, job_id)
    leases.add_event(lease, NewEvent(EventType.MESSAGE, "two\nlines"))
    leases.fail(lease, "x", "it broke")
    events = stream(client, job_id)
    assert [event["id"] for event in events] == ["1", "2", "3", "4"]
    assert [event["event"] for event in events] == ["queued", "started", "message", "failed"]
    page = client.get(f"/v1/jobs/{job_id}/events").json()["data"]
    assert [json.loads(event["data"]) for event in events] == page
    assert [e["id"] for e in stream(client, job_id, **{"last-event-id": "2"})] == ["3", "4"]
    assert stream(client, job_id, **{"last-event-id": "4"}) == []
    bad = {"accept": "text/event-stream", "last-event-id": "x"}
    response = client.get(f"/v1/jobs/{job_id}/events", headers=bad)
    assert_problem(response, 422, "validation_error")


def test_a_stream_follows_a_live_job(
    client: TestClient, services: Services, dataset_id: str
) -> None:
    job_id = submit(client, dataset_id)["id"]

    def work() -> None:
        leases, lease = claim(services, job_id)
        time.sleep(0.3)
        leases.fail(lease, "x", "it broke")

    worker = threading.Timer(0.2, work)
    worker.start()
    events = stream(client, job_id)
    worker.join()
    assert [event["event"] for event in events] == ["queued", "started", "failed"]


def test_a_stream_ends_when_the_server_does(
    client: TestClient, services: Services, dataset_id: str
) -> None:
    job_id = submit(client, dataset_id)["id"]
    threading.Timer(0.3, services.stopping.set).start()
    assert [event["id"] for event in stream(client, job_id)] == ["1"]


def test_metrics_as_json_and_csv(client: TestClient, services: Services, dataset_id: str) -> None:
    job_id = submit(client, dataset_id)["id"]
    leases, lease = claim(services, job_id)
    steps = [
        JobStep(i, Phase.STAGE1, 1.0 / i, None, 0.5, 0.4, None, 40 * i, 0.1 * i)
        for i in range(1, 11)
    ]
    progress = JobProgress(Phase.STAGE1, 10, 20, 400)
    leases.save_progress(lease, progress, {"val_accuracy": 0.5}, steps)
    url = f"/v1/jobs/{job_id}/metrics"
    every = client.get(url).json()["data"]
    assert [record["step"] for record in every] == list(range(1, 11))
    assert every[1] == {
        "step": 2,
        "phase": "stage1",
        "loss": 0.5,
        "val_loss": None,
        "val_accuracy": 0.5,
        "sigma": 0.4,
        "sharpness": None,
        "forward_passes": 80,
        "seconds": 0.2,
    }
    some = client.get(url, params={"from_step": 3, "to_step": 8, "resolution": 3}).json()["data"]
    assert [record["step"] for record in some] == [4, 6, 8]

    response = client.get(url, headers={"accept": "text/csv"})
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(response.text)))
    assert (rows[1]["step"], rows[1]["loss"], rows[1]["val_loss"]) == ("2", "0.5", "")
    assert_problem(client.get(url, params={"resolution": 0}), 422, "validation_error")


def succeed(services: Services, job_id: str) -> None:
    """Be the worker that ends the job well, and leave its report."""
    leases, lease = claim(services, job_id)
    for form, data in ((HTML, b"<!doctype html>"), (JSON, b'{"format":"sharpzo-report/1"}')):
        services.artifacts.put_bytes(report_key(job_id, form), data)
    leases.succeed(lease, prompt_of(job_id), {})


def test_a_report_as_page_and_as_json(
    client: TestClient, services: Services, dataset_id: str
) -> None:
    job_id = submit(client, dataset_id)["id"]
    succeed(services, job_id)
    url = f"/v1/jobs/{job_id}/report"
    for accept in ("*/*", "text/html,application/xhtml+xml,*/*;q=0.8"):
        page = client.get(url, headers={"accept": accept})
        assert page.text == "<!doctype html>"
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert page.headers["content-security-policy"] == (
            "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
        )
        assert page.headers["x-content-type-options"] == "nosniff"
        assert page.headers["vary"] == "Accept"
    data = client.get(url, headers={"accept": "application/json"})
    assert data.headers["content-type"] == "application/json"
    assert data.json() == {"format": "sharpzo-report/1"}


def test_deleting_a_job_removes_both_forms_of_its_report(
    client: TestClient, services: Services, dataset_id: str
) -> None:
    job_id = submit(client, dataset_id)["id"]
    succeed(services, job_id)
    assert client.delete(f"/v1/jobs/{job_id}").status_code == 204
    assert_problem(client.get(f"/v1/jobs/{job_id}/report"), 404, "not_found")
    assert not services.artifacts.exists(report_key(job_id, HTML))
    assert not services.artifacts.exists(report_key(job_id, JSON))


def test_only_a_job_that_succeeded_has_a_report(
    client: TestClient, services: Services, dataset_id: str
) -> None:
    job_id = submit(client, dataset_id)["id"]
    url = f"/v1/jobs/{job_id}/report"
    problem = assert_problem(client.get(url), 404, "report_not_available")
    assert "queued" in problem["detail"]
    succeed(services, job_id)
    services.artifacts.delete(report_key(job_id, HTML))
    assert_problem(client.get(url), 404, "report_not_available")
    assert client.get(url, headers={"accept": "application/json"}).status_code == 200


def test_the_api_process_never_loads_a_plotting_library() -> None:
    code = (
        "import sys, service.app, service.inference.host, sharpzo_engine.prompts.classifier\n"
        "print(sorted({'cma', 'matplotlib', 'jinja2'} & set(sys.modules)))"
    )
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).strip()
    assert "matplotlib" not in loaded
    assert "cma" not in loaded
