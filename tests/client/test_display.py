from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from sharpzo_client.display import LogLines, PassRate, RunState, clock, escaped, phase_title
from sharpzo_client.models import Job
from sharpzo_client.progress import JobView


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


class Shown:
    """Keeps what was to be shown."""

    def __init__(self) -> None:
        self.states: list[RunState] = []

    def show(self, state: RunState) -> None:
        self.states.append(state)

    def say(self, line: str) -> None:
        raise AssertionError(line)


def counted(clock: Clock, rate: PassRate, *moments: tuple[float, int]) -> float | None:
    """The rate after counts at these seconds."""
    for second, passes in moments:
        clock.now = 100.0 + second
        rate.count(passes)
    return rate.per_second


def test_the_rate_is_what_was_counted_between_the_first_and_the_last_count() -> None:
    time = Clock()
    assert counted(time, PassRate(time), (0, 500)) is None
    assert counted(time, PassRate(time), (0, 500), (2, 700)) == 100
    assert counted(time, PassRate(time), (0, 500), (2, 700), (5, 1000)) == 100


def test_the_rate_follows_the_last_ten_seconds() -> None:
    time = Clock()
    fast = [(float(second), 1000 * second) for second in range(31)]
    slow = [(30.0 + second, 30_000 + 10 * second) for second in range(1, 31)]
    assert counted(time, PassRate(time), *fast) == 1000
    assert counted(time, PassRate(time), *fast, *slow) == 10


def test_a_repeated_count_is_no_progress_and_a_long_stop_lowers_the_rate() -> None:
    time = Clock()
    rate = PassRate(time)
    assert counted(time, rate, (0, 0), (4, 400), (5, 400), (9, 400)) == 100
    assert counted(time, rate, (40, 400)) == 10


def test_steps_longer_than_the_window_are_measured_over_the_last_one() -> None:
    time = Clock()
    assert counted(time, PassRate(time), (0, 0), (30, 300), (60, 900), (80, 900)) == 20


def test_fewer_passes_than_before_restart_the_count() -> None:
    time = Clock()
    rate = PassRate(time)
    assert counted(time, rate, (0, 1000), (1, 2000), (2, 1500)) is None
    assert counted(time, rate, (3, 1600)) == 100
    rate.reset()
    assert rate.per_second is None


STATE = RunState(
    "stage 1: CMA-ES", 3, 10, loss=0.5, accuracy=0.75, passes=1200, rate=345.6, searching=True
)


def test_lines_show_every_fact_at_new_titles_and_once_in_a_while(
    capsys: pytest.CaptureFixture[str],
) -> None:
    time = Clock()
    lines = LogLines(time)
    for second, state in [
        (0.0, STATE),
        (9.0, replace(STATE, step=4)),
        (10.0, replace(STATE, step=5)),
        (11.0, replace(STATE, title="stage 2: ZO", step=6, eta=61.0)),
        (12.0, RunState("done")),
    ]:
        time.now = 100.0 + second
        lines.show(state)
    shown = capsys.readouterr()
    assert shown.out == ""
    facts = "loss 0.500, val 75.0%, 346 passes/s, 1,200 passes"
    assert shown.err.splitlines() == [
        f"stage 1: CMA-ES: step 3/10, {facts}, ETA -:--",
        f"stage 1: CMA-ES: step 5/10, {facts}, ETA -:--",
        f"stage 2: ZO: step 6/10, {facts}, ETA 1:01",
        "done",
    ]


@pytest.mark.parametrize(
    ("state", "share"),
    [
        (RunState("x"), None),
        (RunState("x", 1, 4), 0.25),
        (RunState("x", 1, 4, passes=50, budget=100), 0.5),
        (RunState("x", 6, 4), 1.0),
        (RunState("succeeded", 1, 4), 1.0),
        (RunState("failed", 1, 4), 0.25),
    ],
)
def test_the_share_that_is_done(state: RunState, share: float | None) -> None:
    assert state.fraction == share


@pytest.mark.parametrize(
    ("phase", "label", "title"),
    [
        ("stage1", "CMA-ES", "stage 1: CMA-ES"),
        ("stage2", "Gauss-Newton", "stage 2: Gauss-Newton"),
        ("stage2", None, "stage2"),  # of a job that an older version ran
        ("evaluating", "Evaluating", "evaluating"),
    ],
)
def test_stages_are_called_by_their_labels(phase: str, label: str | None, title: str) -> None:
    assert phase_title(phase, label) == title


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0:00"), (59.6, "1:00"), (754, "12:34"), (3723, "1:02:03")]
)
def test_times_are_short(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown


def test_nothing_moves_the_cursor_or_turns_the_text() -> None:
    assert escaped("a\x1b[31m\r\nb\u202ec\u2066\x9b\udc80") == (
        r"a\x1b[31m\r\nb\u202ec\u2066\x9b\udc80"
    )
    assert escaped("[red] é 猫") == "[red] é 猫"


def job(**fields: object) -> Job:
    running = {"status": "running", "phase": "stage1", "phase_label": "CMA-ES"}
    return Job.model_validate({"id": "job_1", **running, **fields})


def test_a_job_is_shown_by_its_stage_while_it_runs_and_else_by_its_status() -> None:
    shown = Shown()
    view = JobView(shown)
    progress = {"step": 2, "total_steps": 9, "forward_passes": 80, "eta_seconds": 3.0}
    view.update(job(status="queued", phase=None))
    view.update(job(progress=progress, config={"max_forward_passes": 160}))
    view.disconnected()
    view.update(job(status="paused", progress=progress))
    view.update(job(kind="classification", phase="evaluating", progress=progress))
    queued, running, lost, paused, labelling = shown.states
    assert (queued.title, queued.note) == ("queued", "waiting for a worker")
    assert (running.title, running.steps, running.fraction) == ("stage 1: CMA-ES", "step 2/9", 0.5)
    assert running.time_left == "ETA 0:03"
    assert (lost.title, lost.note) == ("stage 1: CMA-ES", "no answer; retrying")
    assert (paused.title, paused.time_left) == ("paused", "")
    assert labelling.steps == "image 2/9"
