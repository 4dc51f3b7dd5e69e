"""Hyperparameters from a file, from `--set key=value` and from options of their own."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sharpzo_cli.errors import UsageProblem
from sharpzo_engine.config import TuningConfig, merge

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

#: Words that mean the same in YAML, which need not be installed to submit a job.
_WORD = re.compile(
    r"(?!(?:true|false|null|yes|no|on|off|nan|infinity)$)[a-z]([a-z0-9 -]*[a-z0-9])?", re.IGNORECASE
)
_SET_FIX = "write it like --set zo.learning_rate=1e-3"


@dataclass(frozen=True)
class Hyperparameters:
    """What the command line sets, weakest first: a file, `--set`, options of their own."""

    file: Path | None = None
    values: tuple[str, ...] = ()  #: `key=value`
    options: Mapping[str, object] = field(default_factory=dict)  #: None: not set

    def merged(self) -> dict[str, Any]:
        """All values as one nested mapping.

        Raises:
            UsageProblem: the file or a `key=value` cannot be read.
        """
        config: dict[str, Any] = {} if self.file is None else read_config(self.file)
        for assignment in self.values:
            config = merge(config, parse_assignment(assignment))
        chosen = {name: value for name, value in self.options.items() if value is not None}
        return merge(config, chosen)

    def over(self, preset: str) -> TuningConfig:
        """The configuration of a run, with these values over the preset's.

        Raises:
            UsageProblem: the file or a `key=value` cannot be read.
            ConfigError: a value is unknown or out of range.
        """
        return TuningConfig.parse(self.merged(), preset)


def read_config(path: Path) -> dict[str, Any]:
    """Read a JSON or YAML file with a mapping.

    Raises:
        UsageProblem: it cannot be read, or is not a mapping.
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
        raise UsageProblem(f"{path} is not a mapping of names to values", "write `seed: 1`, …")
    return content


def parse_assignment(text: str) -> Mapping[str, Any]:
    """Parse `a.b=1` as `{"a": {"b": 1}}`.

    Raises:
        UsageProblem: there is no key, or the value cannot be read.
    """
    key, equals, value = text.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise UsageProblem(f"--set {text!r} is not KEY=VALUE", _SET_FIX)
    try:
        parsed = value if _WORD.fullmatch(value) else parse(value)
    except ValueError as error:
        raise UsageProblem(f"--set {text!r}: the value cannot be read", _SET_FIX) from error
    *sections, name = path
    nested: dict[str, Any] = {name: parsed}
    for section in reversed(sections):
        nested = {section: nested}
    return nested


def parse(text: str) -> object:
    """Parse JSON, or else YAML (safe types only).

    Raises:
        ValueError: it is neither.
    """
    try:
        return json.loads(text)
    except ValueError:
        return _parse_yaml(text)


def _parse_yaml(text: str) -> object:
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML in which 1e-3 is a number; for YAML 1.1 it is a string."""

    number = re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    try:
        return yaml.load(text, Loader=Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
