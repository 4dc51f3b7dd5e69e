"""`sharpzo prompts`: tuned prompts of a service, and the aliases that lead to them."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sharpzo_cli import completion
from sharpzo_cli.options import (
    DEFAULT_LIMIT,
    DEFAULT_TOP_K,
    DEFAULT_URL,
    DatasetId,
    ExportForm,
    Json,
    Limit,
    PromptRef,
    Split,
    Url,
    Watch,
)
from sharpzo_cli.output import print_json, say, tell_deleted, writable
from sharpzo_engine.data.layout import Part

if TYPE_CHECKING:
    from sharpzo_client import Alias, Prompt

app = typer.Typer(
    name="prompts",
    help="Use and keep the tuned prompts of a service, and their aliases.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

AliasRef = Annotated[
    str,
    typer.Argument(
        metavar="ALIAS",
        help="name@alias, or the alias alone where only one name has it.",
        autocompletion=completion.aliases,
    ),
]
Name = Annotated[str | None, typer.Option("--name", help="Only those of this name.")]
Calibrated = Annotated[
    bool, typer.Option("--calibrated", help="Divide the logits by the prompt's temperature.")
]
Comment = Annotated[str | None, typer.Option("--comment", help="A line for the history.")]


@app.command("list")
def list_prompts(
    name: Name = None,
    limit: Limit = DEFAULT_LIMIT,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """List prompts, newest first."""
    from sharpzo_cli.formatting import show_prompts
    from sharpzo_cli.remote import service

    with service(url) as client:
        prompts = list(islice(client.prompts.list(name=name), limit))
    if as_json:
        print_json({"prompts": [prompt.model_dump(mode="json") for prompt in prompts]})
    else:
        show_prompts(prompts)


@app.command()
def show(ref: PromptRef, url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """Show a prompt: classes, figures, where it comes from."""
    from sharpzo_cli.remote import service

    with service(url) as client:
        prompt = client.prompts.get(ref)
    _show(prompt, as_json=as_json)


@app.command()
def classify(
    ref: PromptRef,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Images to label.")],
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="Labels per image.")] = DEFAULT_TOP_K,
    calibrated: Calibrated = False,
    zero_shot: Annotated[
        bool, typer.Option("--zero-shot", help="Show what the hand-written prompt says as well.")
    ] = False,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Label images through the service."""
    from sharpzo_cli.formatting import show_labels
    from sharpzo_cli.remote import service

    with service(url) as client:
        answer = client.prompts.classify(
            ref, images, top_k=top_k, calibrated=calibrated, zero_shot=zero_shot
        )
    if as_json:
        told = answer.model_dump(mode="json")
        for image, result in zip(images, told["results"], strict=True):
            result["image"] = str(image)
        print_json(told)
    else:
        show_labels(images, answer.results)


