"""`sharpzo jobs`: the jobs of a service."""

from __future__ import annotations

from collections import deque
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sharpzo_cli import completion
from sharpzo_cli import options as opt
from sharpzo_cli.formatting import show_job, show_jobs
from sharpzo_cli.output import (
    print_deleted,
    print_items,
    print_json,
    print_model,
    say,
    say_id,
    writable,
)
from sharpzo_cli.remote import service

if TYPE_CHECKING:
    from sharpzo_client import Job

app = typer.Typer(
    name="jobs",
    help="Submit, watch, pause, resume, finish and cancel jobs.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command()
def submit(
    dataset: opt.DatasetId,
    unlabelled: Annotated[
        str | None,
        typer.Option(
            "--unlabelled",
            metavar="DATASET_ID",
            help="A dataset with more images of these classes, five per class or more; labels are "
            "not read.",
            autocompletion=completion.datasets,
        ),
    ] = None,
    shots: opt.Shots = None,
    seed: opt.Seed = None,
    passes: opt.Passes = None,
    head: opt.Head = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            "--backbone",
            help="A backbone that the service offers; else its default.",
            autocompletion=completion.offered_backbones,
        ),
    ] = None,
    preset: opt.Preset = None,
    config: opt.ConfigFile = None,
    values: opt.Values = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the tuned prompt.")] = None,
    from_checkpoint: Annotated[
        str | None,
        typer.Option(
            "--from-checkpoint",
            metavar="JOB",
            help="Start from this job's last checkpoint.",
            autocompletion=completion.jobs,
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            "--idempotency-key", help="The same key with the same values returns the same job."
        ),
    ] = None,
    watch: opt.Watch = False,
    url: opt.Url = opt.DEFAULT_URL,
    as_json: opt.Json = False,
) -> None:
    """Submit a job that tunes a prompt on a dataset; print its id.

    With --watch, Ctrl-C asks the job to finish with its best prompt so far and continues to watch;
    a second Ctrl-C stops watching.
    """
    from sharpzo_cli.values import Hyperparameters

    options = {"shots": shots, "seed": seed, "max_forward_passes": passes, "head": head}
    hyperparameters = Hyperparameters(config, tuple(values or ()), options).merged()
    with service(url) as client:
        job = client.jobs.create(
            dataset,
            unlabelled_dataset_id=unlabelled,
            backbone=backbone,
            preset=preset,
            config=hyperparameters or None,
            name=name,
            from_checkpoint=from_checkpoint,
            idempotency_key=key,
        )
    announce(job, url, watch=watch, as_json=as_json)


@app.command("list")
def list_jobs(
    status: Annotated[
        opt.JobStatus | None, typer.Option("--status", help="Only jobs in this status.")
    ] = None,
    kind: Annotated[
        opt.JobKind | None, typer.Option("--kind", help="Only jobs of this kind.")
    ] = None,
    limit: opt.Limit = opt.DEFAULT_LIMIT,
    url: opt.Url = opt.DEFAULT_URL,
    as_json: opt.Json = False,
) -> None:
    """List jobs, newest first."""
    with service(url) as client:
        found = client.jobs.list(kind=kind)
        jobs = list(islice((job for job in found if status in (None, job.status)), limit))
    print_items("jobs", jobs, show_jobs, as_json=as_json)


@app.command()
def show(
    job_id: opt.JobId,
    events: Annotated[
        int, typer.Option("--events", min=0, help="How many of the latest events to show.")
    ] = 10,
    url: opt.Url = opt.DEFAULT_URL,
    as_json: opt.Json = False,
) -> None:
    """Show a job with its results, configuration and latest events."""
    with service(url) as client:
        job = client.jobs.get(job_id)
        latest = list(deque(client.jobs.events(job_id), maxlen=events)) if events else []
    if as_json:
        as_data = [event.model_dump(mode="json") for event in latest]
        print_json({**job.model_dump(mode="json"), "events": as_data})
    else:
        show_job(job, latest)


