"""`sharpzo tune`: run the engine on this machine and show its progress."""

from __future__ import annotations

import signal
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

import typer

from sharpzo_cli.errors import UsageProblem
from sharpzo_cli.formatting import images_text, interval_text
from sharpzo_cli.output import percent, print_json, print_table, writable
from sharpzo_client.display import STAGES, PassRate, RunState, display, phase_title
from sharpzo_engine.data.dataset import list_unlabelled, load_dataset
from sharpzo_engine.errors import FinishSearch, TuningInterrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import FrameType

    from sharpzo_cli.values import Hyperparameters
    from sharpzo_client.display import Display
    from sharpzo_engine import Progress as EngineProgress
    from sharpzo_engine import TuneResult
    from sharpzo_engine.search.progress import OnStep


FINISHING = "finishing with the best prompt so far; press Ctrl-C again to stop at once"
#: What draws a report; not in the extra `edge`.
REPORT_PACKAGES = ("jinja2", "matplotlib")


@dataclass(frozen=True)
class TuneRequest:
    dataset: str  #: a path, or a name of the catalogue
    unlabelled: Path | None  #: folder of more images
    root: Path | None
    preset: str
    hyperparameters: Hyperparameters  #: over the preset
    backbone: str
    pretrained: str | None
    device: str
    out: Path
    report: Path | None  #: the HTML report; default: beside `out`
    no_report: bool
    checkpoint_dir: Path | None
    resume: bool


@dataclass(frozen=True)
class Tuned:
    artifact: Path
    sha256: str
    seconds: float
    result: TuneResult
    reports: tuple[Path, ...]  #: HTML and JSON, or none


