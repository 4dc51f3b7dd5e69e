"""`sharpzo prompts`: the tuned prompts of a service, and the aliases that point to them."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sharpzo_cli import completion
from sharpzo_cli import options as opt
from sharpzo_cli.formatting import (
    show_aliases,
    show_history,
    show_labels,
    show_prompt,
    show_prompts,
)
from sharpzo_cli.jobs import announce
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
from sharpzo_engine.data.layout import Part

if TYPE_CHECKING:
    from sharpzo_client import Alias, Prompt

app = typer.Typer(
    name="prompts",
    help="Use, evaluate, export and promote tuned prompts.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

AliasRef = Annotated[
    str,
    typer.Argument(
        metavar="ALIAS",
        help="name@alias, or the alias alone if only one name has it.",
        autocompletion=completion.aliases,
    ),
]
Name = Annotated[str | None, typer.Option("--name", help="Only those of this name.")]
Comment = Annotated[str | None, typer.Option("--comment", help="A line for the history.")]


@app.command("list")
def list_prompts(
    name: Name = None,
    limit: opt.Limit = opt.DEFAULT_LIMIT,
    url: opt.Url = opt.DEFAULT_URL,
    as_json: opt.Json = False,
) -> None:
    """List prompts, newest first."""
    with service(url) as client:
        prompts = list(islice(client.prompts.list(name=name), limit))
    print_items("prompts", prompts, show_prompts, as_json=as_json)


@app.command()
def show(ref: opt.PromptRef, url: opt.Url = opt.DEFAULT_URL, as_json: opt.Json = False) -> None:
    """Show a prompt with its classes, results and origin."""
    with service(url) as client:
        prompt = client.prompts.get(ref)
    print_model(prompt, show_prompt, as_json=as_json)


@app.command()
def classify(
    ref: opt.PromptRef,
    images: opt.Images,
    top_k: opt.TopK = opt.DEFAULT_TOP_K,
    calibrated: opt.Calibrated = False,
    zero_shot: opt.ZeroShot = False,
    url: opt.Url = opt.DEFAULT_URL,
    as_json: opt.Json = False,
) -> None:
    """Label images through the service."""
    with service(url) as client:
        answer = client.prompts.classify(
            ref, images, top_k=top_k, calibrated=calibrated, zero_shot=zero_shot
        )
    if as_json:
        data = answer.model_dump(mode="json")
        for image, result in zip(images, data["results"], strict=True):
            result["image"] = str(image)
        print_json(data)
    else:
        show_labels(images, answer.results)


@app.command()
def evaluate(
    ref: opt.PromptRef,
    dataset: opt.DatasetId,
    split: opt.TestSplit = "test",
    classes: Annotated[
        Part | None,
        typer.Option("--classes", help="Part of the dataset's classes; else the prompt's classes."),
    ] = None,
    watch: opt.Watch = False,
    url: opt.Url = opt.DEFAULT_URL,
    as_json: opt.Json = False,
) -> None:
    """Submit a job that evaluates a prompt; print its id."""
    with service(url) as client:
        job = client.prompts.evaluate(ref, dataset, split=split, classes=classes)
    announce(job, url, watch=watch, as_json=as_json)


@app.command("classify-dataset")
def classify_dataset(
    ref: opt.PromptRef,
    dataset: opt.DatasetId,
    split: Annotated[
        opt.Split | None, typer.Option("--split", help="Label only this split.")
    ] = None,
    top_k: opt.TopK = opt.DEFAULT_TOP_K,
    calibrated: opt.Calibrated = False,
    watch: opt.Watch = False,
    url: opt.Url = opt.DEFAULT_URL,
    as_json: opt.Json = False,
) -> None:
    """Submit a job that labels a whole dataset; print its id."""
    with service(url) as client:
        job = client.prompts.classify_dataset(
            ref, dataset, split=split, top_k=top_k, calibrated=calibrated
        )
    announce(job, url, watch=watch, as_json=as_json)


@app.command()
def download(
    ref: opt.PromptRef,
    out: Annotated[Path, typer.Option("--out", help="Prompt file to write.")] = Path(
        "prompt.safetensors"
    ),
    url: opt.Url = opt.DEFAULT_URL,
    as_json: opt.Json = False,
) -> None:
    """Download a prompt file."""
    target = writable(out)
    with service(url) as client:
        prompt = client.prompts.get(ref)
        written = client.prompts.download(prompt.id, target)
    _print_file(written, prompt, as_json=as_json)


@app.command()
def export(
    ref: opt.PromptRef,
    form: opt.Form = "npy",
    calibrated: opt.Calibrated = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write; default: prompt.FORMAT.")
    ] = None,
    url: opt.Url = opt.DEFAULT_URL,
    as_json: opt.Json = False,
) -> None:
    """Download a prompt for use without SharpZO."""
    target = writable(out or Path(f"prompt.{form}"))
    with service(url) as client:
        prompt = client.prompts.get(ref)
        written = client.prompts.export(prompt.id, target, form, calibrated=calibrated)
    _print_file(written, prompt, as_json=as_json)


@app.command()
def upload(
    artifact: opt.ArtifactPath,
    name: Annotated[
        str | None, typer.Option("--name", help="Name; default: the name in the file.")
    ] = None,
    url: opt.Url = opt.DEFAULT_URL,
    as_json: opt.Json = False,
) -> None:
    """Upload a prompt file as the next version of its name."""
    with service(url) as client:
        prompt = client.prompts.upload(artifact, name)
    print_model(prompt, say_id, as_json=as_json)


@app.command()
def delete(ref: opt.PromptRef, url: opt.Url = opt.DEFAULT_URL, as_json: opt.Json = False) -> None:
    """Delete a prompt that no alias and no job uses."""
    with service(url) as client:
        prompt = client.prompts.get(ref)  # by id: a name may point to another version meanwhile
        client.prompts.delete(prompt.id)
    print_deleted(prompt.id, as_json=as_json)


@app.command()
def pin(ref: opt.PromptRef, url: opt.Url = opt.DEFAULT_URL, as_json: opt.Json = False) -> None:
    """Keep a prompt in the memory of every API process."""
    with service(url) as client:
        prompt = client.prompts.pin(ref)
    print_model(prompt, show_prompt, as_json=as_json)


@app.command()
def unpin(ref: opt.PromptRef, url: opt.Url = opt.DEFAULT_URL, as_json: opt.Json = False) -> None:
    """Let API processes drop an unused prompt from memory."""
    with service(url) as client:
        prompt = client.prompts.unpin(ref)
    print_model(prompt, show_prompt, as_json=as_json)


@app.command()
def promote(
    ref: opt.PromptRef,
    alias: Annotated[
        str,
        typer.Argument(
            metavar="ALIAS",
            help="Alias of the prompt's name, such as production.",
            autocompletion=completion.aliases,
        ),
    ],
    metric: Annotated[
        str, typer.Option("--metric", help="Metric for --min and --min-improvement.")
    ] = "val_accuracy",
    minimum: Annotated[float | None, typer.Option("--min", help="Lowest score to accept.")] = None,
    improvement: Annotated[
        float | None,
        typer.Option("--min-improvement", help="Lowest gain over the current prompt to accept."),
    ] = None,
    expected: Annotated[
        str | None,
        typer.Option(
            "--expect", metavar="PROMPT_ID", help="Only if the alias points to this prompt now."
        ),
    ] = None,
    comment: Comment = None,
    url: opt.Url = opt.DEFAULT_URL,
    as_json: opt.Json = False,
) -> None:
    """Point an alias to a prompt.

    The exit code is 1 if the prompt scores less than --min or --min-improvement require.
    """
    required = {"min": minimum, "min_improvement": improvement}
    gate = {name: value for name, value in required.items() if value is not None}
    condition = {} if expected is None else {"expected_prompt_id": expected}
    with service(url) as client:
        prompt = client.prompts.get(ref)
        moved = client.aliases.set(
            alias if "@" in alias else f"{prompt.name}@{alias}",
            prompt.id,
            gate={"metric": metric, **gate} if gate else None,
            comment=comment,
            **condition,
        )
    print_model(moved, _say_alias, as_json=as_json)


@app.command()
def rollback(
    alias: AliasRef,
    comment: Comment = None,
    url: opt.Url = opt.DEFAULT_URL,
    as_json: opt.Json = False,
) -> None:
    """Point an alias to the previous prompt again."""
    with service(url) as client:
        moved = client.aliases.rollback(alias, comment=comment)
    print_model(moved, _say_alias, as_json=as_json)


@app.command("aliases")
def list_aliases(
    name: Name = None,
    limit: opt.Limit = opt.DEFAULT_LIMIT,
    url: opt.Url = opt.DEFAULT_URL,
    as_json: opt.Json = False,
) -> None:
    """List aliases and the prompts they point to."""
    with service(url) as client:
        found = list(islice(client.aliases.list(name=name), limit))
    print_items("aliases", found, show_aliases, as_json=as_json)


@app.command()
def history(
    alias: AliasRef,
    limit: opt.Limit = opt.DEFAULT_LIMIT,
    url: opt.Url = opt.DEFAULT_URL,
    as_json: opt.Json = False,
) -> None:
    """List the prompts an alias has pointed to, newest first."""
    with service(url) as client:
        changes = list(islice(client.aliases.history(alias), limit))
    print_items("history", changes, show_history, as_json=as_json)


def _print_file(written: Path, prompt: Prompt, *, as_json: bool) -> None:
    if as_json:
        print_json({"file": str(written), "prompt_id": prompt.id, "classes": list(prompt.classes)})
    else:
        say(str(written))


def _say_alias(alias: Alias) -> None:
    say(f"{alias.ref} is {alias.prompt_id} (version {alias.version})")
