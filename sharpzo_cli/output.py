"""What commands print: tables for people, one JSON object for programs."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sharpzo_cli.errors import UsageProblem
from sharpzo_client.display import harmless

if TYPE_CHECKING:
    from pathlib import Path

Row = Sequence[str]

_NO_TERMINAL = 10_000  # columns


def print_table(
    title: str, header: Row, rows: Sequence[Row], *, err: bool = False, compact: bool = False
) -> None:
    """A table; the first column is text, the others are figures. A compact one has no lines."""
    table = Table(box=None, padding=(0, 1, 0, 0)) if compact else Table()
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*map(plain, row))
    console = Console(stderr=err)
    if title:
        console.print(plain(title))
    console.print(table)


def print_list(header: Row, rows: Sequence[Row]) -> None:
    """Lines of a list under a header, in what a terminal has of width; elsewhere nothing is cut.

    The last column is what may be cut off, with an ellipsis: names, which can be of any length and
    in scripts that run to the left.
    """
    console = Console(width=None if sys.stdout.isatty() else _NO_TERMINAL)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for index, name in enumerate(header):
        last = index == len(header) - 1
        table.add_column(name, no_wrap=True, overflow="ellipsis", ratio=1 if last else None)
    for row in rows:
        table.add_row(*map(plain, row))
    # Measured without the terminal's width, which would be the most that rich tells.
    endless = console.options.update(width=_NO_TERMINAL)
    table.expand = console.measure(table, options=endless).maximum > console.width
    _draw(console, table)


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Names with values; those without a value are left out, long ones go on below."""
    console = Console(width=None if sys.stdout.isatty() else _NO_TERMINAL)
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        if value:
            table.add_row(Text(name, "bold"), plain(value))
    _draw(console, table)


def _draw(console: Console, table: Table) -> None:
    """Print a table without the blanks that fill up its lines."""
    with console.capture() as drawn:
        console.print(table)
    typer.echo("\n".join(line.rstrip() for line in drawn.get().splitlines()))


def plain(text: str, style: str = "") -> Text:
    """Text that is shown as it is: no markup, and no characters that move the terminal's cursor."""
    return Text(harmless(text), style)


def say(line: str, *, err: bool = False) -> None:
    """A line that is shown as it is."""
    typer.echo(harmless(line), err=err)


def tell_deleted(what: str, *, as_json: bool) -> None:
    """That something is gone."""
    if as_json:
        print_json({"deleted": what})
    else:
        say(f"{what} is deleted")


def print_json(value: object) -> None:
    """One JSON object on one line of standard output; what is not a number is null."""
    text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)
    # What a terminal obeys, and bytes of a file's name that are not UTF-8, are escapes in JSON.
    typer.echo("".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text))


def percent(value: float | None) -> str:
    """A fraction for people."""
    return "–" if value is None else f"{value:.1%}"  # noqa: RUF001 - a dash


def writable(path: Path) -> Path:
    """The path, if a file can be put there; found out before the work, not after it.

    Raises:
        UsageProblem: it is a folder, or its own folder cannot be made.
    """
    if path.is_dir():
        raise UsageProblem(f"{path} is a folder", "give the name of a file")
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageProblem(f"{path}: {reason}", "choose another place") from error
    return path


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
