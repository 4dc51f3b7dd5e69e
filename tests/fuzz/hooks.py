"""What schemathesis cannot know: objects that exist, and files that are what they should be."""

from __future__ import annotations

import itertools
import json
import os
import random
import secrets
from contextlib import suppress
from typing import Any
from zlib import crc32

import schemathesis
from hypothesis import strategies as st

from tests.fuzz.mutations import mutate
from tests.fuzz.readers import archives, pictures, prompt, tensors

#: JSON: name of a path or body parameter -> values that exist.
OBJECTS = "SHARPZO_FUZZ_OBJECTS"
_CERTAIN = json.loads(os.environ.get(OBJECTS, "{}"))
#: The id and the prefix of the key that all requests are sent with: it must not be revoked.
OWN_KEY = "SHARPZO_FUZZ_OWN_KEY"
_OWN_KEY = os.environ.get(OWN_KEY, "").split()
_FILES = [*archives(), *pictures(), prompt().to_bytes()]

_RUN = secrets.token_hex(4)  # runs may share a server
_numbers = itertools.count()
PATIENCE_MS = 60_000

schemathesis.openapi.format("binary", st.sampled_from(_FILES) | st.binary(max_size=200))
_TENSORS = tensors()
schemathesis.openapi.media_type(
    "application/vnd.safetensors",
    st.sampled_from(_TENSORS)
    | st.integers(0, 2**32).map(lambda seed: mutate(random.Random(seed), _TENSORS)),
)


@schemathesis.hook
def before_call(_: schemathesis.HookContext, case: schemathesis.Case, __: Any) -> None:
    """Give valid requests something to work on, and keep them valid.

    Two in three are about an object that exists, but none of those that delete. An Idempotency-Key
    that was used for another request would be refused; 45.0 is an integer to a schema and none to
    the service. Of no request is the deadline so short that it passes.
    """
    with suppress(KeyError, TypeError, ValueError):
        if 0 < float(case.headers["x-timeout-ms"]) < PATIENCE_MS:
            case.headers["x-timeout-ms"] = str(PATIENCE_MS)
    if (case.path_parameters or {}).get("key_id") in _OWN_KEY:
        case.path_parameters["key_id"] = _CERTAIN["key_id"][0]
    if case.meta is None or case.meta.generation.mode is not schemathesis.GenerationMode.POSITIVE:
        return
    if case.method.upper() != "DELETE":
        _name_existing(case.path_parameters)
        _name_existing(case.body)
    if "Idempotency-Key" in case.headers:
        key = case.headers["Idempotency-Key"]
        case.headers["Idempotency-Key"] = f"{key[:200]} {_RUN} {next(_numbers)}"


def _name_existing(values: Any) -> None:
    if not isinstance(values, dict):
        return
    for name, value in values.items():
        known, number = _CERTAIN.get(name), crc32(repr(value).encode())
        if known and isinstance(value, str) and number % 3:
            values[name] = known[number % len(known)]
        elif isinstance(value, float) and value.is_integer():
            values[name] = int(value)
