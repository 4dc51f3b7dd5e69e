"""JSON values of somebody else's making, such as a configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from sharpzo_core.schemas import is_safe_text

MAX_NESTING = 8  # levels of a value; TuningConfig has two
MAX_INTEGER = 2**63 - 1


def unsafe_paths(value: object, path: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Where a value holds text or numbers that JSON, logs or a database cannot."""
    if len(path) > MAX_NESTING:
        return [path]
    if isinstance(value, str):
        return [] if is_safe_text(value) else [path]
    if isinstance(value, int):
        return [] if abs(value) <= MAX_INTEGER else [path]
    if isinstance(value, float):
        return [] if math.isfinite(value) else [path]
    if isinstance(value, Mapping):
        unsafe_keys = [path for key in value if not is_safe_text(str(key))]
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, Sequence):
        unsafe_keys, items = [], [(str(index), item) for index, item in enumerate(value)]
    else:
        return []
    below = [found for key, item in items for found in unsafe_paths(item, (*path, key))]
    return unsafe_keys or below
