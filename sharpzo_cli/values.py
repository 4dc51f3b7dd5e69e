"""Hyperparameters from files and from `--set key=value`."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from sharpzo_cli.errors import UsageProblem
from sharpzo_engine.config import TuningConfig, merge

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

#: Texts that are the same in YAML, which need not be installed to submit a job.
_WORD = re.compile(
    r"(?!(?:true|false|null|yes|no|on|off|nan|infinity)$)[a-z]([a-z0-9 -]*[a-z0-9])?", re.IGNORECASE
)
_SET_FIX = "write it like --set zo.learning_rate=1e-3"


def tuning_config(preset: str, file: Path | None, values: Iterable[str]) -> TuningConfig:
    """The preset, the file's values over it, and single values over both.

    Raises:
        UsageProblem: the file or a `key=value` cannot be read.
        ConfigError: a value is unknown or out of range.
    """
    return TuningConfig.parse(overlay(file, values), preset)


def overlay(file: Path | None, values: Iterable[str]) -> dict[str, Any]:
    """The file's values, and single values over them.

    Raises:
        UsageProblem: the file or a `key=value` cannot be read.
    """
    given: dict[str, Any] = {} if file is None else read_config(file)
    for assignment in values:
        given = merge(given, parse_assignment(assignment))
    return given


def read_config(path: Path) -> dict[str, Any]:
    """A JSON or YAML file that holds a mapping.

    Raises:
        UsageProblem: it cannot be read, or is something else.
    """
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageProblem(f"{path}: {reason}", "give a readable JSON or YAML file") from error
    except ValueError as error:
        raise UsageProblem(f"{path}: {error}", "give valid JSON or YAML") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UsageProblem(f"{path} does not hold fields with values", "write `seed: 1`, …")
    return content


def parse_assignment(text: str) -> Mapping[str, Any]:
    """`a.b=1` as `{"a": {"b": 1}}`.

    Raises:
        UsageProblem: no key, or a value that cannot be read.
    """
    key, equals, value = text.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise UsageProblem(f"--set {text!r} is not KEY=VALUE", _SET_FIX)
    try:
        parsed = value if _WORD.fullmatch(value) else parse(value)
    except ValueError as error:
        raise UsageProblem(f"--set {text!r}: the value cannot be read", _SET_FIX) from error
    *sections, field = path
    nested: dict[str, Any] = {field: parsed}
    for section in reversed(sections):
        nested = {section: nested}
    return nested


def parse(text: str) -> object:
    """JSON, or else YAML (safe types only).

    Raises:
        ValueError: neither.
    """
    try:
        return json.loads(text)
    except ValueError:
        return _parse_yaml(text)


def _parse_yaml(text: str) -> object:
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML without surprises in numbers: 1e-3 is one (YAML 1.1 takes it for a string)."""

    number = re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    try:
        return yaml.load(text, Loader=Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
