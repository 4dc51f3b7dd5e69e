"""Softmax and its logarithm over the classes of logits [..., C]."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

R = TypeVar("R", bound=np.floating[Any])


def softmax(logits: NDArray[R]) -> NDArray[R]:
    """Probabilities, each row summing to 1."""
    chances: NDArray[R] = np.exp(logits - logits.max(-1, keepdims=True))
    chances /= chances.sum(-1, keepdims=True)
    return chances


def log_sum_exp(logits: NDArray[R]) -> NDArray[R]:
    """Log sum exp z, [..., C] -> [...]."""
    largest = logits.max(-1)
    found: NDArray[R] = np.log(np.exp(logits - largest[..., None]).sum(-1)) + largest
    return found
