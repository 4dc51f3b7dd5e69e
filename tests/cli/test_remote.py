"""Commands that talk to a service, against a real one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any, get_args

import pytest

from sharpzo_cli.demo.server import Running, clean_environment, free_port
from sharpzo_cli.options import JobKind, JobStatus
from sharpzo_core.database.engine import make_engine
from sharpzo_core.migrations import migrate
from sharpzo_core.records import jobs as core
from sharpzo_core.records.keys import Scope
from sharpzo_core.settings import Settings
from sharpzo_core.stores.key_store import KeyStore
from tests.cli.terminals import on_terminal
from tests.helpers import eventually
from tests.service.servers import server_thread

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

QUICK = ["--shots", "4", "--set", "total_steps=6", "--set", "change_point=3"]
QUICK += ["--set", "prompt.intrinsic_dim=8", "--set", "cma.population_size=4"]
UNKNOWN = "0" * 26
#: What a service may call a dataset, and how it must be shown.
HOSTILE = "[red]no[/red] \u202eevil"
HARMLESS = r"[red]no[/red] \u202eevil"


@pytest.fixture
def answer(sharpzo: Any, url: str) -> Callable[..., Any]:
    """The one object that a command prints with --json, and nothing else anywhere."""

    def run(*arguments: object) -> Any:
        ran = sharpzo(*arguments, "--json")
        assert (ran.code, ran.err) == (0, ""), ran
        (line,) = ran.out.splitlines()
        return json.loads(line)

    return run


@pytest.fixture(scope="session")
def tuned(running: Running, dataset_id: str) -> tuple[str, str]:
    """Ids of a job that succeeded and of its prompt."""
    config: dict[str, Any] = {"shots": 4, "total_steps": 6, "change_point": 3}
    config |= {"prompt": {"intrinsic_dim": 8}, "cma": {"population_size": 4}}
    job = running.client.jobs.create(dataset_id, config=config, name="squares")
    job = running.client.jobs.wait(job.id, poll=0.1, timeout=90)
    return job.id, str(job.prompt_id)


def test_a_job_from_upload_to_labels(sharpzo: Any, url: str, squares: Path, tmp_path: Path) -> None:
    dataset = sharpzo("datasets", "upload", squares, "--name", "mine")
    assert dataset.out.startswith("ds_")
    job = sharpzo("jobs", "submit", dataset.out.strip(), *QUICK, "--name", "mine")
    assert (job.code, job.err) == (0, "")
    watched = sharpzo("jobs", "watch", job.out.strip())
    assert watched.code == 0
    assert "entered stage 1: CMA-ES" in watched.err
    assert "entered stage 2: Gauss-Newton" in watched.err
    assert "status" in watched.out
    assert "succeeded" in watched.out
    image = squares / "test" / "red" / "0.png"
    labels = sharpzo("prompts", "classify", "mine", image, "--top-k", "2")
    assert labels.out.count("%") == 2
    assert str(image) in labels.out
    out = tmp_path / "p.safetensors"
    assert sharpzo("prompts", "download", "mine", "--out", out).out == f"{out}\n"
    assert sharpzo("classify", out, image, "--json").code == 2  # its backbone is not `tiny` here


def test_jobs_are_listed_newest_first(answer: Any, sharpzo: Any, tuned: tuple[str, str]) -> None:
    listed = answer("jobs", "list")["jobs"]
    assert tuned[0] in [job["id"] for job in listed]
    assert [job["id"] for job in listed] == sorted((job["id"] for job in listed), reverse=True)
    assert len(answer("jobs", "list", "--limit", "1")["jobs"]) == 1
    done = answer("jobs", "list", "--status", "succeeded")["jobs"]
    assert {job["status"] for job in done} == {"succeeded"}
    assert answer("jobs", "list", "--status", "pausing")["jobs"] == []
    tuning = answer("jobs", "list", "--kind", "tuning")["jobs"]
    assert {job["kind"] for job in tuning} == {"tuning"}
    others = answer("jobs", "list", "--kind", "evaluation")["jobs"]
    assert tuned[0] not in [job["id"] for job in others]
    assert tuned[0] in sharpzo("jobs", "list").out


def test_a_job_is_shown_with_its_last_events(
    answer: Any, sharpzo: Any, tuned: tuple[str, str]
) -> None:
    told = answer("jobs", "show", tuned[0], "--events", "2")
    assert (told["status"], told["prompt_id"]) == ("succeeded", tuned[1])
    assert [event["type"] for event in told["events"]][-1] == "succeeded"
    assert len(told["events"]) == 2
    shown = sharpzo("jobs", "show", tuned[0]).out
    for part in (tuned[0], tuned[1], "test accuracy", "shots=4", "zo.optimizer=", "entered stage"):
        assert part in shown
    metrics = told["metrics"]
    bounds = "-".join(f"{100 * metrics[f'test_accuracy_{end}']:.1f}" for end in ("low", "high"))
    assert f"{metrics['test_accuracy']:.1%} ({bounds}, 6 images)" in shown
    assert f"{metrics['val_accuracy']:.1%} ({metrics['validation_images']} images)" in shown
    (line,) = (line for line in sharpzo("jobs", "list").out.splitlines() if tuned[0] in line)
    assert line.split()[2:4] == [f"{metrics['test_accuracy']:.1%}", "6"]
    assert answer("jobs", "show", tuned[0], "--events", "0")["events"] == []


def test_a_job_is_paused_resumed_and_cancelled(
    answer: Any, running: Running, dataset_id: str
) -> None:
    long = ["--set", "total_steps=100000", "--set", "change_point=100000", "--passes", "1000000000"]
    long += ["--seed", "7", "--passes", "9999999", "--head", "none"]
    submitted = answer("jobs", "submit", dataset_id, *QUICK, *long)
    wanted = {"shots": 4, "seed": 7, "max_forward_passes": 9_999_999, "head": "none"}
    assert {name: submitted["config"][name] for name in wanted} == wanted
    job = submitted["id"]
    assert answer("jobs", "pause", job)["status"] in ("pausing", "paused")
    assert answer("jobs", "resume", job)["status"] in ("queued", "running")
    assert answer("jobs", "cancel", job)["status"] in ("cancelling", "cancelled")
    events = [event.type for event in running.client.jobs.stream_events(job)]
    assert events[-1] == "cancelled"
    assert answer("jobs", "delete", job) == {"deleted": job}


def test_a_job_is_finished_early(
    answer: Any, sharpzo: Any, running: Running, dataset_id: str
) -> None:
    long = ["--set", "total_steps=100000", "--set", "change_point=100000", "--passes", "1000000000"]
    job = answer("jobs", "submit", dataset_id, *QUICK, *long)["id"]
    eventually(lambda: running.client.jobs.get(job).progress.step > 0, 60)
    assert sharpzo("jobs", "finish", job).out == f"{job} is finishing\n"
    ended = running.client.jobs.wait(job, poll=0.1, timeout=90)
    assert answer("jobs", "finish", job)["stopped_by"] == ended.stopped_by == "finished"
    assert sharpzo("jobs", "finish", job).out == f"{job} is succeeded\n"
    assert re.search(r"stopped by +finished", sharpzo("jobs", "show", job).out)


def test_a_job_that_is_through_is_not_finished_early(
    sharpzo: Any, url: str, tuned: tuple[str, str]
) -> None:
    ran = sharpzo("jobs", "finish", tuned[0])
    assert ran.code == 1
    assert "the job is succeeded: it has published its prompt already" in ran.err


def test_the_same_idempotency_key_gives_the_same_job(answer: Any, dataset_id: str) -> None:
    command = ["jobs", "submit", dataset_id, *QUICK, "--idempotency-key", "once"]
    assert answer(*command)["id"] == answer(*command)["id"]


def test_the_report_is_fetched_as_a_page_or_as_numbers(
    answer: Any, sharpzo: Any, tuned: tuple[str, str], tmp_path: Path
) -> None:
    page = tmp_path / "r.html"
    assert sharpzo("jobs", "report", tuned[0], "--out", page).code == 0
    assert page.read_text().startswith("<!doctype html>")
    assert answer("jobs", "report", tuned[0])["labels"]["job"] == tuned[0]


def test_a_prompt_is_evaluated_and_labels_a_dataset(
    answer: Any, sharpzo: Any, tuned: tuple[str, str], dataset_id: str, tmp_path: Path
) -> None:
    ran = sharpzo("prompts", "evaluate", tuned[1], dataset_id, "--split", "val", "--watch")
    assert ran.code == 0, ran.err
    assert "mean accuracy of classes" in ran.out
    job = answer("prompts", "classify-dataset", tuned[1], dataset_id, "--split", "test")["id"]
    assert sharpzo("jobs", "watch", job).code == 0
    out = tmp_path / "labels.csv"
    told = answer("jobs", "results", job, "--format", "csv", "--out", out)
    assert told == {"file": str(out), "format": "csv"}
    assert len(out.read_text().splitlines()) == 7


def test_prompts_are_listed_shown_exported_pinned_and_imported(
    answer: Any, sharpzo: Any, tuned: tuple[str, str], tmp_path: Path
) -> None:
    prompt = tuned[1]
    assert prompt in [item["id"] for item in answer("prompts", "list")["prompts"]]
    assert answer("prompts", "list", "--name", "nobody")["prompts"] == []
    assert answer("prompts", "show", prompt)["classes"] == ["blue", "green", "red"]
    for part in (prompt, "squares:", "blue, green, red", "tiny"):
        assert part in sharpzo("prompts", "show", prompt).out
    out = tmp_path / "p.onnx"
    told = answer("prompts", "export", prompt, "--format", "onnx", "--out", out)
    assert (told["file"], told["prompt_id"]) == (str(out), prompt)
    assert out.stat().st_size > 0
    assert answer("prompts", "pin", prompt)["pinned"]
    assert not answer("prompts", "unpin", prompt)["pinned"]
    file = tmp_path / "p.safetensors"
    assert answer("prompts", "download", prompt, "--out", file)["prompt_id"] == prompt
    imported = answer("prompts", "upload", file, "--name", "copy")
    assert (imported["name"], imported["version"]) == ("copy", 1)
    assert answer("prompts", "delete", "copy") == {"deleted": imported["id"]}


def test_classify_tells_the_image_of_every_answer(
    answer: Any, tuned: tuple[str, str], squares: Path, tmp_path: Path
) -> None:
    torn = tmp_path / "torn.png"
    torn.write_bytes(b"\x89PNG\r\n\x1a\n")
    images = [squares / "test" / "red" / "0.png", torn]
    told = answer("prompts", "classify", tuned[1], *images, "--zero-shot", "--top-k", "1")
    assert [result["image"] for result in told["results"]] == [str(image) for image in images]
    assert len(told["results"][0]["zero_shot"]) == 1
    assert told["results"][1]["error"]["code"]


def test_a_prompt_is_promoted_and_rolled_back(
    answer: Any, sharpzo: Any, tuned: tuple[str, str], tmp_path: Path
) -> None:
    first, file = tuned[1], tmp_path / "p.safetensors"
    answer("prompts", "download", first, "--out", file)
    second = answer("prompts", "upload", file, "--name", "squares")["id"]
    told = answer("prompts", "promote", first, "live", "--comment", "first")
    assert (told["ref"], told["prompt_id"]) == ("squares@live", first)
    assert answer("prompts", "promote", second, "live", "--expect", first)["prompt_id"] == second
    assert answer("prompts", "rollback", "live")["prompt_id"] == first
    history = answer("prompts", "history", "squares@live")["history"]
    assert [change["action"] for change in history] == ["rollback", "set", "set"]
    assert history[-1]["comment"] == "first"
    assert [
        item["alias"] for item in answer("prompts", "aliases", "--name", "squares")["aliases"]
    ] == ["live"]
    for command in ("aliases", "list"):
        assert "live" in sharpzo("prompts", command).out
    assert "rollback" in sharpzo("prompts", "history", "live").out
    refused = sharpzo("prompts", "promote", second, "live", "--min", "2")
    assert (refused.code, refused.out) == (1, "")
    assert "promote a better prompt" in refused.error
    used = sharpzo("prompts", "delete", first)
    assert used.code == 1
    assert "move its aliases" in used.error


def test_datasets_are_listed_shown_and_deleted(
    answer: Any, sharpzo: Any, dataset_id: str, squares: Path
) -> None:
    assert dataset_id in [d["id"] for d in answer("datasets", "list", "--remote")["datasets"]]
    assert answer("datasets", "show", dataset_id)["classes"] == ["blue", "green", "red"]
    assert "12 train, 6 val, 6 test" in sharpzo("datasets", "show", dataset_id).out
    made = answer("datasets", "upload", squares / "test", "--unlabelled", "--name", HOSTILE)
    assert (made["name"], made["labelled"]) == (HOSTILE, False)
    for arguments in (["list", "--remote"], ["show", made["id"]]):
        shown = sharpzo("datasets", *arguments).out
        assert HARMLESS in shown
        assert "\u202e" not in shown
    assert answer("datasets", "delete", made["id"]) == {"deleted": made["id"]}


def test_a_list_fits_its_terminal(
    url: str, running: Running, squares: Path, tuned: tuple[str, str]
) -> None:
    made = running.client.datasets.upload(squares, name=HOSTILE + 150 * "x", wait=False).id
    for command in (["datasets", "list", "--remote"], ["jobs", "list"], ["prompts", "list"]):
        with on_terminal(*command, columns=80) as shown:
            assert shown.end() == 0
        lines = [line.rstrip("\n") for line in shown.text.splitlines()]
        assert len(lines) > 1
        assert max(map(len, lines)) <= 80, lines
    piped = subprocess.check_output(
        [sys.executable, "-m", "sharpzo_cli", "datasets", "list", "--remote"], text=True
    )
    assert HARMLESS + 150 * "x" in piped  # where there is no terminal nothing is cut off
    running.client.datasets.wait(made, poll=0.1)
    running.client.datasets.delete(made)


def test_the_lists_of_choices_are_the_service_s_own() -> None:
    assert list(get_args(JobStatus)) == list(core.JobStatus)
    assert list(get_args(JobKind)) == list(core.JobKind)


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["jobs", "show", f"job_{UNKNOWN}"], 2, "no such job"),
        (["jobs", "watch", f"job_{UNKNOWN}"], 2, "no such job"),
        (["jobs", "cancel", "nonsense"], 2, "no such job"),
        (["jobs", "list", "--status", "nonsense"], 2, "'queued'"),
        (["jobs", "submit", f"ds_{UNKNOWN}"], 2, "dataset"),
        (["jobs", "submit", "DATASET", "--set", "shots=0"], 2, "shots"),
        (["jobs", "submit", "DATASET", "--backbone", "nonsense"], 2, "not offered"),
        (["jobs", "submit", "DATASET", "--config", "nowhere.json"], 2, "nowhere.json"),
        (["jobs", "resume", "JOB"], 1, "succeeded"),
        (["jobs", "results", "JOB", "--out", "."], 2, "folder"),
        (["prompts", "show", "nonsense"], 2, "no such prompt"),
        (["prompts", "classify", "PROMPT", "nowhere.png"], 2, "nowhere.png"),
        (["prompts", "rollback", "nonsense"], 2, "alias"),
        (["datasets", "upload", "nowhere"], 2, "nowhere"),
        (["datasets", "list", "--remote", "--root", "."], 2, "--root"),
        (["jobs", "list", "--url", "ftp://127.0.0.1"], 2, "SHARPZO_URL"),
        (["jobs", "list", "--url", "nonsense"], 2, "SHARPZO_URL"),
        (["jobs", "list", "--url", "REFUSED"], 1, "sharpzo serve"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_goes_wrong_is_one_line(
    sharpzo: Any,
    url: str,
    tuned: tuple[str, str],
    dataset_id: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = f"http://127.0.0.1:{free_port()}"
    known = {"DATASET": dataset_id, "JOB": tuned[0], "PROMPT": tuned[1], "REFUSED": refused}
    for more in ([], ["--json"]):
        ran = sharpzo(*(known.get(word, word) for word in arguments), *more)
        assert (ran.code, ran.out) == (code, ""), ran
        assert ran.error.startswith("error: ")
        assert ran.error.endswith(")")
        assert told in ran.error
    assert list(tmp_path.iterdir()) == []


def test_a_bad_dataset_is_told_with_what_mends_it(sharpzo: Any, url: str, tmp_path: Path) -> None:
    (tmp_path / "bad" / "one").mkdir(parents=True)
    (tmp_path / "bad" / "one" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    ran = sharpzo("datasets", "upload", tmp_path / "bad")
    assert (ran.code, ran.out) == (2, "")
    assert "sharpzo datasets check" in ran.error


def test_the_key_comes_from_the_environment(
    sharpzo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings.load(data_dir=tmp_path / "data")
    settings.data_dir.mkdir()
    migrate(settings)
    engine = make_engine(settings)
    keys = KeyStore(engine).for_tenant("default")
    key, other = (keys.create("n", [scope]).text for scope in (Scope.JOBS, Scope.INFER))
    engine.dispose()
    with server_thread(settings) as url:
        command = ["jobs", "list", "--url", url]
        for value, code, told in (
            ("", 2, "SHARPZO_API_KEY"),
            ("szo_wrong", 2, "SHARPZO_API_KEY"),
            ("\x1b[31m", 2, "SHARPZO_API_KEY"),
            (other, 2, "scope"),
            (key, 0, ""),
        ):
            monkeypatch.setenv("SHARPZO_API_KEY", value)
            ran = sharpzo(*command)
            assert ran.code == code, ran
            assert told in ran.err
            assert not value or value not in ran.err


def test_no_command_takes_a_key_as_an_argument(sharpzo: Any) -> None:
    for group in ("jobs", "prompts", "datasets"):
        ran = sharpzo(group, "list", "--help")
        assert "--url" in ran.out
        assert "key" not in ran.out.lower().replace("sharpzo_api_key", "")


def test_a_client_needs_no_engine_and_no_service(url: str, dataset_id: str, tmp_path: Path) -> None:
    missing = ["torch", "numpy", "PIL", "yaml", "cma", "open_clip", "sqlalchemy", "fastapi"]
    missing += ["celery", "uvicorn", "jinja2", "pydantic_settings", "safetensors", "matplotlib"]
    (tmp_path / "c.json").write_text('{"zo": {"learning_rate": 0.01}}')
    submit = ["jobs", "submit", dataset_id, *QUICK, "--set", "head=none", "--config", "c.json"]
    for arguments in (["jobs", "list"], [*submit, "--watch"], ["prompts", "list"]):
        code = (
            f"import sys; sys.modules.update(dict.fromkeys({missing!r}))\n"
            f"from sharpzo_cli.main import main; sys.exit(main({arguments!r}))"
        )
        environment = {**clean_environment(), "SHARPZO_URL": url}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        ran = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
