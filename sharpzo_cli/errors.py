"""The errors of commands, and how they are reported: `error: <what> (<how to fix>)`.

CliError
 ├── UsageProblem   the command line or an input is wrong; exit 2
 └── RunFailed      the run itself failed; exit 1
"""

from __future__ import annotations

from typing import Any

import typer

from sharpzo_core.errors import CoreError, SettingsError
from sharpzo_engine.errors import CheckpointError, EngineError, TuningInterrupted

#: typer's (or, before 0.26, click's) base class of command line errors.
CommandLineError: Any = next(
    base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException"
)

#: Top-level module -> the extra that installs it.
EXTRAS = {
    **dict.fromkeys(("httpx", "tenacity"), "client"),
    **dict.fromkeys(("cma", "jinja2", "matplotlib", "numpy", "open_clip"), "engine"),
    **dict.fromkeys(("PIL", "safetensors", "threadpoolctl", "torch", "yaml"), "engine"),
    **dict.fromkeys(("ftfy", "onnxruntime", "tokenizers"), "edge"),
    **dict.fromkeys(("fastapi", "prometheus_client", "uvicorn"), "service"),
    **dict.fromkeys(
        ("alembic", "celery", "fsspec", "limits", "pydantic_settings", "sqlalchemy"), "service"
    ),
    **dict.fromkeys(("onnx", "onnxscript"), "export"),
    "sklearn": "demo",
}

#: Code of an engine error -> fix, if the message does not name one.
FIXES = {
    "config_invalid": "see the fields of TuningConfig, or start from a --preset",
    "backbone_unavailable": "use --backbone tiny, or an open_clip model with --pretrained TAG",
    "dataset_layout_invalid": "give a folder that holds train/<class>/* or <class>/*",
    "too_few_images": "add images, or lower --shots",
    "image_undecodable": "give JPEG, PNG or WEBP images",
    "image_format_not_allowed": "give JPEG, PNG or WEBP images",
    "image_too_large": "make the image smaller",
    "artifact_corrupt": "give a file written by `sharpzo tune --out`",
    "backbone_mismatch": "name the backbone it was tuned on with --backbone and --pretrained",
    "not_calibrated": "leave out --calibrated, or tune the prompt again",
    "checkpoint_corrupt": "leave out --resume, or give another --checkpoint-dir",
}


class CliError(Exception):
    """A command cannot continue."""

    exit_code = 1

    def __init__(self, what: str, fix: str) -> None:
        self.what = what
        self.fix = fix
        super().__init__(f"{what} ({fix})")


class UsageProblem(CliError):  # noqa: N818 - not an error of the program
    """The command line or an input is wrong."""

    exit_code = 2


class RunFailed(CliError):  # noqa: N818 - named for the fact
    """The run failed."""


def explain(error: Exception) -> tuple[str, int]:
    """Return the line that reports an error, and the exit code."""
    if isinstance(error, CliError):
        return str(error), error.exit_code
    if isinstance(error, CommandLineError):
        message = error.format_message() or "the command line is incomplete"
        return _with_fix(message.replace("Value error, ", ""), "see --help"), 2
    if isinstance(error, ModuleNotFoundError) and _root(error) in EXTRAS:
        extra = EXTRAS[_root(error)]
        return f"{_root(error)} is not installed (pip install 'sharpzo[{extra}]')", 1
    if isinstance(error, EngineError):
        return _with_fix(str(error), FIXES.get(error.code, "see --debug")), _engine_exit(error)
    if isinstance(error, SettingsError):
        return _with_fix(str(error), "correct the environment variable"), 2
    if isinstance(error, CoreError):
        return _with_fix(str(error), "see --debug"), 1
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror} (check the path and its permissions)", 1
    return f"{type(error).__name__}: {error} (unexpected; --debug shows where)", 1


def one_line(text: str) -> str:
    return " ".join(text.split())


def _engine_exit(error: EngineError) -> int:
    return (
        1 if isinstance(error, TuningInterrupted | CheckpointError) or not _is_input(error) else 2
    )


def _is_input(error: EngineError) -> bool:
    return error.code in FIXES


def _with_fix(what: str, fix: str) -> str:
    return what if what.endswith(")") else f"{what.rstrip('.')} ({fix})"


def _root(error: ModuleNotFoundError) -> str:
    return (error.name or "").partition(".")[0]
