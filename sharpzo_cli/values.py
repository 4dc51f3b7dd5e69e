"""Hyperparameters from files and from `--set key=value`."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import yaml

from sharpzo_cli.errors import UsageProblem
from sharpzo_engine.config import TuningConfig, merge

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

_SET_FIX = "write it like --set zo.learning_rate=1e-3"


class _Loader(yaml.SafeLoader):
    """YAML without surprises in numbers: 1e-3 is one (YAML 1.1 takes it for a string)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?$"),
    list("-+.0123456789"),
)


def tuning_config(preset: str, file: Path | None, values: Iterable[str]) -> TuningConfig:
    """The preset, the file's values over it, and single values over both.

    Raises:
        UsageProblem: the file or a `key=value` cannot be read.
        ConfigError: a value is unknown or out of range.
    """
    given: dict[str, Any] = {} if file is None else read_config(file)
    for assignment in values:
        given = merge(given, parse_assignment(assignment))
    return TuningConfig.parse(given, preset)


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
    except (ValueError, yaml.YAMLError) as error:
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
        parsed = parse(value)
    except (ValueError, yaml.YAMLError) as error:
        raise UsageProblem(f"--set {text!r}: the value cannot be read", _SET_FIX) from error
    *sections, field = path
    nested: dict[str, Any] = {field: parsed}
    for section in reversed(sections):
        nested = {section: nested}
    return nested


def parse(text: str) -> object:
    """JSON, or else YAML (safe types only).

    Raises:
        ValueError, yaml.YAMLError: neither.
    """
    try:
        return json.loads(text)
    except ValueError:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
