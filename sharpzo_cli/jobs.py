"""`sharpzo jobs`: jobs of a service."""

from __future__ import annotations

from collections import deque
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sharpzo_cli import completion
from sharpzo_cli.options import (
    DEFAULT_LIMIT,
    DEFAULT_URL,
    ConfigFile,
    DatasetId,
    JobId,
    JobKind,
    JobStatus,
    Json,
    Limit,
    ResultForm,
    Url,
    Values,
    Watch,
)
from sharpzo_cli.output import print_json, say, tell_deleted, writable

if TYPE_CHECKING:
    from sharpzo_client import Job

app = typer.Typer(
    name="jobs",
    help="Submit, watch and steer the jobs of a service.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command()
def submit(
    dataset: DatasetId,
    backbone: Annotated[
        str | None,
        typer.Option(
            "--backbone",
            help="One that the service offers; else its default.",
            autocompletion=completion.offered_backbones,
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            help="default, fast, paper, reference, or a dataset of the paper (eurosat ...).",
            autocompletion=completion.presets,
        ),
    ] = None,
    config: ConfigFile = None,
    values: Values = None,
    name: Annotated[str | None, typer.Option("--name", help="What to call it.")] = None,
    from_checkpoint: Annotated[
        str | None,
        typer.Option(
            "--from-checkpoint",
            metavar="JOB",
            help="Go on from this job's last checkpoint.",
            autocompletion=completion.jobs,
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            "--idempotency-key", help="The same key with the same values gives the same job."
        ),
    ] = None,
    watch: Watch = False,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Tune a prompt on an uploaded dataset; print the job's id."""
    from sharpzo_cli.remote import service
    from sharpzo_cli.values import overlay

    given = overlay(config, values or ())
    with service(url) as client:
        job = client.jobs.create(
            dataset,
            backbone=backbone,
            preset=preset,
            config=given or None,
            name=name,
            from_checkpoint=from_checkpoint,
            idempotency_key=key,
        )
    announce(job, url, watch=watch, as_json=as_json)


@app.command("list")
def list_jobs(
    status: Annotated[
        JobStatus | None, typer.Option("--status", help="Only those in this status.")
    ] = None,
    kind: Annotated[JobKind | None, typer.Option("--kind", help="Only those of this kind.")] = None,
    limit: Limit = DEFAULT_LIMIT,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """List jobs, newest first."""
    from sharpzo_cli.formatting import show_jobs
    from sharpzo_cli.remote import service

    with service(url) as client:
        found = client.jobs.list(kind=kind)
        jobs = list(islice((job for job in found if status in (None, job.status)), limit))
    if as_json:
        print_json({"jobs": [job.model_dump(mode="json") for job in jobs]})
    else:
        show_jobs(jobs)


@app.command()
def show(
    job_id: JobId,
    events: Annotated[
        int, typer.Option("--events", min=0, help="How many of its last events.")
    ] = 10,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Show a job with its figures, its configuration and its last events."""
    from sharpzo_cli.formatting import show_job
    from sharpzo_cli.remote import service

    with service(url) as client:
        job = client.jobs.get(job_id)
        tail = list(deque(client.jobs.events(job_id), maxlen=events)) if events else []
    if as_json:
        told = [event.model_dump(mode="json") for event in tail]
        print_json({**job.model_dump(mode="json"), "events": told})
    else:
        show_job(job, tail)


@app.command()
def watch(
    job_id: JobId,
    url: Url = DEFAULT_URL,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print each event as a JSON object on a line.")
    ] = False,
) -> None:
    """Show a job as it goes on, until it has ended; exit code 1 unless it succeeded.

    Ctrl-C ends the watching, not the job.
    """
    from sharpzo_cli.watching import watch_job

    watch_job(url, job_id, as_json=as_json)


@app.command()
def cancel(job_id: JobId, url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """Ask a job to stop."""
    from sharpzo_cli.remote import service

    with service(url) as client:
        job = client.jobs.cancel(job_id)
    _tell(job, as_json=as_json)


@app.command()
def pause(job_id: JobId, url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """Put a job by; a running one saves a checkpoint first."""
    from sharpzo_cli.remote import service

    with service(url) as client:
        job = client.jobs.pause(job_id)
    _tell(job, as_json=as_json)


@app.command()
def resume(job_id: JobId, url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """Let a paused, failed or cancelled job go on from its last checkpoint."""
    from sharpzo_cli.remote import service

    with service(url) as client:
        job = client.jobs.resume(job_id)
    _tell(job, as_json=as_json)


@app.command()
def delete(job_id: JobId, url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """Delete a job that has ended, with its report and results; its prompt stays."""
    from sharpzo_cli.remote import service

    with service(url) as client:
        client.jobs.delete(job_id)
    tell_deleted(job_id, as_json=as_json)


@app.command()
def report(
    job_id: JobId,
    out: Annotated[Path, typer.Option("--out", help="Where the HTML page goes.")] = Path(
        "report.html"
    ),
    url: Url = DEFAULT_URL,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report's numbers and write no page.")
    ] = False,
) -> None:
    """Fetch the report of a run or of an evaluation."""
    from sharpzo_cli.remote import service

    if as_json:
        with service(url) as client:
            print_json(client.jobs.report(job_id))
        return
    with service(url) as client:
        written = client.jobs.download_report(job_id, writable(out))
    say(str(written))


@app.command()
def results(
    job_id: JobId,
    out: Annotated[Path | None, typer.Option("--out", help="Where the file goes.")] = None,
    form: Annotated[ResultForm, typer.Option("--format", help="Of the file.")] = ResultForm.JSONL,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Fetch what a classification of a dataset found, a line per image."""
    from sharpzo_cli.remote import service

    target = writable(out or Path(f"results.{form}"))
    with service(url) as client:
        written = client.jobs.download_results(job_id, target, form.value)
    if as_json:
        print_json({"file": str(written), "format": form})
    else:
        say(str(written))


def announce(job: Job, url: str, *, watch: bool, as_json: bool) -> None:
    """Tell of a new job: its id on standard output and nothing else, so that a script can take it.

    With `watch` it is shown until it has ended.
    """
    from sharpzo_cli.watching import watch_job

    if as_json and not watch:
        print_json(job.model_dump(mode="json"))
    elif not watch:
        say(job.id)
    else:
        say(job.id, err=True)
        watch_job(url, job.id, as_json=as_json)


def _tell(job: Job, *, as_json: bool) -> None:
    if as_json:
        print_json(job.model_dump(mode="json"))
    else:
        say(f"{job.id} is {job.status}")
