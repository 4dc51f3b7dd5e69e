"""`serve`, `worker` and `migrate`, with the settings of the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from sharpzo_core.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path


def run_service(
    host: str | None, port: int | None, data_dir: Path | None, *, with_worker: bool
) -> None:
    from service.server import main

    settings = load_settings(host=host, port=port, data_dir=data_dir)
    main(settings, settings.host, settings.port, with_worker)


def run_worker(data_dir: Path | None) -> None:
    from worker.main import main

    raise typer.Exit(main(load_settings(data_dir=data_dir)))


def run_migrations(data_dir: Path | None) -> None:
    from sharpzo_core.migrations import migrate

    settings = load_settings(data_dir=data_dir)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    migrate(settings)


def load_settings(**choices: str | int | Path | None) -> Settings:
    """Load the settings; the command line overrides the environment.

    Raises:
        SettingsError: a value is wrong.
    """
    return Settings.load(**{name: value for name, value in choices.items() if value is not None})
