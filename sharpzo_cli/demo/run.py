"""The demo: digits -> upload -> job -> prompt -> classify -> table."""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sharpzo_cli.demo.digits import HeldOut, write_digits
from sharpzo_cli.demo.server import running_service
from sharpzo_cli.errors import RunFailed
from sharpzo_cli.formatting import accuracy_text
from sharpzo_cli.interrupts import interrupt
from sharpzo_cli.output import print_json, print_table
from sharpzo_client import Client, Job, SharpzoError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: Overrides of the preset `default`: a limit that slow machines reach.
CONFIG: dict[str, Any] = {
    "shots": 16,
    "seed": 1,
    "max_seconds": 40.0,
}
BATCH = 50  # images per classify request
POLL_SECONDS = 0.5
REMOVALS = 5  # attempts to remove the temporary folder


@dataclass(frozen=True)
class Outcome:
    job: Job
    correct: int  #: of the held-out images
    held_out: int
    seconds: float  #: from upload to the last classification


def run_demo(out: Path) -> None:
    """Run the demo and save the prompt file and the report in `out`.

    Raises:
        RunFailed: the service or the job failed; the service's log is in `out`.
    """
    import sklearn  # noqa: F401 - if it is missing, fail before anything is started

    out.mkdir(parents=True, exist_ok=True)
    with sigterm_interrupts(), temporary_folder() as temporary:
        outcome = _run(temporary, out)
    _print(outcome, out)


def _run(temporary: Path, out: Path) -> Outcome:
    log = temporary / "service.log"
    _say("writing scikit-learn's handwritten digits to a dataset folder")
    held_out = write_digits(temporary / "digits")
    try:
        _say("starting the service")
        with running_service(temporary / "data", log) as client:
            return _use(client, temporary / "digits" / "dataset", held_out, out)
    except SharpzoError as error:
        copy = shutil.copy(log, out / "service.log")
        raise RunFailed(str(error), f"see {copy}") from error


def _use(client: Client, dataset_folder: Path, held_out: Sequence[HeldOut], out: Path) -> Outcome:
    began = time.monotonic()
    _say("uploading")
    dataset = client.datasets.upload(dataset_folder, name="digits", poll=POLL_SECONDS)
    job = client.jobs.create(dataset.id, backbone="tiny", config=CONFIG, name="digits")
    job = client.jobs.wait(job.id, poll=POLL_SECONDS, progress=True)
    _say(f"classifying {len(held_out)} held-out images")
    correct = count_correct(client, str(job.prompt_id), held_out)
    seconds = time.monotonic() - began
    client.prompts.download(str(job.prompt_id), out / "prompt.safetensors")
    client.jobs.download_report(job.id, out / "report.html")
    (out / "report.json").write_text(json.dumps(client.jobs.report(job.id)))
    return Outcome(job, correct, len(held_out), seconds)


def count_correct(client: Client, ref: str, images: Sequence[HeldOut]) -> int:
    correct = 0
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH]
        answer = client.prompts.classify(ref, [image.path for image in batch], top_k=1)
        for image, result in zip(batch, answer.results, strict=True):
            correct += result.best is not None and result.best.label == image.label
    return correct


def _print(outcome: Outcome, out: Path) -> None:
    job, metrics = outcome.job, outcome.job.metrics
    passes, seconds = job.progress.forward_passes, f"{outcome.seconds:.1f}"
    shown = partial(accuracy_text, images=metrics.test_images)
    rows = [
        ("zero-shot prompt", shown(metrics.zero_shot_accuracy), "0", ""),
        ("tuned prompt", shown(metrics.prompt_test_accuracy), f"{passes:,}", seconds),
        ("what is served", shown(metrics.test_accuracy), f"{passes:,}", seconds),
    ]
    print_table(
        "Handwritten digits, backbone tiny",
        ("", "test accuracy", "forward passes", "seconds"),
        rows,
    )
    score = f"{outcome.correct} of {outcome.held_out}"
    typer.echo(f"correct labels for held-out images through the API: {score}")
    typer.echo(f"prompt file: {out / 'prompt.safetensors'}")
    typer.echo(f"run report:  {out / 'report.html'} (as JSON: {out / 'report.json'})")
    print_json(
        {
            "job_id": job.id,
            "prompt_id": job.prompt_id,
            "zero_shot_accuracy": metrics.zero_shot_accuracy,
            "tuned_accuracy": metrics.prompt_test_accuracy,
            "forward_passes": passes,
            "seconds": round(outcome.seconds, 2),
        }
    )


@contextmanager
def temporary_folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="sharpzo-demo-"))
    try:
        yield path
    finally:
        for _ in range(REMOVALS):
            shutil.rmtree(path, ignore_errors=True)
            if not path.exists():
                break
            time.sleep(POLL_SECONDS)  # a worker that was just killed may still have written


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that no process is left running."""
    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _say(what: str) -> None:
    typer.echo(f"{what} …", err=True)
