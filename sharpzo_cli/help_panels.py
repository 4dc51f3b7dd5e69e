"""`--help` with the commands in groups."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from typer.core import TyperGroup


class Panel(StrEnum):
    LOCAL = "On this machine"
    REMOTE = "Through a service"
    OPERATOR = "Run a service"


class PanelGroup(TyperGroup):
    """Lists commands by their `rich_help_panel`, without loading rich."""

    # The arguments are of typer's own click, or of the package click before typer 0.26.
    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401
        commands = [self.commands[name] for name in self.list_commands(ctx)]
        for panel in Panel:
            shown = {c.name: c for c in commands if getattr(c, "rich_help_panel", None) == panel}
            if not shown:
                continue
            limit = formatter.width - 6 - max(map(len, shown))
            with formatter.section(panel):
                formatter.write_dl(
                    [(name, command.get_short_help_str(limit)) for name, command in shown.items()]
                )