@app.command()
def watch(
    job_id: opt.JobId,
    url: opt.Url = opt.DEFAULT_URL,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print each event as a JSON object on a line.")
    ] = False,
) -> None:
    """Follow a job until it ends.

    The exit code is 1 unless the job succeeds. Ctrl-C stops watching; the job keeps running.
    """
    from sharpzo_cli.watching import watch_job

    watch_job(url, job_id, as_json=as_json)


@app.command()
def cancel(job_id: opt.JobId, url: opt.Url = opt.DEFAULT_URL, as_json: opt.Json = False) -> None:
    """Cancel a job."""
    with service(url) as client:
        job = client.jobs.cancel(job_id)
    print_model(job, _say_status, as_json=as_json)


@app.command()
def pause(job_id: opt.JobId, url: opt.Url = opt.DEFAULT_URL, as_json: opt.Json = False) -> None:
    """Pause a job; a running job saves a checkpoint first."""
    with service(url) as client:
        job = client.jobs.pause(job_id)
    print_model(job, _say_status, as_json=as_json)


@app.command()
def resume(job_id: opt.JobId, url: opt.Url = opt.DEFAULT_URL, as_json: opt.Json = False) -> None:
    """Resume a paused, failed or cancelled job from its checkpoint."""
    with service(url) as client:
        job = client.jobs.resume(job_id)
    print_model(job, _say_status, as_json=as_json)


@app.command()
def finish(job_id: opt.JobId, url: opt.Url = opt.DEFAULT_URL, as_json: opt.Json = False) -> None:
    """End a tuning search early, with its best prompt so far."""
    with service(url) as client:
        job = client.jobs.finish(job_id)
    print_model(job, _say_finishing, as_json=as_json)


@app.command()
def delete(job_id: opt.JobId, url: opt.Url = opt.DEFAULT_URL, as_json: opt.Json = False) -> None:
    """Delete an ended job with its report and results, not its prompt."""
    with service(url) as client:
        client.jobs.delete(job_id)
    print_deleted(job_id, as_json=as_json)


@app.command()
def report(
    job_id: opt.JobId,
    out: Annotated[Path, typer.Option("--out", help="HTML file to write.")] = Path("report.html"),
    url: opt.Url = opt.DEFAULT_URL,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report's numbers instead of writing a file.")
    ] = False,
) -> None:
    """Download the report of a tuning or evaluation job."""
    with service(url) as client:
        if as_json:
            print_json(client.jobs.report(job_id))
        else:
            say(str(client.jobs.download_report(job_id, writable(out))))


@app.command()
def results(
    job_id: opt.JobId,
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write; default: results.FORMAT.")
    ] = None,
    form: Annotated[
        Literal["jsonl", "csv"], typer.Option("--format", help="Format of the file.")
    ] = "jsonl",
    url: opt.Url = opt.DEFAULT_URL,
    as_json: opt.Json = False,
) -> None:
    """Download the labels of a classification job."""
    target = writable(out or Path(f"results.{form}"))
    with service(url) as client:
        written = client.jobs.download_results(job_id, target, form)
    if as_json:
        print_json({"file": str(written), "format": form})
    else:
        say(str(written))


def announce(job: Job, url: str, *, watch: bool, as_json: bool) -> None:
    """Print a new job's id alone on standard output, so that a script can use it.

    With `watch` the job is followed until it ends, and the id goes to standard error; a tuning job
    is asked to finish at the first Ctrl-C.
    """
    from sharpzo_cli.watching import watch_job

    if watch:
        say(job.id, err=True)
        watch_job(url, job.id, as_json=as_json, finishes=job.kind == "tuning")
    else:
        print_model(job, say_id, as_json=as_json)


def _say_status(job: Job) -> None:
    say(f"{job.id} is {job.status}")


def _say_finishing(job: Job) -> None:
    say(f"{job.id} is {job.status if job.is_terminal else 'finishing'}")