def run_tuning(request: TuneRequest, *, as_json: bool) -> None:
    """Tune, write the prompt file and the report, and print the results.

    Raises:
        UsageProblem: an option is wrong.
        EngineError: tuning failed.
        KeyboardInterrupt: Ctrl-C, twice; with a checkpoint folder the run can be resumed.
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
    config = request.hyperparameters.over(request.preset)
    if request.resume and request.checkpoint_dir is None:
        raise UsageProblem("--resume needs a checkpoint", "name its folder with --checkpoint-dir")
    out = writable(request.out)
    page = _report_path(request)
    # Before loading torch, so that a wrong path fails immediately.
    dataset = load_dataset(request.dataset, root=request.root)
    unlabelled = list_unlabelled(request.unlabelled) if request.unlabelled else None
    from sharpzo_engine import load_backbone, tune

    began = time.monotonic()
    with display() as shown:
        view = TuningView(shown, config.pass_limit)
        view.say("loading the backbone")
        backbone = load_backbone(request.backbone, request.pretrained, request.device)
        with finish_on_interrupt(lambda: shown.say(FINISHING)) as end_if_interrupted:
            result = tune(
                dataset,
                backbone,
                config,
                on_step=_in_turn(view.show, end_if_interrupted),
                checkpoint_dir=request.checkpoint_dir,
                resume=request.resume,
                unlabelled=unlabelled,
            )
        view.done()
    sha256, seconds = result.prompt.save(out), time.monotonic() - began
    reports = result.report.labelled(preset=request.preset).save(page) if page else ()
    return Tuned(out, sha256, seconds, result, reports)


def _report_path(request: TuneRequest) -> Path | None:
    """Check that the report and its JSON do not overwrite the command's other files.

    Raises:
        UsageProblem: they would, the files cannot be written, or what draws a report is missing.
    """
    if request.no_report:
        return None
    missing = [name for name in REPORT_PACKAGES if find_spec(name) is None]
    if missing:
        needs, install = f"needs {' and '.join(missing)}", f"pip install {' '.join(missing)}"
        if request.report:
            raise UsageProblem(f"a report {needs}", f"{install}, or leave out --report")
        typer.echo(f"no report is written: it {needs} ({install})", err=True)
        return None
    page = writable(request.report or request.out.with_suffix(".html"))
    data = page.with_suffix(".json")
    others = {path.resolve() for path in (request.out, request.hyperparameters.file) if path}
    if page == data or others & {page.resolve(), data.resolve()}:
        raise UsageProblem(
            f"the report {page} and {data.name} would replace another file",
            "choose another name with --report FILE.html, or use --no-report",
        )
    writable(data)
    return page


def _in_turn(show: OnStep, end_if_interrupted: Callable[[], None]) -> OnStep:
    def on_step(step: EngineProgress) -> None:
        show(step)
        end_if_interrupted()

    return on_step


@contextmanager
def finish_on_interrupt(tell: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """Let the first Ctrl-C finish the search, and the second wait for a step and its checkpoint.

    The third does not wait. `tell` is called at the first one. Yields a function to call after each
    step, which raises FinishSearch after one Ctrl-C and TuningInterrupted after two.
    """
    pressed = 0

    def count(_signal: int, _frame: FrameType | None) -> None:
        nonlocal pressed
        pressed += 1
        if pressed > 1:
            signal.signal(signal.SIGINT, previous)
            return
        with suppress(RuntimeError):  # it came while a line was written, which has a lock
            tell()

    def end_if_interrupted() -> None:
        if pressed > 1:
            raise TuningInterrupted
        if pressed:
            raise FinishSearch

    previous = signal.signal(signal.SIGINT, count)
    try:
        yield end_if_interrupted
    finally:
        signal.signal(signal.SIGINT, previous)


def _how_to_resume(request: TuneRequest) -> str:
    if request.checkpoint_dir is None:
        return "stopped without a checkpoint (use --checkpoint-dir to be able to resume)"
    folder = request.checkpoint_dir
    return f"stopped; repeat the command with --checkpoint-dir {folder} --resume to continue"


class TuningView:
    def __init__(self, shown: Display, budget: int | None) -> None:
        self._shown = shown
        self._budget = budget  # forward passes
        self._rate = PassRate()
        self._loss: float | None = None
        self._accuracy: float | None = None
        self._last = RunState("starting")

    def say(self, message: str) -> None:
        self._shown.show(RunState("preparing", note=message))

    def show(self, step: EngineProgress) -> None:
        if step.record is not None:
            self._loss = step.record.loss
            if step.record.val_accuracy is not None:  # not every step is validated
                self._accuracy = step.record.val_accuracy
        searching = step.phase in STAGES
        if searching:
            self._rate.count(step.forward_passes)
        self._last = RunState(
            title=phase_title(step.phase, step.phase_label),
            step=step.step,
            total=step.total_steps or None,
            loss=self._loss,
            accuracy=self._accuracy,
            passes=step.forward_passes,
            budget=self._budget,
            rate=self._rate.per_second if searching else None,
            eta=step.eta_seconds,
            note=step.message or "",
            searching=searching,
        )
        self._shown.show(self._last)

    def done(self) -> None:
        self._shown.show(replace(self._last, title="done", rate=None, note="", ended=True))


def _summary(tuned: Tuned) -> dict[str, object]:
    return {
        **tuned.result.metrics,
        "comparison": dict(tuned.result.comparison),
        "comparison_split": tuned.result.comparison_split,
        "head": tuned.result.prompt.metadata["head"],
        "unlabelled_images": tuned.result.prompt.metadata["unlabelled_images"],
        "stopped_by": tuned.result.stopped_by,
        "seconds": round(tuned.seconds, 3),
        "artifact": str(tuned.artifact),
        "sha256": tuned.sha256,
        **dict(zip(("report", "report_json"), map(str, tuned.reports), strict=False)),
    }


def _print_result(tuned: Tuned) -> None:
    result = tuned.result
    _print_comparison(result)
    passes, metadata = result.metrics["forward_passes"], result.prompt.metadata
    early = f", finished early after step {len(result.history)}"
    early = early if result.stopped_by == "finished" else ""
    typer.echo(f"{passes:,} forward passes, {tuned.seconds:.1f} seconds{early}")
    if metadata["unlabelled_images"]:
        typer.echo(f"unlabelled:  {images_text(metadata['unlabelled_images'])}")
    typer.echo(f"classifier:  {metadata['head']['name']}")
    typer.echo(f"chosen:      {metadata['choice']['reason']}")
    typer.echo(f"prompt file: {tuned.artifact}")
    if tuned.reports:
        page, data = tuned.reports
        typer.echo(f"run report:  {page} (as JSON: {data})")


def _print_comparison(result: TuneResult) -> None:
    """Print the accuracies; with intervals on test images, as all others chose the prompt."""
    split, images = result.comparison_split, result.report.after.images
    header = ("", "accuracy", "95% interval") if split == "test" else ("", "accuracy")
    rows = [
        (name, percent(value), interval_text(value, images))[: len(header)]
        for name, value in result.comparison.items()
    ]
    print_table(f"Accuracy on {images_text(images)} ({split})", header, rows)
