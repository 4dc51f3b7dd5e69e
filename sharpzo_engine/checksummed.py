"""Safetensors files with JSON metadata and a hash over everything, which is checked on reading.

safetensors itself detects truncation but not a flipped bit, and it accepts infinities and NaN; both
are rejected here. Nothing uses pickle.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

_ENTRY = "sharpzo"
Arrays = Mapping[str, NDArray[Any]]


class ChecksumError(Exception):
    """The bytes do not match their checksum, or are not of the expected kind."""


def seal(arrays: Arrays, metadata: Mapping[str, Any], kind: str) -> bytes:
    """Serialise arrays and JSON metadata; `kind` names the format and its version."""
    text = json.dumps(metadata, sort_keys=True, allow_nan=False)
    header = {"kind": kind, "metadata": text, "sha256": _digest(arrays, text, kind)}
    # safetensors writes metadata in any order; a single entry makes equal content equal bytes.
    entry = {_ENTRY: json.dumps(header, sort_keys=True)}
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return safetensors.numpy.save(contiguous, entry)


def unseal(data: bytes, *kinds: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read bytes that `seal` wrote, of one of these kinds.

    Raises:
        ChecksumError: damaged, of another kind, or with numbers that are not finite.
    """
    header = _read_header(data)
    kind = header.get("kind", "")
    if kind not in kinds:
        raise ChecksumError(f"it is not a {kinds[0]} file")
    try:
        arrays = safetensors.numpy.load(data)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ChecksumError("it is damaged") from error
    text = header.get("metadata")
    if not isinstance(text, str):
        raise ChecksumError("it is damaged or was not written by SharpZO")
    if header.get("sha256") != _digest(arrays, text, kind):
        raise ChecksumError("it is damaged: its content does not match its hash")
    if any(a.dtype.kind == "f" and not np.isfinite(a).all() for a in arrays.values()):
        raise ChecksumError("it contains numbers that are not finite")
    return arrays, _read_metadata(text)


def _read_metadata(text: str) -> dict[str, Any]:
    """Parse the metadata; bytes from untrusted sources may hold any JSON."""
    try:
        metadata = json.loads(text)
        usable = _is_finite(metadata)
    except (ValueError, RecursionError) as error:
        raise ChecksumError("its metadata is not valid JSON, or nested too deeply") from error
    if not isinstance(metadata, dict) or not usable:
        raise ChecksumError(
            "its metadata is not an object, or contains numbers that are not finite"
        )
    return metadata


def _is_finite(value: object) -> bool:
    """Whether all numbers in a JSON value are finite."""
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _read_header(data: bytes) -> dict[str, Any]:
    """Read the metadata in safetensors' JSON header, which its numpy reader does not return."""
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > len(data) - 8:
        raise ChecksumError("it is damaged or not a safetensors file")
    try:
        header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][_ENTRY])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ChecksumError("it is damaged or was not written by SharpZO") from error
    return header if isinstance(header, dict) else {}


def _digest(arrays: Arrays, text: str, kind: str) -> str:
    digest = hashlib.sha256(_bytes(f"{kind}\0{text}\0"))
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(_bytes(f"{name}\0{array.dtype.str}\0{array.shape}\0"))
        digest.update(array.tobytes())
    return digest.hexdigest()


def _bytes(text: str) -> bytes:
    """UTF-8; lone surrogates, which untrusted JSON may contain, are kept."""
    return text.encode("utf-8", "surrogatepass")
