"""One independent, seeded generator per purpose; global generators are never seeded."""

from __future__ import annotations

import json
from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """The use of a generator; its number is part of the seed."""

    PROJECTION = 0
    STAGE_1 = 1
    STAGE_2 = 2
    VIEWS = 3
    LANDSCAPE = 9


def generator(seed: int, purpose: Purpose) -> np.random.Generator:
    """A PCG64 generator that depends only on (seed, purpose)."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, int(purpose)])))


def dump_state(rng: np.random.Generator) -> str:
    """The generator's state as JSON."""
    return json.dumps(rng.bit_generator.state)


def load_state(rng: np.random.Generator, state: str) -> None:
    """Set the generator's state from `dump_state`'s JSON."""
    rng.bit_generator.state = json.loads(state)
