"""The protocol `sharpzo-encoder/1`: what both sides of it agree on. Loads no torch.

Embeddings and context vectors travel as safetensors, whose header declares every shape; the side
that receives one checks the header before it reads the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from sharpzo_engine.clip.level import Level
from sharpzo_engine.clip.onnx.preprocessing import Preprocessing

MEDIA_TYPE = "application/vnd.safetensors"
#: Header of every answer: the `identity` of the encoder that gave it.
IDENTITY_HEADER = "X-Encoder-Identity"

PREFIX_BYTES = 8  # the header's length, little-endian
MAX_HEADER_BYTES = 4096
ITEM_BYTES: Mapping[str, int] = {"F32": 4, "F16": 2, "I32": 4}
PADDING = -1  # in rows of token ids, after the last one

Positive = Annotated[int, Field(ge=1, le=2**31)]


class Limits(BaseModel):
    """What one call may ask for."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    images: Positive = 64
    texts: Positive = 256
    """also class names that are tokenised"""
    rows: Positive = 2**15
    """context vectors x classes x token ids of the longest class"""
    floats: Positive = 2**24
    """of an answer: 64 MiB in float32"""


class Description(BaseModel):
    """What an encoder is, and everything that a client needs to use it."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True, protected_namespaces=())

    kind: Literal["sharpzo-encoder/1"] = "sharpzo-encoder/1"
    name: Annotated[str, Field(max_length=200)]
    pretrained: Annotated[str, Field(max_length=200)] | None
    fingerprint: Annotated[str, Field(max_length=200)]
    """of the original weights and preprocessing"""
    identity: Annotated[str, Field(max_length=200)]
    """changes with everything that changes an answer; every answer has it as X-Encoder-Identity"""
    level: Level
    runtime: Annotated[str, Field(max_length=40)]
    precision: Annotated[str, Field(max_length=40)]
    """of the image tower"""
    logit_scale: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    embed_dim: Positive
    text_width: Annotated[int, Field(ge=0, le=2**20)]
    """of context vectors; 0: it takes none"""
    positions: Annotated[int, Field(ge=0, le=2**20)]
    """tokens of a text, first and last included; 0: unknown"""
    preprocessing: Preprocessing
    """images of `size` x `size` are only normalised, so a client may resize and crop by itself"""
    limits: Limits = Limits()


@dataclass(frozen=True)
class Declared:
    """A tensor as its header declares it."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its size in the body."""
        return ITEM_BYTES[self.dtype] * math.prod(self.shape)


def pad(suffixes: Sequence[Sequence[int]]) -> NDArray[np.int32]:
    """Token ids of each class as rows of equal length [C, S]."""
    rows = np.full((len(suffixes), max(map(len, suffixes))), PADDING, np.int32)
    for row, suffix in zip(rows, suffixes, strict=True):
        row[: len(suffix)] = suffix
    return rows


class WireError(ValueError):
    """A body breaks the protocol; `tensor` is the one at fault, or empty."""

    def __init__(self, message: str, tensor: str = "") -> None:
        super().__init__(message)
        self.tensor = tensor


def read_header(header: object) -> dict[str, Declared]:
    """The tensors of a safetensors header, parsed from JSON; they fill the body without gaps.

    Raises:
        WireError: it is no such header, or has other types than float32, float16 and int32.
    """
    if not isinstance(header, dict):
        raise WireError("the header is not an object")
    found, end = {}, 0
    tensors = {name: value for name, value in header.items() if name != "__metadata__"}
    for name, value in sorted(tensors.items(), key=lambda item: _start(*item)):
        declared = _declared(name, value)
        if value["data_offsets"] != [end, end + declared.bytes]:
            raise WireError("data_offsets do not fit its shape and dtype", name)
        end += declared.bytes
        found[name] = declared
    return found


def _start(name: str, value: object) -> int:
    offsets = value.get("data_offsets") if isinstance(value, dict) else None
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise WireError("needs data_offsets of two numbers", name)
    return int(offsets[0])


def _declared(name: str, value: Mapping[str, object]) -> Declared:
    dtype, shape = value.get("dtype"), value.get("shape")
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise WireError(f"dtype must be one of {', '.join(ITEM_BYTES)}", name)
    if not isinstance(shape, list) or not all(map(_is_count, shape)):
        raise WireError("shape must be a list of whole numbers", name)
    return Declared(dtype, tuple(shape))


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**31
