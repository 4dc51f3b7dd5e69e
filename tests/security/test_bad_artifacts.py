"""Prompt files that were damaged, or made with care by somebody who knows the form."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from sharpzo_engine import checksummed as sealed
from sharpzo_engine.checksummed import ChecksumError, unseal
from sharpzo_engine.errors import ArtifactError
from sharpzo_engine.prompts.artifact import TunedPrompt
from tests.fuzz.imports import import_mutants
from tests.fuzz.readers import prompt

KIND = "kind/1"


def flips(data: bytes, bits: int = 1) -> Iterator[bytes]:
    """Copies with one bit flipped: `bits` of every byte, in turn."""
    for place in range(len(data)):
        for bit in range(bits):
            flipped = bytearray(data)
            flipped[place] ^= 1 << (place + bit) % 8
            yield bytes(flipped)


def undetected(data: bytes, bits: int) -> int:
    """How many of the flips are read as if nothing had happened."""
    return sum(_is_read(flipped) for flipped in flips(data, bits))


def _is_read(data: bytes) -> bool:
    try:
        TunedPrompt.load(data)
    except ArtifactError:
        return False
    return True


def test_a_flip_of_any_byte_is_detected() -> None:
    data = prompt().to_bytes()
    assert _is_read(data)
    assert undetected(data, bits=1) == 0


def craft(metadata: object) -> bytes:
    """A sealed file whose hash is right."""
    arrays = {"a": np.zeros(2, np.float32)}
    digest = sealed._digest(arrays, metadata, KIND)  # type: ignore[arg-type]
    header = {"kind": KIND, "metadata": metadata, "sha256": digest}
    return safetensors.numpy.save(arrays, {"sharpzo": json.dumps(header)})


@pytest.mark.parametrize(
    "metadata",
    [
        "\ud800",
        5,
        None,
        [1],
        "[1]",
        "{",
        '{"a": NaN}',
        '{"a": 1e999}',
        '{"a": [{"b": -Infinity}]}',
        '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}",
    ],
    ids=lambda value: repr(value)[:20],
)
def test_odd_metadata_under_a_right_hash(metadata: object) -> None:
    with pytest.raises(ChecksumError):
        unseal(craft(metadata), KIND)


def test_texts_are_read_as_they_are() -> None:
    """Such as the names of files that are no UTF-8; who shows them must look at them."""
    text = '{"\\ud83d\\ude00": "\u05d0", "a": "\\udcff"}'
    assert unseal(craft(text), KIND)[1] == {"\U0001f600": "\u05d0", "a": "\udcff"}


@pytest.mark.parametrize(
    "changes",
    [
        {"logit_scale": float("inf")},
        {"logit_scale": float("nan")},
        {"logit_scale": 1e38},
        {"context": np.full((2, 4), np.inf, np.float32)},
        {"class_embeddings": np.full((2, 8), 1e35, np.float32)},
        {"class_names": ("cat",)},
    ],
    ids=str,
)
def test_numbers_that_would_spoil_answers(changes: dict[str, Any]) -> None:
    whole = prompt()
    fields = {name: getattr(whole, name) for name in whole.__dataclass_fields__}
    with pytest.raises(ArtifactError):
        TunedPrompt(**{**fields, **changes})


@pytest.mark.slow
def test_imported_files_never_break_the_service(tmp_path: Path, small_backbone: Path) -> None:
    tally = import_mutants(tmp_path, small_backbone, seed=0, count=150)
    assert tally.faults == []
    assert 20 < tally.refused < 130  # both ways are taken
