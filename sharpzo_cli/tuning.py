"""`sharpzo tune`: the engine on this machine, with a live bar."""

from __future__ import annotations

import signal
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from sharpzo_cli.errors import UsageProblem
from sharpzo_cli.output import percent, print_json, print_table, writable
from sharpzo_cli.values import tuning_config
from sharpzo_engine.dataset import load_dataset
from sharpzo_engine.errors import TuningInterrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path
    from types import FrameType

    from sharpzo_engine import Progress as EngineProgress
    from sharpzo_engine import StepRecord, TuneResult
    from sharpzo_engine.labelled import Part
    from sharpzo_engine.progress import OnStep


@dataclass(frozen=True)
class TuneRequest:
    """What the command line asks for."""

    dataset: str  #: a path, or a name of the catalogue
    root: Path | None
    classes: Part | None  #: over the config's own
    backbone: str
    pretrained: str | None
    preset: str
    config: Path | None
    values: tuple[str, ...]
    device: str
    out: Path
    report: Path | None  #: of the HTML page; none puts it beside `out`
    no_report: bool
    checkpoint_dir: Path | None
    resume: bool


@dataclass(frozen=True)
class Tuned:
    """A run that ended well."""

    artifact: Path
    sha256: str
    seconds: float
    result: TuneResult
    reports: tuple[Path, ...]  #: HTML and JSON, or none


def run_tuning(request: TuneRequest, *, as_json: bool) -> None:
    """Tune, write the prompt file and the report, and say what came of it.

    Raises:
        UsageProblem: an option is wrong.
        EngineError: the engine could not do it.
        KeyboardInterrupt: Ctrl-C; with a checkpoint folder the run can be resumed.
    """
    try:
        tuned = _tune(request)
    except TuningInterrupted:
        typer.echo(_how_to_resume(request), err=True)
        raise KeyboardInterrupt from None
    if as_json:
        print_json(_summary(tuned))
    else:
        _print_result(tuned)


def _tune(request: TuneRequest) -> Tuned:
    chosen = (f"classes={request.classes}",) if request.classes else ()
    config = tuning_config(request.preset, request.config, (*request.values, *chosen))
    if request.resume and request.checkpoint_dir is None:
        raise UsageProblem("--resume needs a checkpoint", "name its folder with --checkpoint-dir")
    out = writable(request.out)
    page = _page(request)
    # Before torch is loaded: a wrong path fails at once.
    dataset = load_dataset(request.dataset, root=request.root)
    from sharpzo_engine import load_backbone, tune

    began = time.monotonic()
    with live_bar() as bar:
        bar.say("loading the backbone")
        backbone = load_backbone(request.backbone, request.pretrained, request.device)
        with stop_on_interrupt() as stop_if_asked:
            result = tune(
                dataset,
                backbone,
                config,
                on_step=_in_turn(bar.show, stop_if_asked),
                checkpoint_dir=request.checkpoint_dir,
                resume=request.resume,
            )
    sha256, seconds = result.prompt.save(out), time.monotonic() - began
    reports = result.report.labelled(preset=request.preset).save(page) if page else ()
    return Tuned(out, sha256, seconds, result, reports)


def _page(request: TuneRequest) -> Path | None:
    """Where the page goes, if it and its JSON overwrite nothing that this command names.

    Raises:
        UsageProblem: they would, or no file can be put there.
    """
    if request.no_report:
        return None
    page = writable(request.report or request.out.with_suffix(".html"))
    data = page.with_suffix(".json")
    named = {path.resolve() for path in (request.out, request.config) if path}
    if page == data or named & {page.resolve(), data.resolve()}:
        raise UsageProblem(
            f"the report {page} and {data.name} would replace another file",
            "choose a name with --report FILE.html, or leave it out with --no-report",
        )
    writable(data)
    return page


def _in_turn(show: OnStep, stop_if_asked: Callable[[], None]) -> OnStep:
    def on_step(step: EngineProgress) -> None:
        show(step)
        stop_if_asked()

    return on_step


@contextmanager
def stop_on_interrupt() -> Iterator[Callable[[], None]]:
    """Make the first Ctrl-C wait for the end of a step, so that a checkpoint is left; not the next.

    Yields what to call after each step; it raises TuningInterrupted once Ctrl-C was pressed.
    """
    asked = False

    def remember(_signal: int, _frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, usual)

    def stop_if_asked() -> None:
        if asked:
            raise TuningInterrupted

    usual = signal.signal(signal.SIGINT, remember)
    try:
        yield stop_if_asked
    finally:
        signal.signal(signal.SIGINT, usual)


def _how_to_resume(request: TuneRequest) -> str:
    if request.checkpoint_dir is None:
        return "stopped; nothing was kept (--checkpoint-dir lets a run be resumed)"
    folder = request.checkpoint_dir
    return f"stopped; repeat the command with --checkpoint-dir {folder} --resume to go on"


class Bar:
    """A live line about a run on standard error."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("preparing", total=None, figures="")
        self._record: StepRecord | None = None

    def say(self, message: str) -> None:
        """Show what is going on where nothing can be counted."""
        self._progress.update(self._task, figures=message)

    def show(self, step: EngineProgress) -> None:
        """Show a step; the engine's `on_step`."""
        self._record = step.record or self._record
        self._progress.update(
            self._task,
            description=step.phase,
            total=step.total_steps or None,
            completed=step.step,
            figures=step.message or _figures(step, self._record),
        )


@contextmanager
def live_bar() -> Iterator[Bar]:
    """A bar that stays while the block runs."""
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield Bar(progress)


def _figures(step: EngineProgress, record: StepRecord | None) -> str:
    figures = [f"step {step.step}/{step.total_steps}"]
    if record is not None:
        figures.append(f"loss {record.loss:.3f}")
        if record.val_accuracy is not None:
            figures.append(f"val {percent(record.val_accuracy)}")
        if record.seconds > 0:
            figures.append(f"{record.forward_passes / record.seconds:,.0f} passes/s")
    if step.eta_seconds is not None:
        figures.append(f"{step.eta_seconds:.0f} s left")
    return "  ".join(figures)


def _summary(tuned: Tuned) -> dict[str, object]:
    return {
        **tuned.result.metrics,
        "comparison": dict(tuned.result.comparison),
        "comparison_split": tuned.result.comparison_split,
        "head": tuned.result.prompt.metadata["head"],
        "stopped_by": tuned.result.stopped_by,
        "seconds": round(tuned.seconds, 3),
        "artifact": str(tuned.artifact),
        "sha256": tuned.sha256,
        **dict(zip(("report", "report_json"), map(str, tuned.reports), strict=False)),
    }


def _print_result(tuned: Tuned) -> None:
    result = tuned.result
    rows = [(name, percent(value)) for name, value in result.comparison.items()]
    print_table(f"Accuracy on {result.comparison_split} images", ("", "accuracy"), rows)
    passes, head = result.metrics["forward_passes"], result.prompt.metadata["head"]
    typer.echo(f"{passes:,} forward passes, {tuned.seconds:.1f} seconds")
    typer.echo(f"served: {what_is_served(head)}")
    typer.echo(f"prompt file: {tuned.artifact}")
    if tuned.reports:
        page, data = tuned.reports
        typer.echo(f"run report:  {page} (the same as JSON: {data})")


def what_is_served(head: Mapping[str, object]) -> str:
    """The metadata of a head, for people."""
    if head["kind"] == "none":
        return "the tuned prompt alone"
    return f"head {head['kind']} {'beside the prompt' if head['prompt_weight'] else 'alone'}"
