"""Live progress on a terminal and in a log: of `sharpzo jobs watch`, `tune` and the SDK."""

from __future__ import annotations

import json
import os
import re
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.terminals import on_terminal
from tests.faults.proxy import FAIR, Proxy, Weather
from tests.helpers import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sharpzo_cli.demo.server import Running

QUICK: dict[str, Any] = {
    "shots": 4,
    "total_steps": 40,
    "change_point": 20,
    "prompt": {"intrinsic_dim": 8},
    "cma": {"population_size": 4},
}
LONG = {**QUICK, "total_steps": 100_000, "change_point": 100_000, "max_forward_passes": 10**9}
COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-9;]*m")
DRAWING = "\x1b[?25l"  # the cursor is hidden while something is drawn


@pytest.fixture
def long_job(running: Running, dataset_id: str, url: str) -> Iterator[str]:
    """A job that goes on until somebody ends it."""
    job = running.client.jobs.create(dataset_id, config=LONG).id
    yield job
    running.client.jobs.cancel(job)
    eventually(lambda: running.client.jobs.get(job).is_terminal, 60)


@pytest.fixture
def proxy(url: str) -> Iterator[Proxy]:
    proxy = Proxy(int(url.rpartition(":")[2]))
    yield proxy
    proxy.close()


@pytest.mark.parametrize("columns", [80, 120])
def test_watch_draws_the_stage_and_its_figures(
    running: Running, long_job: str, columns: int
) -> None:
    with on_terminal("jobs", "watch", long_job, columns=columns) as watched:
        eventually(lambda: re.search(r"[\d,]+ passes/s", watched.text), 60)
        running.client.jobs.cancel(long_job)
        assert watched.end() == 1
    assert DRAWING in watched.raw
    assert "entered stage 1: CMA-ES" in watched.text
    drawn = re.search(r"stage 1: CMA-ES ━.*step [\d,]+/100,000 ETA -:--", watched.text)
    assert drawn is not None
    assert re.search(r"loss \d+\.\d{3}  val \d+\.\d%  [\d,]+ passes/s", watched.text)
    assert "cancelled" in watched.text
    assert f"error: job {long_job} cancelled" in watched.text.replace("\n", "")
    drawn_lines = [line for line in watched.text.splitlines() if "━" in line]
    assert max(map(len, drawn_lines)) <= columns


def test_watch_shows_both_stages_and_ends_well(running: Running, dataset_id: str, url: str) -> None:
    job = running.client.jobs.create(dataset_id, config=QUICK).id
    with on_terminal("jobs", "watch", job, pipe=True) as watched:
        assert watched.end() == 0
        shown = watched.output()
    assert "entered stage 1: CMA-ES" in watched.text
    assert "entered stage 2: Gauss-Newton" in watched.text
    assert "succeeded ━" in watched.text
    assert shown.startswith("job ")
    assert "\x1b" not in shown
    assert "test accuracy" in shown


def test_without_a_terminal_there_are_lines(
    sharpzo: Any, running: Running, dataset_id: str, url: str
) -> None:
    job = running.client.jobs.create(dataset_id, config=QUICK).id
    ran = sharpzo("jobs", "watch", job)
    assert ran.code == 0
    assert "\x1b" not in ran.err + ran.out
    assert any("entered stage 2" in line for line in ran.err.splitlines())
    assert any(line.startswith("succeeded: step 40/40, loss") for line in ran.err.splitlines())


def test_json_lines_are_the_events_and_nothing_else(
    sharpzo: Any, running: Running, dataset_id: str, url: str
) -> None:
    job = running.client.jobs.create(dataset_id, config=QUICK).id
    ran = sharpzo("jobs", "watch", job, "--json")
    assert (ran.code, ran.err) == (0, "")
    events = [json.loads(line) for line in ran.out.splitlines()]
    assert events == [event.model_dump(mode="json") for event in running.client.jobs.events(job)]
    assert events[-1]["type"] == "succeeded"


def test_a_job_that_failed_gives_exit_code_1(
    sharpzo: Any, running: Running, squares: Path, service_folder: Path, url: str
) -> None:
    dataset = running.client.datasets.upload(squares, name="lost", poll=0.1).id
    (manifest,) = service_folder.glob(f"data/**/{dataset}/manifest.json")
    manifest.unlink()
    job = running.client.jobs.create(dataset, config=QUICK).id
    ran = sharpzo("jobs", "watch", job)
    assert ran.code == 1
    assert ran.err.splitlines()[-1].startswith(f"error: job {job} failed: ")


