"""Which JSON values are safe: those that every store, log and answer can hold."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

Path = tuple[str, ...]  # keys and indexes from the outermost value down

MAX_LABEL = 200  # characters of a free text name
MAX_NESTING = 8  # levels of a stored value; TuningConfig has two
MAX_INTEGER = 2**63 - 1  # what a database column holds
TOO_DEEP = "is nested too deeply"


def is_safe_text(text: str) -> bool:
    """Whether the text has neither control characters nor lone surrogates."""
    return (text.isprintable() and text.isascii()) or not any(
        ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 or 0xD800 <= ord(char) < 0xE000
        for char in text
    )


def unsafe_paths(value: object, path: Path = ()) -> list[Path]:
    """Where a value to be stored holds text or numbers that JSON, logs or a database cannot."""
    return [found for found, _ in json_faults(value, _unsafe_text, MAX_NESTING, path)]


def json_faults(
    value: object, text_fault: Callable[[str], str | None], max_depth: int, path: Path = ()
) -> Iterator[tuple[Path, str]]:
    """Each value that is not safe, with the reason; `text_fault` judges strings and keys."""
    items: Iterable[tuple[object, object]] = ()
    if len(path) > max_depth:
        yield path, TOO_DEEP
    elif isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, Sequence) and not isinstance(value, str):
        items = enumerate(value)
    elif fault := text_fault(value) if isinstance(value, str) else _number_fault(value):
        yield path, fault
    for key, item in items:
        if text_fault(str(key)):
            yield path, "a key holds characters that are not allowed"
        else:
            yield from json_faults(item, text_fault, max_depth, (*path, str(key)))


def json_pointer(path: Iterable[object]) -> str:
    """A JSON pointer (RFC 6901)."""
    return "".join("/" + str(key).replace("~", "~0").replace("/", "~1") for key in path)


def _unsafe_text(text: str) -> str | None:
    return None if is_safe_text(text) else "holds control characters or lone surrogates"


def _number_fault(value: object) -> str | None:
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number"
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        return "must be between -2^63 and 2^63 - 1"
    return None
