"""What a shell offers when the user presses Tab; after any error, silently nothing.

Words from a service are offered only if no shell can read them as anything but a word: zsh
evaluates what it receives.
"""

from __future__ import annotations

import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from sharpzo_client import Client

Offer = tuple[str, str]  #: a word, and its meaning or ""

TIMEOUT_VARIABLE = "SHARPZO_COMPLETION_SECONDS"
URL_VARIABLE = "SHARPZO_URL"
DEFAULT_URL = "http://127.0.0.1:8000"
ANY_BACKBONE = "MODEL:TAG"  # in a service's list if it offers every pretrained model
DEFAULT_TIMEOUT = 1.0  # seconds for a service to answer
MAX_OFFERED = 50  # newest objects
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:/-]*")
_NOT_PLAIN = re.compile(r"[^\w .,-]+")


def presets() -> list[str]:
    from sharpzo_engine.config import PRESETS

    return list(PRESETS)


def local_backbones() -> list[str]:
    """List `tiny` and open_clip's models by its file names; importing it would take seconds."""
    found = find_spec("open_clip")
    places = (found.submodule_search_locations if found else None) or []
    files = (file for place in places for file in Path(place).glob("model_configs/*.json"))
    return ["tiny", "local-dir:", "onnx-dir:", *sorted(file.stem for file in files)]


def offered_backbones(ctx: typer.Context) -> list[Offer]:
    return _ask(
        ctx,
        lambda client: (
            (item.name, "") for item in client.backbones.list() if item.name != ANY_BACKBONE
        ),
    )


def jobs(ctx: typer.Context) -> list[Offer]:
    return _ask(
        ctx,
        lambda client: (
            (job.id, f"{job.status} {job.name or ''}")
            for job in client.jobs.list(page_size=MAX_OFFERED)
        ),
    )


def datasets(ctx: typer.Context) -> list[Offer]:
    return _ask(
        ctx,
        lambda client: (
            (dataset.id, f"{dataset.status} {dataset.name or ''}")
            for dataset in client.datasets.list(page_size=MAX_OFFERED)
        ),
    )


def prompts(ctx: typer.Context) -> list[Offer]:
    """List names and ids of the newest prompts; a name means its newest version."""

    def offers(client: Client) -> Iterable[Offer]:
        found = list(islice(client.prompts.list(page_size=MAX_OFFERED), MAX_OFFERED))
        names = dict.fromkeys(prompt.name for prompt in found if prompt.name)
        yield from ((name, "newest version") for name in names)
        yield from ((prompt.id, f"{prompt.name} version {prompt.version}") for prompt in found)

    return _ask(ctx, offers)


def aliases(ctx: typer.Context) -> list[Offer]:
    """List aliases; with the name if several names have the same alias."""

    def offers(client: Client) -> Iterable[Offer]:
        found = list(islice(client.aliases.list(page_size=MAX_OFFERED), MAX_OFFERED))
        count = Counter(item.alias for item in found)
        for item in found:
            unique = count[item.alias] == 1
            yield item.alias if unique else item.ref, f"{item.name} version {item.version}"

    return _ask(ctx, offers)


def _ask(ctx: typer.Context, question: Callable[[Client], Iterable[Offer]]) -> list[Offer]:
    """Ask the service, if it answers in time."""
    url = ctx.params.get("url") or os.environ.get(URL_VARIABLE) or DEFAULT_URL
    answers: list[Offer] = []
    try:
        from sharpzo_client import Client

        timeout = float(os.environ.get(TIMEOUT_VARIABLE) or DEFAULT_TIMEOUT)
        client = Client(url, timeout=timeout, max_retries=0)
    except Exception:  # the user is typing: an error would be printed into the command line
        return []

    def ask() -> None:
        with suppress(Exception), client:
            answers.extend(islice(question(client), MAX_OFFERED))

    # The client's timeout starts again with every byte; the thread bounds the whole answer.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(timeout)
    return [
        (word, " ".join(_NOT_PLAIN.sub(" ", meaning).split()))
        for word, meaning in list(answers)
        if _WORD.fullmatch(word)
    ]