def test_ctrl_c_leaves_the_job_running_and_says_so(running: Running, long_job: str) -> None:
    with on_terminal("jobs", "watch", long_job) as watched:
        eventually(lambda: "stage 1: CMA-ES ━" in watched.text, 60)
        os.killpg(watched.process.pid, signal.SIGINT)
        assert watched.end() == 130
    assert f"{long_job} keeps running" in watched.text
    assert f"`sharpzo jobs cancel {long_job}`" in watched.text.replace("\n", "")
    assert "Traceback" not in watched.text
    assert running.client.jobs.get(long_job).status == "running"


def submitted(text: str) -> str:
    """The id of the job that `submit --watch` has printed."""
    return re.findall(r"job_\w+", text)[0]


def long_submission(dataset_id: str) -> list[str]:
    values = [
        "total_steps=100000",
        "change_point=100000",
        "max_forward_passes=1000000000",
        "prompt.intrinsic_dim=8",
    ]
    values += ["cma.population_size=4", "shots=4"]
    return ["jobs", "submit", dataset_id, "--watch"] + [w for v in values for w in ("--set", v)]


def test_ctrl_c_finishes_the_job_that_the_command_has_submitted(
    running: Running, dataset_id: str, url: str
) -> None:
    with on_terminal(*long_submission(dataset_id), pipe=True) as watched:
        eventually(lambda: "stage 1: CMA-ES ━" in watched.text, 60)
        os.killpg(watched.process.pid, signal.SIGINT)
        assert watched.end() == 0
        shown = watched.output()
    job = running.client.jobs.get(submitted(watched.text))
    assert (job.status, job.stopped_by) == ("succeeded", "finished")
    text = watched.text.replace("\n", "")
    assert "finishing with the best prompt so far; press Ctrl-C again to stop watching" in text
    assert watched.text.count("accepted") == 1
    assert watched.text.count("asked to finish") == 1
    assert str(job.prompt_id) in shown
    assert "Traceback" not in watched.text


