"""Strict JSON: what `json.loads` lets through and a service should not.

The standard parser accepts duplicate keys, NaN, UTF-16 and half of a surrogate pair; the last two
then fail far from the request, in the database or while an error report is encoded. It also turns
two bytes into a hundred bytes of objects, and validation into a thousand bytes of error messages.
"""

import json
from itertools import islice
from typing import Any

from service.errors import MalformedJson
from sharpzo_core.errors import ValidationFailed
from sharpzo_core.json_safety import TOO_DEEP, json_faults, json_pointer

MAX_DEPTH = 64  # nested arrays and objects
MAX_VALUES = 20_000  # in one body; strings may hold as many commas and brackets
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
    faults: list[tuple[str, str]] = []
    for path, fault in islice(json_faults(value, _text_fault, MAX_DEPTH), _MAX_FAULTS):
        if fault == TOO_DEEP:
            raise MalformedJson("the JSON is nested too deeply")
        faults.append((json_pointer(path), fault))
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
    # Python refuses to convert thousands of digits; a number this long is out of range anyway.
    return int(digits[:_MAX_INTEGER_DIGITS])


def _text_fault(text: str) -> str | None:
    if "\0" in text:
        return "must not contain NUL"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "must not contain half of a surrogate pair"
    return None
