"""docs/cli.md and the commands tell of each other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sharpzo_cli.app import app

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")


def commands(group: Any, path: tuple[str, ...] = ("sharpzo",)) -> Iterator[tuple[str, Any]]:
    """Every command of the command line, with what it is called."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


def options_of(command: Any) -> set[str]:
    return {name for parameter in command.params for name in parameter.opts} | {"--help"}


def test_every_command_has_an_example() -> None:
    known = [name for name, _ in commands(typer.main.get_command(app))]
    assert len(known) > 40
    assert [name for name in known if not re.search(rf"{name}(?![\w-])", PAGE)] == []


def test_every_example_uses_options_that_there_are() -> None:
    group = typer.main.get_command(app)
    known = {name: options_of(command) for name, command in commands(group)}
    examples = re.findall(r"sharpzo (?:[a-z-]+ ?){1,2}[^\n`#|]*", PAGE)
    used = 0
    for example in examples:
        names = [name for name in known if f"{example} ".startswith(f"{name} ")]
        for name in names:
            options = set(OPTION.findall(example))
            used += len(options)
            assert options <= known[name], example
    assert used > 40


def test_every_command_prints_json_or_runs_a_process() -> None:
    without = [
        name
        for name, command in commands(typer.main.get_command(app))
        if "--json" not in options_of(command)
    ]
    assert without == ["sharpzo demo", "sharpzo serve", "sharpzo worker", "sharpzo migrate"]