@app.command()
def evaluate(
    ref: PromptRef,
    dataset: DatasetId,
    split: Annotated[Split, typer.Option("--split", help="Of the dataset.")] = Split.TEST,
    classes: Annotated[
        Part | None,
        typer.Option("--classes", help="That part of the dataset's classes; else the prompt's."),
    ] = None,
    watch: Watch = False,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Measure a prompt on an uploaded dataset, as a job; print its id."""
    from sharpzo_cli.jobs import announce
    from sharpzo_cli.remote import service

    with service(url) as client:
        job = client.prompts.evaluate(ref, dataset, split=split, classes=classes)
    announce(job, url, watch=watch, as_json=as_json)


@app.command("classify-dataset")
def classify_dataset(
    ref: PromptRef,
    dataset: DatasetId,
    split: Annotated[Split | None, typer.Option("--split", help="That part alone.")] = None,
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="Labels per image.")] = DEFAULT_TOP_K,
    calibrated: Calibrated = False,
    watch: Watch = False,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Label all images of an uploaded dataset, as a job; print its id."""
    from sharpzo_cli.jobs import announce
    from sharpzo_cli.remote import service

    with service(url) as client:
        job = client.prompts.classify_dataset(
            ref, dataset, split=split, top_k=top_k, calibrated=calibrated
        )
    announce(job, url, watch=watch, as_json=as_json)


@app.command()
def download(
    ref: PromptRef,
    out: Annotated[Path, typer.Option("--out", help="Where the prompt file goes.")] = Path(
        "prompt.safetensors"
    ),
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Fetch a prompt file, whole and intact."""
    from sharpzo_cli.remote import service

    target = writable(out)
    with service(url) as client:
        prompt = client.prompts.get(ref)
        written = client.prompts.download(prompt.id, target)
    _tell_file(written, prompt, as_json=as_json)


@app.command()
def export(
    ref: PromptRef,
    form: Annotated[
        ExportForm, typer.Option("--format", help="A numpy matrix or an ONNX model.")
    ] = ExportForm.NPY,
    calibrated: Calibrated = False,
    out: Annotated[Path | None, typer.Option("--out", help="Where the file goes.")] = None,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Fetch a prompt as a file for other programs."""
    from sharpzo_cli.remote import service

    target = writable(out or Path(f"prompt.{form}"))
    with service(url) as client:
        prompt = client.prompts.get(ref)
        written = client.prompts.export(prompt.id, target, form.value, calibrated=calibrated)
    _tell_file(written, prompt, as_json=as_json)


@app.command()
def upload(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="Prompt file.")],
    name: Annotated[
        str | None, typer.Option("--name", help="What to call it; else what the file says.")
    ] = None,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Import a prompt file as the next version of its name."""
    from sharpzo_cli.remote import service

    with service(url) as client:
        prompt = client.prompts.upload(artifact, name)
    if as_json:
        print_json(prompt.model_dump(mode="json"))
    else:
        say(prompt.id)


@app.command()
def delete(ref: PromptRef, url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """Delete a prompt that no alias points to and no job needs."""
    from sharpzo_cli.remote import service

    with service(url) as client:
        prompt = client.prompts.get(ref)  # one version, whatever appears meanwhile
        client.prompts.delete(prompt.id)
    tell_deleted(prompt.id, as_json=as_json)


@app.command()
def pin(ref: PromptRef, url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """Have every API process keep a prompt in memory."""
    from sharpzo_cli.remote import service

    with service(url) as client:
        prompt = client.prompts.pin(ref)
    _show(prompt, as_json=as_json)


@app.command()
def unpin(ref: PromptRef, url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """Have a prompt kept in memory only as long as it is asked for."""
    from sharpzo_cli.remote import service

    with service(url) as client:
        prompt = client.prompts.unpin(ref)
    _show(prompt, as_json=as_json)


@app.command()
def promote(
    ref: PromptRef,
    alias: Annotated[
        str,
        typer.Argument(
            metavar="ALIAS",
            help="Alias of the prompt's name, such as production.",
            autocompletion=completion.aliases,
        ),
    ],
    metric: Annotated[
        str, typer.Option("--metric", help="What --min and --min-improvement ask for.")
    ] = "val_accuracy",
    minimum: Annotated[
        float | None, typer.Option("--min", help="The least that the prompt must score.")
    ] = None,
    improvement: Annotated[
        float | None,
        typer.Option("--min-improvement", help="The least over the prompt now in force."),
    ] = None,
    expected: Annotated[
        str | None,
        typer.Option("--expect", metavar="PROMPT_ID", help="Only if the alias points here now."),
    ] = None,
    comment: Comment = None,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Point an alias to a prompt; exit code 1 if it does not score what is asked for."""
    from sharpzo_cli.remote import service

    asked = {"min": minimum, "min_improvement": improvement}
    gate = {name: value for name, value in asked.items() if value is not None}
    more = {} if expected is None else {"expected_prompt_id": expected}
    with service(url) as client:
        prompt = client.prompts.get(ref)
        moved = client.aliases.set(
            alias if "@" in alias else f"{prompt.name}@{alias}",
            prompt.id,
            gate={"metric": metric, **gate} if gate else None,
            comment=comment,
            **more,
        )
    _tell_alias(moved, as_json=as_json)


@app.command()
def rollback(
    alias: AliasRef, comment: Comment = None, url: Url = DEFAULT_URL, as_json: Json = False
) -> None:
    """Point an alias to what was in force before."""
    from sharpzo_cli.remote import service

    with service(url) as client:
        moved = client.aliases.rollback(alias, comment=comment)
    _tell_alias(moved, as_json=as_json)


@app.command("aliases")
def list_aliases(
    name: Name = None,
    limit: Limit = DEFAULT_LIMIT,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """List aliases and where they point."""
    from sharpzo_cli.formatting import show_aliases
    from sharpzo_cli.remote import service

    with service(url) as client:
        found = list(islice(client.aliases.list(name=name), limit))
    if as_json:
        print_json({"aliases": [alias.model_dump(mode="json") for alias in found]})
    else:
        show_aliases(found)


@app.command()
def history(
    alias: AliasRef,
    limit: Limit = DEFAULT_LIMIT,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """List where an alias pointed, newest first."""
    from sharpzo_cli.formatting import show_history
    from sharpzo_cli.remote import service

    with service(url) as client:
        changes = list(islice(client.aliases.history(alias), limit))
    if as_json:
        print_json({"history": [change.model_dump(mode="json") for change in changes]})
    else:
        show_history(changes)


def _show(prompt: Prompt, *, as_json: bool) -> None:
    from sharpzo_cli.formatting import show_prompt

    if as_json:
        print_json(prompt.model_dump(mode="json"))
    else:
        show_prompt(prompt)


def _tell_file(written: Path, prompt: Prompt, *, as_json: bool) -> None:
    if as_json:
        print_json({"file": str(written), "prompt_id": prompt.id, "classes": list(prompt.classes)})
    else:
        say(str(written))


def _tell_alias(alias: Alias, *, as_json: bool) -> None:
    if as_json:
        print_json(alias.model_dump(mode="json"))
    else:
        say(f"{alias.ref} is {alias.prompt_id} (version {alias.version})")
