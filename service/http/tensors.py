"""Safetensors bodies: the header is checked before the rest is read, and bounds all of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError
from starlette.requests import Request
from starlette.responses import Response

from service.http.strict_json import loads
from sharpzo_core.errors import ValidationFailed
from sharpzo_engine.clip.remote.wire import (
    MAX_HEADER_BYTES,
    MEDIA_TYPE,
    PREFIX_BYTES,
    Declared,
    WireError,
    read_header,
)

Check = Callable[[Mapping[str, Declared]], None]


async def read_tensors(request: Request, check: Check) -> dict[str, NDArray[Any]]:
    """Read a request's tensors; `check` sees what they are before their bytes are read.

    Raises:
        MalformedJson: the header is not strict JSON.
        ValidationFailed: the header or the body's length is wrong, or raised by `check`.
    """
    body, declared = bytearray(), None
    async for chunk in request.stream():
        body += chunk
        if declared is None:
            declared = _declared_bytes(body, check)
        if declared is not None and len(body) > declared:
            raise ValidationFailed([("", f"is longer than the {declared} bytes of its header")])
    if declared is None or len(body) < declared:
        raise ValidationFailed([("", f"ends after {len(body)} bytes, before its last tensor")])
    try:
        return safetensors.numpy.load(bytes(body))
    except SafetensorError:
        raise ValidationFailed([("", "is not a safetensors file")]) from None


def tensors(arrays: Mapping[str, NDArray[Any]], headers: Mapping[str, str]) -> Response:
    """A response with these arrays."""
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return Response(safetensors.numpy.save(whole), media_type=MEDIA_TYPE, headers=dict(headers))


def _declared_bytes(body: bytearray, check: Check) -> int | None:
    """The length that the body must have; None until its header has arrived."""
    if len(body) < PREFIX_BYTES:
        return None
    length = int.from_bytes(body[:PREFIX_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        raise ValidationFailed([("", f"its header exceeds {MAX_HEADER_BYTES} bytes")])
    start = PREFIX_BYTES + length
    if len(body) < start:
        return None
    try:
        found = read_header(loads(bytes(body[PREFIX_BYTES:start])))
    except WireError as error:
        raise ValidationFailed([(f"/{error.tensor}" if error.tensor else "", str(error))]) from None
    check(found)
    return start + sum(tensor.bytes for tensor in found.values())
