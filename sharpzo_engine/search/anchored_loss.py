"""`AnchoredLoss`: an `ImageLoss` that also holds class embeddings near others (KgCoOp's term)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sharpzo_engine.clip.encoder import ImageLoss

Floats = NDArray[np.float32]
Array = NDArray[np.float64]


class AnchoredLoss:
    """L(T) + (mu / C) sum_c |T_c - R_c|^2, with its exact derivatives (arXiv 2303.13283).

    A context that moves the embeddings of its own classes less also moves those of other classes
    less, so that it serves classes which it was not tuned on.
    """

    def __init__(self, inner: ImageLoss, anchors: Floats, strength: float) -> None:
        """The images' loss L, the embeddings R [C, E] and mu."""
        self._inner = inner
        self._anchors = anchors
        self._weight = strength / len(anchors)  # mu / C

    def losses(self, embeddings: Floats) -> Array:
        """Class embeddings [n, C, E] -> losses [n]; NaN if they are not finite."""
        distances = np.square(embeddings - self._anchors).sum((1, 2), dtype=np.float64)
        found: Array = self._inner.losses(embeddings) + self._weight * distances
        return found

    def gradient(self, embeddings: Floats) -> tuple[float, Floats]:
        """Class embeddings T [C, E] -> loss and its gradient dL/dT + (2 mu / C) (T - R) [C, E]."""
        loss, gradient = self._inner.gradient(embeddings)
        offsets = embeddings - self._anchors
        penalty = self._weight * float(np.square(offsets).sum(dtype=np.float64))
        return loss + penalty, gradient + np.float32(2 * self._weight) * offsets

    def curvature(self, embeddings: Floats, jacobian: Floats) -> Array:
        """J (d^2 L/dT^2) J^T + (2 mu / C) J J^T [k, k] for the rows of J [k, C, E]."""
        rows = jacobian.reshape(len(jacobian), -1)
        found: Array = self._inner.curvature(embeddings, jacobian)
        return found + 2 * self._weight * (rows @ rows.T).astype(np.float64)

    def accuracy(self, embeddings: Floats) -> float:
        """Fraction of images whose nearest class embedding [C, E] is their own."""
        return self._inner.accuracy(embeddings)
