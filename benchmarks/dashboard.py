"""What people wait for in the dashboard: its first paint, a long job's curves, how they grow.

    python -m benchmarks.dashboard [--runs 7] [--json FILE]

Starts `sharpzo serve` without a worker on a folder of its own, with 500 jobs and one of 20,000
steps, and looks at it in a headless Chromium (that of the PATH, or what SHARPZO_CHROMIUM names):

- first contentful paint of the list of jobs, and until its rows are there, with an empty cache;
- the same for the page of the job with 20,000 steps, until its charts are drawn;
- then steps come in as a quick worker writes them, and the page counts its frames: the longest and
  the 95th percentile of the time between two of them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from playwright.sync_api import Browser, Page, sync_playwright

from benchmarks.support.output import (
    RESULTS,
    Comparison,
    Row,
    Table,
    comparison_table,
    machine_facts,
    write_json,
)
from sharpzo_cli.demo.server import running_process
from sharpzo_core.database.engine import make_engine
from sharpzo_core.migrations import migrate
from sharpzo_core.records.jobs import JobProgress, JobStep, Lease, NewJob, Phase
from sharpzo_core.settings import Settings
from sharpzo_core.stores.dataset_store import DatasetStore
from sharpzo_core.stores.job_leases import JobLeases, lease_of
from sharpzo_core.stores.job_store import JobStore
from sharpzo_engine import TuningConfig

RUNS = 7
JOBS = 500
STEPS = 20_000
CHANGE_POINT = 500
BATCH = 500  # steps written at a time while the job is filled
GROWING_SECONDS = 10.0
GROWING_STEPS = 25  # that come every
GROWING_PAUSE = 0.25  # seconds
PAINT_TARGET = 1.5  # seconds
FRAME_TARGET = 50.0  # milliseconds: at 20 frames a second an eye sees movement
CHROMIUM = os.environ.get("SHARPZO_CHROMIUM") or shutil.which("chromium")

_PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
_COUNT_FRAMES = """
    window.frames_ = [];
    let before = performance.now();
    const tick = (now) => {
        window.frames_.push(now - before);
        before = now;
        requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
"""


def run(runs: int = RUNS) -> list[Row]:
    """Everything that is measured, as one row."""
    with (
        TemporaryDirectory() as folder,
        _service(Path(folder)) as (url, leases, lease),
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        row: Row = {"jobs": JOBS, "steps": STEPS, "runs": runs}
        row |= _first_look(browser, url, "/jobs", "tbody tr:nth-child(50)", "list", runs)
        charts = "figure:nth-child(4) canvas"
        row |= _first_look(browser, url, f"/jobs/{lease.job_id}", charts, "curves", runs)
        row |= _growing(browser, url, leases, lease)
        browser.close()
    return [row]


@contextmanager
def _service(folder: Path) -> Iterator[tuple[str, JobLeases, Lease]]:
    """A service with many jobs, and the worker's hold on the longest one."""
    settings = Settings.load(data_dir=folder / "data")
    migrate(settings)
    engine = make_engine(settings)
    dataset = DatasetStore(engine).create("photos")
    counts = {"train": {"hat": 16, "shoe": 16}, "test": {"hat": 16, "shoe": 16}}
    DatasetStore(engine).mark_ready(
        dataset.id, classes=["hat", "shoe"], counts=counts, sha256="0" * 64
    )
    jobs, leases = JobStore(engine), JobLeases.from_settings(engine, settings)
    config = TuningConfig(total_steps=2 * STEPS).model_dump(mode="json")
    made = [
        jobs.create(
            NewJob(dataset_id=dataset.id, backbone="tiny", config=config, name=f"prompt-{i}")
        )
        for i in range(JOBS)
    ]
    claimed = leases.claim(made[-1].id, "a benchmark's")
    assert claimed is not None
    lease = lease_of(claimed)
    for first in range(1, STEPS, BATCH):
        _save(leases, lease, range(first, first + BATCH))
    try:
        with running_process(folder / "data", folder / "log", with_worker=False) as running:
            yield running.url, leases, lease
    finally:
        engine.dispose()


def _save(leases: JobLeases, lease: Lease, numbers: Sequence[int]) -> None:
    """Write steps that look like a search's."""
    steps = [
        JobStep(
            step=i,
            phase=Phase.STAGE1 if i <= CHANGE_POINT else Phase.STAGE2,
            loss=2 / (1 + i / 1000) + 0.01 * (i % 7),
            val_loss=None if i % 10 else 2 / (1 + i / 900),
            val_accuracy=None if i % 10 else 1 - 0.5 / (1 + i / 1000),
            sigma=0.4 / (1 + i / 100) if i <= CHANGE_POINT else None,
            sharpness=None,
            forward_passes=40 * i,
            seconds=0.01 * i,
        )
        for i in numbers
    ]
    progress = JobProgress(steps[-1].phase, numbers[-1], 2 * STEPS, 40 * numbers[-1])
    leases.save_progress(lease, progress, {}, steps)


def _first_look(
    browser: Browser, url: str, path: str, shown: str, name: str, runs: int
) -> dict[str, float]:
    """Medians in seconds of a first visit: until anything, and until everything is drawn."""
    paints, complete = [], []
    for _ in range(runs):
        page, seconds = _visit(browser, f"{url}/#{path}", shown)
        paints.append(page.evaluate(_PAINT) / 1000)
        complete.append(seconds)
        page.context.close()
    return {f"{name}_paint": median(paints), f"{name}_shown": median(complete)}


def _visit(browser: Browser, url: str, shown: str) -> tuple[Page, float]:
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    began = time.perf_counter()
    page.goto(url, wait_until="commit")
    page.locator(shown).first.wait_for()
    return page, time.perf_counter() - began


def _growing(browser: Browser, url: str, leases: JobLeases, lease: Lease) -> dict[str, float]:
    """Milliseconds between frames while steps come in."""
    page, _ = _visit(browser, f"{url}/#/jobs/{lease.job_id}", "figure canvas")
    page.wait_for_timeout(1000)
    page.evaluate(_COUNT_FRAMES)
    end = time.monotonic() + GROWING_SECONDS
    last = STEPS
    while time.monotonic() < end:
        _save(leases, lease, range(last + 1, last + 1 + GROWING_STEPS))
        last += GROWING_STEPS
        time.sleep(GROWING_PAUSE)
    page.wait_for_timeout(1000)
    label = page.locator("figure [role=img]").first.get_attribute("aria-label") or ""
    assert f"to {last}." in label, label  # nothing was left out
    frames = sorted(page.evaluate("window.frames_"))
    page.context.close()
    return {
        "frames": len(frames),
        "frame_p95": frames[int(0.95 * len(frames))],
        "frame_longest": frames[-1],
    }


def tables(rows: Sequence[Row]) -> list[Table]:
    """The figures beside what is aimed at."""
    row = rows[0]
    figures = (
        (f"{JOBS} jobs: first contentful paint", "list_paint", PAINT_TARGET, "{:.2f} s"),
        (f"{JOBS} jobs: the first 50 are there", "list_shown", None, "{:.2f} s"),
        (f"{STEPS:,} steps: first contentful paint", "curves_paint", PAINT_TARGET, "{:.2f} s"),
        (f"{STEPS:,} steps: charts are drawn", "curves_shown", None, "{:.2f} s"),
        ("steps coming in: between frames, p95", "frame_p95", FRAME_TARGET, "{:.0f} ms"),
        ("steps coming in: between frames, longest", "frame_longest", None, "{:.0f} ms"),
    )
    compared = [
        Comparison(title, row[key], target, at_most=True, form=form)
        for title, key, target, form in figures
    ]
    return [comparison_table("Dashboard, headless Chromium, empty cache", compared)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.dashboard",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--json", type=Path, default=RESULTS / "dashboard.json")
    options = parser.parse_args(arguments)
    rows = run(options.runs)
    for table in tables(rows):
        table.print()
    write_json(options.json, {"machine": machine_facts(), "rows": rows})


if __name__ == "__main__":
    main()