def test_the_second_ctrl_c_stops_watching(
    sharpzo: Any, running: Running, dataset_id: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sharpzo_cli import watching

    told = watching.event_line

    def press_ctrl_c(event: Any) -> str:
        if event.type == "finishing" or "stage 1" in told(event):
            signal.raise_signal(signal.SIGINT)
        return told(event)

    monkeypatch.setattr(watching, "event_line", press_ctrl_c)
    ran = sharpzo(*long_submission(dataset_id))
    assert ran.code == 130
    job = submitted(ran.err)
    assert ran.err.splitlines()[-1].startswith(f"{job} keeps running")
    assert running.client.jobs.wait(job, poll=0.1, timeout=60).stopped_by == "finished"


def test_ctrl_c_leaves_a_job_waiting_that_cannot_finish(
    running: Running, long_job: str, dataset_id: str, url: str
) -> None:
    eventually(lambda: running.client.jobs.get(long_job).status == "running", 60)
    with on_terminal(*long_submission(dataset_id)) as watched:
        eventually(lambda: "waiting for a worker" in watched.text, 60)
        os.killpg(watched.process.pid, signal.SIGINT)
        assert watched.end() == 130
    text = watched.text.replace("\n", "")
    assert "it was not asked to finish: the job is queued: no worker has it" in text
    job = submitted(watched.text)
    assert running.client.jobs.get(job).status == "queued"
    assert running.client.jobs.cancel(job).status == "cancelled"


def test_watch_continues_after_the_connection_was_cut(
    running: Running, long_job: str, proxy: Proxy
) -> None:
    address = f"http://127.0.0.1:{proxy.port}"
    with on_terminal("jobs", "watch", long_job, SHARPZO_URL=address) as watched:
        eventually(lambda: "stage 1: CMA-ES ━" in watched.text, 60)
        proxy.set(Weather(refuse=True))
        eventually(lambda: "no answer; retrying" in watched.text, 60)
        proxy.set(FAIR)
        running.client.jobs.cancel(long_job)
        assert watched.end() == 1
    assert f"error: job {long_job} cancelled" in watched.text.replace("\n", "")
    assert watched.text.count("accepted") == 1
    assert watched.text.count("entered stage 1") == 1


def test_watch_gives_up_on_a_service_that_stays_away(
    sharpzo: Any, proxy: Proxy, long_job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sharpzo_client import _sse

    monkeypatch.setattr(_sse, "MAX_STREAM_FAILURES", 1)
    monkeypatch.setenv("SHARPZO_URL", f"http://127.0.0.1:{proxy.port}")
    proxy_dies = Dying(proxy, monkeypatch)
    ran = sharpzo("jobs", "watch", long_job)
    assert proxy_dies.dead
    assert ran.code == 1
    assert ran.err.splitlines()[-1].startswith("error: no service answers at ")


class Dying:
    """Cuts the connection for good at the first event."""

    def __init__(self, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
        from sharpzo_cli import watching

        self.dead = False
        told = watching.event_line

        def tell(*arguments: Any) -> str:
            self.dead = True
            proxy.set(Weather(refuse=True))
            return told(*arguments)

        monkeypatch.setattr(watching, "event_line", tell)


def tune_command(squares: Path, backbone: Path, out: Path) -> list[object]:
    values = ["shots=4", "total_steps=40", "change_point=20", "prompt.intrinsic_dim=8"]
    command: list[object] = ["tune", squares, "--backbone", f"local-dir:{backbone}"]
    command += ["--out", out, "--no-report"]
    return command + [word for value in values for word in ("--set", value)]


@pytest.mark.slow
@pytest.mark.parametrize("no_color", ["", "1"])
def test_tune_draws_on_standard_error_alone(
    squares: Path, small_backbone: Path, tmp_path: Path, no_color: str
) -> None:
    command = [*tune_command(squares, small_backbone, tmp_path / "p.safetensors"), "--json"]
    with on_terminal(*command, pipe=True, NO_COLOR=no_color) as tuned:
        assert tuned.end() == 0
        (line,) = tuned.output().splitlines()
    assert json.loads(line)["steps"] == 40
    assert DRAWING in tuned.raw
    assert bool(COLOUR.search(tuned.raw)) is not bool(no_color)
    assert "done ━" in tuned.text
    assert "step 40/40" in tuned.text


@pytest.mark.slow
def test_ctrl_c_finishes_a_local_run(squares: Path, small_backbone: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.safetensors"
    command = tune_command(squares, small_backbone, out)
    command = [
        *command,
        "--set",
        "total_steps=100000",
        "--set",
        "change_point=100000",
        "--passes",
        "1000000000",
    ]
    with on_terminal(*command, pipe=True) as tuned:
        eventually(lambda: re.search(r"stage 1: CMA-ES ━.*step \d", tuned.text), 60)
        os.killpg(tuned.process.pid, signal.SIGINT)
        assert tuned.end() == 0
        shown = tuned.output()
    said = "finishing with the best prompt so far; press Ctrl-C again to stop at once"
    assert said in tuned.text.replace("\n", "")
    assert re.search(r"finished early after step \d+", shown)
    assert f"prompt file: {out}" in shown.replace("\n", "")
    assert out.stat().st_size > 0
    assert "Traceback" not in tuned.text


@pytest.mark.slow
def test_a_terminal_that_cannot_draw_gets_lines(
    squares: Path, small_backbone: Path, tmp_path: Path
) -> None:
    command = tune_command(squares, small_backbone, tmp_path / "p.safetensors")
    with on_terminal(*command, pipe=True, TERM="dumb") as tuned:
        assert tuned.end() == 0
    assert "\x1b" not in tuned.raw
    assert "stage 1: CMA-ES: step 1/40" in tuned.text
    assert "stage 2: Gauss-Newton: step" in tuned.text


def test_a_log_gets_lines_even_where_colours_are_forced(
    sharpzo: Any,
    squares: Path,
    small_backbone: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    ran = sharpzo(*tune_command(squares, small_backbone, tmp_path / "p.safetensors"), "--json")
    assert ran.code == 0
    assert "\x1b" not in ran.err + ran.out
    assert "stage 2: Gauss-Newton: step" in ran.err


@pytest.mark.slow
def test_what_a_program_prints_while_the_sdk_draws_stays_its_own(
    running: Running, dataset_id: str
) -> None:
    job = running.client.jobs.create(dataset_id, config=QUICK).id
    code = f"""
import sys
from sharpzo_client import Client
with Client({running.url!r}) as client:
    show = lambda event: print("event", event.type)
    client.jobs.wait(sys.argv[1], poll=0.1, progress=True, on_event=show)
"""
    with on_terminal(job, code=code, pipe=True) as waited:
        assert waited.end() == 0
        printed = waited.output()
    types = [event.type for event in running.client.jobs.events(job)]
    assert printed.splitlines() == [f"event {kind}" for kind in types]
    assert "succeeded ━" in waited.text
    assert "event" not in waited.text
