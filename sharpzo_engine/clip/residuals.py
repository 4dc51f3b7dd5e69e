"""`ResidualPrompts`: what is searched where an encoder takes no context vectors.

A residual is added to the fixed embedding of each class, within a subspace that all classes share:
T_c(r) = e_c / |e_c| with e_c = t_c + Q r_c, so that all derivatives are exact and need no encoder.
The "context" is the residuals [C, R], which start at 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sharpzo_engine.clip.encoder import Array, Floats, TextPrecision

#: Coordinates of all classes together, about as many as the search has dimensions.
COORDINATES = 512


class ResidualPrompts:
    """`DifferentiablePrompts` without a text tower."""

    def __init__(self, embeddings: Floats) -> None:
        """`embeddings` [C, E] are the L2-normalised classes."""
        classes, width = embeddings.shape
        size = min(width, max(1, COORDINATES // classes))
        self._start = embeddings
        self.basis = _basis(embeddings, size)  #: Q^T [R, E]
        self.initial_context: Floats = np.zeros((classes, size), np.float32)

    def encode(self, context: Floats) -> Floats:
        """Residuals [n, C, R] -> L2-normalised class embeddings [n, C, E]."""
        return _unit(self._start + context @ self.basis)[0]

    def in_precision(self, name: TextPrecision) -> ResidualPrompts:
        """These prompts: they cost nothing in float32."""
        del name
        return self

    def tangent(self, context: Floats) -> ResidualTangent:
        """Forward mode at residuals [C, R]."""
        return ResidualTangent(self._start + context @ self.basis, self.basis)

    def reverse(self, context: Floats) -> ResidualTangent:
        """Reverse mode at residuals [C, R]."""
        return self.tangent(context)


class ResidualTangent:
    """Both a `Tangent` and a `Reverse`: dT_c = (I - T_c T_c^T) Q dr_c / |e_c|."""

    def __init__(self, sums: Floats, basis: Floats) -> None:
        """At the classes' sums e [C, E], with Q^T [R, E]."""
        self.embeddings, self._lengths = _unit(sums)
        self._basis = basis

    def products(self, directions: Floats) -> Floats:
        """Tangents dT_j [q, C, E] for `directions` [q, C, R]."""
        return self._across(directions @ self._basis)

    def slopes(self, directions: Floats, cotangent: Floats) -> Array:
        """<cotangent, dT_j> [q] for `directions` [q, C, R], cotangent [C, E]."""
        found: Array = np.tensordot(directions, self.pull_back(cotangent), 2)
        return found

    def pull_back(self, cotangent: Floats) -> Array:
        """dL/dT [C, E] -> dL/dr [C, R]."""
        found: Array = (self._across(cotangent) @ self._basis.T).astype(np.float64)
        return found

    def _across(self, change: Floats) -> Floats:
        """Remove what is along T, and divide by the lengths."""
        along = (change * self.embeddings).sum(-1, keepdims=True)
        across: Floats = (change - along * self.embeddings) / self._lengths
        return across


def prototypes(images: Floats, labels: NDArray[np.int64], classes: int) -> ResidualPrompts:
    """Prompts that start at the classes' mean images, for encoders that know no texts."""
    means = [images[labels == label].mean(0) for label in range(classes)]
    return ResidualPrompts(_unit(np.stack(means))[0])


def hand_written(words: str, class_names: Sequence[str]) -> list[str]:
    """The texts "{words} {name}."."""
    return [f"{words} {name.replace('_', ' ')}." for name in class_names]


def _basis(embeddings: Floats, size: int) -> Floats:
    """Q^T [R, E]: where the classes differ most, then random directions; rows of norm 1/sqrt(E).

    So residuals of size 1 change the coordinates of an embedding by their usual size.
    """
    width = embeddings.shape[1]
    centred = (embeddings - embeddings.mean(0)).astype(np.float64)
    differences = np.linalg.svd(centred, full_matrices=False)[2][: min(size, len(embeddings) - 1)]
    random = np.random.default_rng(0).standard_normal((size, width))
    frame = np.linalg.qr(np.concatenate([differences, random])[:size].T)[0].T
    return (frame / math.sqrt(width)).astype(np.float32)


def _unit(sums: Floats) -> tuple[Floats, Floats]:
    """Normalise [..., E]; returns the lengths [..., 1] as well."""
    lengths: Floats = np.linalg.norm(sums, axis=-1, keepdims=True)
    return sums / lengths, lengths
