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

    # Typed by typer's own copy of click, or before typer 0.26 by the package click.
    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401
        panels: dict[str, dict[str, Any]] = {panel: {} for panel in Panel}
        for name in self.list_commands(ctx):
            command = self.commands[name]
            panels[getattr(command, "rich_help_panel", "")][name] = command
        for panel, commands in panels.items():
            if commands:
                limit = formatter.width - 6 - max(map(len, commands))
                rows = [(name, item.get_short_help_str(limit)) for name, item in commands.items()]
                with formatter.section(panel):
                    formatter.write_dl(rows)
