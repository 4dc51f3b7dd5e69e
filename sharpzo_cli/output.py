"""What commands print: tables for people, one JSON object for programs.

rich is imported when something is drawn, which keeps `sharpzo --help` fast.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import typer

from sharpzo_cli.errors import UsageProblem
from sharpzo_client.display import escaped

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from sharpzo_client.models import Dataset, Job, Model, Prompt

M = TypeVar("M", bound="Model")
Row = Sequence[str]

_NO_TERMINAL = 10_000  # columns


def print_model(model: M, show: Callable[[M], None], *, as_json: bool) -> None:
    if as_json:
        print_json(model.model_dump(mode="json"))
    else:
        show(model)


def print_items(
    key: str, items: Sequence[M], show: Callable[[Sequence[M]], None], *, as_json: bool
) -> None:
    if as_json:
        print_json({key: [item.model_dump(mode="json") for item in items]})
    else:
        show(items)


def print_table(
    title: str, header: Row, rows: Sequence[Row], *, err: bool = False, compact: bool = False
) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 1, 0, 0)) if compact else Table()
    for index, name in enumerate(header):
        # Fold, not cut off: a path's last part is the one that matters.
        table.add_column(name, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(plain, row))
    terminal = (sys.stderr if err else sys.stdout).isatty()
    console = Console(stderr=err, width=None if terminal else _NO_TERMINAL)
    if title:
        console.print(plain(title))
    console.print(table)


def print_list(header: Row, rows: Sequence[Row]) -> None:
    """Print a list under a header in the terminal's width; elsewhere nothing is cut off.

    Only the last column may be cut off, with an ellipsis: names, which can have any length and be
    in right-to-left scripts.
    """
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else _NO_TERMINAL)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for index, name in enumerate(header):
        last = index == len(header) - 1
        table.add_column(name, no_wrap=True, overflow="ellipsis", ratio=1 if last else None)
    for row in rows:
        table.add_row(*map(plain, row))
    # Measured without the terminal's width, which rich would use as an upper bound.
    endless = console.options.update(width=_NO_TERMINAL)
    table.expand = console.measure(table, options=endless).maximum > console.width
    _draw(console, table)


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Print names with values; empty values are left out, long ones are wrapped."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else _NO_TERMINAL)
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        if value:
            table.add_row(Text(name, "bold"), plain(value))
    _draw(console, table)


def _draw(console: Console, table: Table) -> None:
    with console.capture() as drawn:
        console.print(table)
    typer.echo("\n".join(line.rstrip() for line in drawn.get().splitlines()))


def plain(text: str, style: str = "") -> Text:
    """Text without markup, and without characters that would move the terminal's cursor."""
    from rich.text import Text

    return Text(escaped(text), style)


def say(line: str, *, err: bool = False) -> None:
    typer.echo(escaped(line), err=err)


def say_id(item: Dataset | Job | Prompt) -> None:
    """Print the id of a new object alone, so that a script can use it."""
    say(item.id)


def print_deleted(object_id: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"deleted": object_id})
    else:
        say(f"{object_id} is deleted")


def print_json(value: object) -> None:
    """Print one JSON object on one line; NaN and infinities become null."""
    text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)
    # Control characters, and bytes of file names that are not UTF-8, become JSON escapes.
    typer.echo("".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text))


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"  # noqa: RUF001 - a dash


def writable(path: Path) -> Path:
    """Check that a file can be written to the path, before the work rather than after it.

    Raises:
        UsageProblem: it is a folder, or its parent folder cannot be created.
    """
    if path.is_dir():
        raise UsageProblem(f"{path} is a folder", "name a file")
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageProblem(f"{path}: {reason}", "choose another path") from error
    return path


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
