"""Gradient estimates from losses alone: any callable `points [n, d] -> losses [n]` will do."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
BlackBox = Callable[[Array], Array]

#: Coordinates per call of the objective, which bounds the memory of their points.
COORDINATES_PER_CALL = 512


def coordinate_gradient(objective: BlackBox, point: Array, step: float) -> Array:
    """Coordinate-wise gradient estimate (CGE) [d] by central differences; 2d evaluations.

        g_i = [L(w + mu e_i) - L(w - mu e_i)] / (2 mu)

    A coordinate whose losses are not finite gets 0.
    """
    gradient = np.empty_like(point)
    for start in range(0, point.size, COORDINATES_PER_CALL):
        indices = np.arange(start, min(start + COORDINATES_PER_CALL, point.size))
        directions = np.zeros((indices.size, point.size))
        directions[np.arange(indices.size), indices] = 1.0
        gradient[indices] = directional_derivatives(objective, point, directions, step)
    return gradient


def random_gradient(
    objective: BlackBox, point: Array, step: float, directions: Array
) -> tuple[Array, float]:
    """Random gradient estimate (RGE) [d] from directions [q, d]; 2q evaluations.

        g = (1/q) sum_j [L(w + mu u_j) - L(w - mu u_j)] / (2 mu) u_j

    A masked direction (u * Omega) has zeros where it must not move, and so has the estimate.
    Returns the estimate and the mean loss of its evaluations, which is L(w) up to O(mu^2).
    """
    losses = _mirrored_losses(objective, point, directions, step)
    slopes = _finite((losses[0] - losses[1]) / (2 * step))
    return slopes @ directions / len(directions), float(losses.mean())


def directional_derivatives(
    objective: BlackBox, point: Array, directions: Array, step: float
) -> Array:
    """Central differences along directions [q, d] -> slopes [q]; 2q evaluations in one call."""
    plus, minus = _mirrored_losses(objective, point, directions, step)
    return _finite((plus - minus) / (2 * step))


def draw_directions(
    count: int, dim: int, rng: np.random.Generator, law: str = "gaussian", mask: Array | None = None
) -> Array:
    """Draw directions [count, d], zero outside the mask.

    `gaussian`: independent N(0, I). `orthogonal`: orthogonal to one another within the mask and of
    norm sqrt(k), k being the number of free coordinates, so that both laws have E[u u^T] = I there.
    More directions than free coordinates come as several orthogonal blocks.
    """
    free = np.arange(dim) if mask is None else np.flatnonzero(mask)
    normal = rng.standard_normal((count, free.size))
    if law == "orthogonal":
        blocks = [normal[i : i + free.size] for i in range(0, count, free.size)]
        normal = np.concatenate([_orthogonal_rows(block) for block in blocks])
    directions = np.zeros((count, dim))
    directions[:, free] = normal
    return directions


def _orthogonal_rows(normal: Array) -> Array:
    """Rows of one random frame, scaled to norm sqrt(k)."""
    frame, triangle = np.linalg.qr(normal.T)
    # The signs of R's diagonal make the frame uniform (Haar) and unique.
    scaled: Array = (frame * np.sign(np.diag(triangle))).T * np.sqrt(normal.shape[1])
    return scaled


def _mirrored_losses(objective: BlackBox, point: Array, directions: Array, step: float) -> Array:
    """Losses [2, q] at w + mu u and w - mu u, in one call."""
    offsets = step * directions
    losses = objective(np.concatenate([point + offsets, point - offsets]))
    return losses.reshape(2, len(directions))


def _finite(slopes: Array) -> Array:
    """A direction whose loss overflows says nothing about where to go: it counts as flat."""
    return np.where(np.isfinite(slopes), slopes, 0.0)
