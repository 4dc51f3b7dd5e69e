"""Strict JSON: what `json.loads` lets through and a service should not.

The standard parser accepts duplicate keys, NaN, UTF-16 and half of a surrogate pair; the last two
then fail far from the request, in the database or while an error report is encoded. It also makes
a hundred bytes of objects, and whoever checks them a thousand of complaints, from two bytes.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from service.errors import MalformedJson
from sharpzo_core.errors import ValidationFailed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MAX_DEPTH = 64  # nested arrays and objects
MAX_VALUES = 20_000  # in one body; strings may hold as many commas and brackets
MAX_INTEGER = 2**63 - 1  # what a database column holds
_BEFORE_VALUES = (b",", b"[", b"{")  # every value but the outermost follows one of them
_MAX_INTEGER_DIGITS = 20
_MAX_FAULTS = 20


def loads(body: bytes) -> Any:  # noqa: ANN401 - any JSON value
    """Parse UTF-8 JSON.

    Raises:
        MalformedJson: not UTF-8, not JSON, a duplicate key, too many values, or nested too deeply.
        ValidationFailed: a number or string that no field can hold, with its JSON pointer.
    """
    value = _parse(body)
    faults = [fault for _, fault in zip(range(_MAX_FAULTS), _faults(value, "", 0), strict=False)]
    if faults:
        raise ValidationFailed(errors=faults)
    return value


def _parse(body: bytes) -> Any:  # noqa: ANN401 - any JSON value
    if not body.strip():
        raise MalformedJson("the body is empty (send a JSON object)")
    if sum(map(body.count, _BEFORE_VALUES)) > MAX_VALUES:
        raise MalformedJson(f"the JSON holds more than {MAX_VALUES} values")
    try:
        return json.loads(
            body.decode("utf-8"), object_pairs_hook=_unique_keys, parse_int=_bounded_int
        )
    except UnicodeDecodeError:
        raise MalformedJson("the body is not UTF-8") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise MalformedJson(f"the body is not valid JSON ({place})") from None
    except RecursionError:
        raise MalformedJson("the JSON is nested too deeply") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise MalformedJson("an object holds the same key twice")
    return members


def _bounded_int(digits: str) -> int:
    # Python refuses to convert thousands of digits; whatever is this long is out of range anyway.
    return int(digits[:_MAX_INTEGER_DIGITS])


def _faults(value: object, pointer: str, depth: int) -> Iterator[tuple[str, str]]:
    if depth > MAX_DEPTH:
        raise MalformedJson("the JSON is nested too deeply")
    if isinstance(value, dict):
        for key, member in value.items():
            if _text_fault(key):
                yield pointer, "a key holds characters that are not allowed"
            else:
                yield from _faults(member, f"{pointer}/{_escape(key)}", depth + 1)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _faults(item, f"{pointer}/{index}", depth + 1)
    elif fault := _scalar_fault(value):
        yield pointer, fault


def _scalar_fault(value: object) -> str | None:
    if isinstance(value, str):
        return _text_fault(value)
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number"
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        return "must be between -2^63 and 2^63 - 1"
    return None


def _text_fault(text: str) -> str | None:
    if "\0" in text:
        return "must not contain NUL"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "must not contain half of a surrogate pair"
    return None


def json_pointer(path: Iterable[object]) -> str:
    """A JSON pointer (RFC 6901)."""
    return "".join(f"/{_escape(str(key))}" for key in path)


def _escape(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")
