"""`sharpzo tune`: the engine on this machine, shown as it goes on."""

from __future__ import annotations

import signal
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import typer

from sharpzo_cli.errors import UsageProblem
from sharpzo_cli.output import percent, print_json, print_table, writable
from sharpzo_cli.values import tuning_config
from sharpzo_client.display import SEARCHING, Pace, Standing, display, stage_title
from sharpzo_engine.data.dataset import load_dataset
from sharpzo_engine.errors import TuningInterrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path
    from types import FrameType

    from sharpzo_client.display import Display
    from sharpzo_engine import Progress as EngineProgress
    from sharpzo_engine import StepRecord, TuneResult, TuningConfig
    from sharpzo_engine.data.layout import Part
    from sharpzo_engine.search.progress import OnStep


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
    with display() as shown:
        view = TuningView(shown, config)
        view.say("loading the backbone")
        backbone = load_backbone(request.backbone, request.pretrained, request.device)
        with stop_on_interrupt() as stop_if_asked:
            result = tune(
                dataset,
                backbone,
                config,
                on_step=_in_turn(view.show, stop_if_asked),
                checkpoint_dir=request.checkpoint_dir,
                resume=request.resume,
            )
        view.done()
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


class TuningView:
    """Shows a run of the engine."""

    def __init__(self, shown: Display, config: TuningConfig) -> None:
        self._shown = shown
        self._config = config.model_dump(mode="json")
        self._pace = Pace()
        self._record: StepRecord | None = None
        self._last = Standing("starting")

    def say(self, message: str) -> None:
        """Show what is going on where nothing can be counted."""
        self._shown.show(Standing("preparing", note=message))

    def show(self, step: EngineProgress) -> None:
        """Show a step; the engine's `on_step`."""
        self._record = self._latest(step.record)
        searching = step.phase in SEARCHING
        if searching:
            self._pace.count(step.forward_passes)
        loss, accuracy = self._scores()
        self._last = Standing(
            title=stage_title(step.phase, self._config),
            step=step.step,
            total=step.total_steps or None,
            loss=loss,
            accuracy=accuracy,
            passes=step.forward_passes,
            budget=self._config["max_forward_passes"],
            pace=self._pace.per_second if searching else None,
            eta=step.eta_seconds,
            note=step.message or "",
            searching=searching,
        )
        self._shown.show(self._last)

    def done(self) -> None:
        """Show that the run has ended well."""
        self._shown.show(replace(self._last, title="done", pace=None, note="", over=True))

    def _latest(self, record: StepRecord | None) -> StepRecord | None:
        """The newest record; one without validation keeps the accuracy of the one before."""
        before = self._record
        if record is None or before is None or record.val_accuracy is not None:
            return record or before
        return replace(record, val_accuracy=before.val_accuracy)

    def _scores(self) -> tuple[float | None, float | None]:
        record = self._record
        return (None, None) if record is None else (record.loss, record.val_accuracy)


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
