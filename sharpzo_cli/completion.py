"""What a shell offers when the user presses Tab; whatever goes wrong, it quietly offers nothing.

What comes from a service is offered only if no shell could take it for anything but a word: zsh
evaluates what it is handed.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from sharpzo_client import Client

Offer = tuple[str, str]  #: a word, and what it means or nothing

PATIENCE_VARIABLE = "SHARPZO_COMPLETION_SECONDS"
URL_VARIABLE = "SHARPZO_URL"
DEFAULT_URL = "http://127.0.0.1:8000"
ANY_BACKBONE = "MODEL:TAG"  # in a service's list, where it offers every pretrained model
MAX_WAIT = 1.0  # seconds for a service to answer, unless the variable says otherwise
MAX_OFFERED = 50  # newest objects
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:/-]*")
_NOT_PLAIN = re.compile(r"[^\w .,-]+")


def presets() -> list[str]:
    """Names of hyperparameter sets."""
    from sharpzo_engine.config import PRESETS

    return list(PRESETS)


def local_backbones() -> list[str]:
    """`tiny` and open_clip's models, from the names of its files."""
    found = find_spec("open_clip")
    places = (found.submodule_search_locations if found else None) or []
    files = (file for place in places for file in Path(place).glob("model_configs/*.json"))
    return ["tiny", "local-dir:", *sorted(file.stem for file in files)]


def offered_backbones(ctx: typer.Context) -> list[Offer]:
    """Backbones that the service offers."""
    return _ask(
        ctx,
        lambda client: (
            (item.name, "") for item in client.backbones.list() if item.name != ANY_BACKBONE
        ),
    )


def jobs(ctx: typer.Context) -> list[Offer]:
    """Ids of the newest jobs."""
    return _ask(
        ctx,
        lambda client: (
            (job.id, f"{job.status} {job.name or ''}")
            for job in client.jobs.list(page_size=MAX_OFFERED)
        ),
    )


def datasets(ctx: typer.Context) -> list[Offer]:
    """Ids of the newest datasets."""
    return _ask(
        ctx,
        lambda client: (
            (dataset.id, f"{dataset.status} {dataset.name or ''}")
            for dataset in client.datasets.list(page_size=MAX_OFFERED)
        ),
    )


def prompts(ctx: typer.Context) -> list[Offer]:
    """Names and ids of the newest prompts; a name stands for its newest version."""

    def offers(client: Client) -> Iterable[Offer]:
        found = list(islice(client.prompts.list(page_size=MAX_OFFERED), MAX_OFFERED))
        names = dict.fromkeys(prompt.name for prompt in found if prompt.name)
        yield from ((name, "newest version") for name in names)
        yield from ((prompt.id, f"{prompt.name} version {prompt.version}") for prompt in found)

    return _ask(ctx, offers)


def aliases(ctx: typer.Context) -> list[Offer]:
    """Aliases; those of several names with the name."""

    def offers(client: Client) -> Iterable[Offer]:
        found = list(islice(client.aliases.list(page_size=MAX_OFFERED), MAX_OFFERED))
        times = [item.alias for item in found]
        for item in found:
            alone = times.count(item.alias) == 1
            yield item.alias if alone else item.ref, f"{item.name} version {item.version}"

    return _ask(ctx, offers)


def _ask(ctx: typer.Context, question: Callable[[Client], Iterable[Offer]]) -> list[Offer]:
    """The service's answer, if there is one soon."""
    url = ctx.params.get("url") or os.environ.get(URL_VARIABLE) or DEFAULT_URL
    answers: list[Offer] = []
    try:
        from sharpzo_client import Client

        patience = float(os.environ.get(PATIENCE_VARIABLE) or MAX_WAIT)
        client = Client(url, timeout=patience, max_retries=0)
    except Exception:  # whoever presses Tab is typing: no fault of ours may come into their line
        return []

    def ask() -> None:
        with suppress(Exception), client:
            answers.extend(islice(question(client), MAX_OFFERED))

    # A timeout is for each byte; all of them together must not take longer either.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(patience)
    return [
        (word, " ".join(_NOT_PLAIN.sub(" ", meaning).split()))
        for word, meaning in list(answers)
        if _WORD.fullmatch(word)
    ]
