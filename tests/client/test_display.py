from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from sharpzo_client.display import Lines, Pace, Standing, clock, harmless, stage_title
from sharpzo_client.models import Job
from sharpzo_client.progress import JobView
from sharpzo_engine.config import PRESETS, TuningConfig


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


class Shown:
    """Keeps what was to be shown."""

    def __init__(self) -> None:
        self.standings: list[Standing] = []

    def show(self, standing: Standing) -> None:
        self.standings.append(standing)

    def say(self, line: str) -> None:
        raise AssertionError(line)


def counted(clock: Clock, pace: Pace, *moments: tuple[float, int]) -> float | None:
    """The pace after counts at these seconds."""
    for second, passes in moments:
        clock.now = 100.0 + second
        pace.count(passes)
    return pace.per_second


def test_the_pace_is_what_was_counted_between_the_first_and_the_last_count() -> None:
    time = Clock()
    assert counted(time, Pace(time), (0, 500)) is None
    assert counted(time, Pace(time), (0, 500), (2, 700)) == 100
    assert counted(time, Pace(time), (0, 500), (2, 700), (5, 1000)) == 100


def test_the_pace_follows_the_last_ten_seconds() -> None:
    time = Clock()
    fast = [(float(second), 1000 * second) for second in range(31)]
    slow = [(30.0 + second, 30_000 + 10 * second) for second in range(1, 31)]
    assert counted(time, Pace(time), *fast) == 1000
    assert counted(time, Pace(time), *fast, *slow) == 10


def test_a_repeated_count_is_no_progress_and_a_long_stop_lowers_the_pace() -> None:
    time = Clock()
    pace = Pace(time)
    assert counted(time, pace, (0, 0), (4, 400), (5, 400), (9, 400)) == 100
    assert counted(time, pace, (40, 400)) == 10


def test_steps_longer_than_the_window_are_measured_over_the_last_one() -> None:
    time = Clock()
    assert counted(time, Pace(time), (0, 0), (30, 300), (60, 900), (80, 900)) == 20


def test_fewer_passes_than_before_begin_anew() -> None:
    time = Clock()
    pace = Pace(time)
    assert counted(time, pace, (0, 1000), (1, 2000), (2, 1500)) is None
    assert counted(time, pace, (3, 1600)) == 100
    pace.forget()
    assert pace.per_second is None


STANDING = Standing(
    "stage 1: CMA-ES", 3, 10, loss=0.5, accuracy=0.75, passes=1200, pace=345.6, searching=True
)


def test_lines_tell_every_fact_at_new_titles_and_once_in_a_while(
    capsys: pytest.CaptureFixture[str],
) -> None:
    time = Clock()
    lines = Lines(time)
    for second, standing in [
        (0.0, STANDING),
        (9.0, replace(STANDING, step=4)),
        (10.0, replace(STANDING, step=5)),
        (11.0, replace(STANDING, title="stage 2: ZO", step=6, eta=61.0)),
        (12.0, Standing("done")),
    ]:
        time.now = 100.0 + second
        lines.show(standing)
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
    ("standing", "share"),
    [
        (Standing("x"), None),
        (Standing("x", 1, 4), 0.25),
        (Standing("x", 1, 4, passes=50, budget=100), 0.5),
        (Standing("x", 6, 4), 1.0),
        (Standing("succeeded", 1, 4), 1.0),
        (Standing("failed", 1, 4), 0.25),
    ],
)
def test_the_share_that_is_done(standing: Standing, share: float | None) -> None:
    assert standing.share == share


@pytest.mark.parametrize(
    ("preset", "values", "first", "second"),
    [
        ("default", {}, "CMA-ES", "Gauss-Newton"),
        ("paper", {}, "sharpness-aware CMA-ES", "sparse ZO"),
        ("reference", {}, "sharpness-aware CMA-ES", "ZO"),
        ("default", {"zo": {"optimizer": "adam"}}, "CMA-ES", "ZO"),
        ("default", {"method": "first-order"}, "CMA-ES", "first-order"),
        ("paper", {"cma": {"sharpness_estimator": "none"}}, "CMA-ES", "sparse ZO"),
    ],
)
def test_stages_are_called_what_the_configuration_makes_of_them(
    preset: str, values: dict[str, object], first: str, second: str
) -> None:
    assert preset in PRESETS
    config = TuningConfig.parse(values, preset).model_dump(mode="json")
    assert stage_title("stage1", config) == f"stage 1: {first}"
    assert stage_title("stage2", config) == f"stage 2: {second}"
    assert stage_title("evaluating", config) == "evaluating"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0:00"), (59.6, "1:00"), (754, "12:34"), (3723, "1:02:03")]
)
def test_times_are_short(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown


def test_nothing_moves_the_cursor_or_turns_the_text() -> None:
    assert harmless("a\x1b[31m\r\nb\u202ec\u2066\x9b\udc80") == (
        r"a\x1b[31m\r\nb\u202ec\u2066\x9b\udc80"
    )
    assert harmless("[red] é 猫") == "[red] é 猫"


def job(**fields: object) -> Job:
    running = {"status": "running", "phase": "stage1"}
    return Job.model_validate({"id": "job_1", **running, **fields})


def test_a_job_is_shown_by_its_stage_while_it_runs_and_else_by_its_status() -> None:
    shown = Shown()
    view = JobView(shown)
    progress = {"step": 2, "total_steps": 9, "forward_passes": 80, "eta_seconds": 3.0}
    view.update(job(status="queued", phase=None))
    view.update(job(progress=progress, config={"max_forward_passes": 160}))
    view.lost()
    view.update(job(status="paused", progress=progress))
    view.update(job(kind="classification", phase="evaluating", progress=progress))
    queued, running, lost, paused, labelling = shown.standings
    assert (queued.title, queued.note) == ("queued", "waiting for a worker")
    assert (running.title, running.steps, running.share) == ("stage 1: CMA-ES", "step 2/9", 0.5)
    assert running.time_left == "ETA 0:03"
    assert (lost.title, lost.note) == ("stage 1: CMA-ES", "no answer; trying again")
    assert (paused.title, paused.time_left) == ("paused", "")
    assert labelling.steps == "image 2/9"
