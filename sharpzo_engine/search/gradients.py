"""Gradient estimators with one interface; the black-box estimators accept any callable.

An estimator consists of directions and a way to compute the slopes along them:

| estimator                          | directions     | slopes              | passes              |
|------------------------------------|----------------|---------------------|---------------------|
| `CoordinateGradient(differences)`  | e_1 ... e_d    | central differences | 2d (CGE)            |
| `RandomGradient(differences)`      | u_1 ... u_q    | central differences | 2q (RGE)            |
| `CoordinateGradient(forward mode)` | e_1 ... e_d    | exact derivatives   | 1 + d               |
| `RandomGradient(forward mode)`     | u_1 ... u_q    | exact derivatives   | 1 + q               |
| `Backpropagation()`                | -              | -                   | 1, and 1 backwards  |

Forward mode propagates tangents through the network together with the values (JVP). These are still
forward passes, but without a step size and its cancellation errors. Backpropagation is only used as
a baseline.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sharpzo_engine.errors import ConfigError

Array = NDArray[np.float64]
BlackBox = Callable[[Array], Array]

#: Directions per call of the objective, which limits the memory for their points.
DIRECTIONS_PER_CALL = 512


@runtime_checkable
class ForwardMode(Protocol):
    """An objective with forward-mode derivatives."""

    def __call__(self, points: Array) -> Array:
        """Points [n, d] -> losses [n]."""
        ...

    def directional_derivatives(self, point: Array, directions: Array) -> tuple[float, Array]:
        """Loss at `point` [d] and its exact slopes [q] along `directions` [q, d]."""
        ...


@runtime_checkable
class ReverseMode(Protocol):
    """An objective with reverse-mode derivatives."""

    def __call__(self, points: Array) -> Array:
        """Points [n, d] -> losses [n]."""
        ...

    def gradient(self, point: Array) -> tuple[float, Array]:
        """Loss at `point` [d] and its exact gradient [d]."""
        ...


@dataclass(frozen=True)
class Estimate:
    """A gradient [d], and L(w) (for differences: the mean of the evaluations, off by O(mu^2))."""

    gradient: Array
    loss: float


class Slopes(Protocol):
    """A way to compute slopes along directions."""

    def __call__(self, objective: BlackBox, point: Array, directions: Array) -> tuple[float, Array]:
        """Loss at `point` [d], and slopes [q] along `directions` [q, d]."""
        ...

    def passes(self, directions: int) -> int:
        """Evaluations for this number of directions."""
        ...


@dataclass(frozen=True)
class CentralDifferences:
    """s_j = [L(w + mu u_j) - L(w - mu u_j)] / (2 mu), for any callable; w is not changed."""

    step: float  #: mu

    def __call__(self, objective: BlackBox, point: Array, directions: Array) -> tuple[float, Array]:
        """Evaluate all mirrored pairs in one call."""
        offsets = self.step * directions
        losses = objective(np.concatenate([point + offsets, point - offsets]))
        plus, minus = losses.reshape(2, len(directions))
        return float(losses.mean()), _finite((plus - minus) / (2 * self.step))

    def passes(self, directions: int) -> int:
        """Two per direction."""
        return 2 * directions


@dataclass(frozen=True)
class ForwardDerivatives:
    """s_j = <grad L(w), u_j>, exactly, by forward-mode differentiation (arXiv 2202.08587)."""

    def __call__(self, objective: BlackBox, point: Array, directions: Array) -> tuple[float, Array]:
        """Propagate all directions together; the values at `point` are computed once."""
        if not isinstance(objective, ForwardMode):
            raise ConfigError(
                "estimator jvp needs an objective with directional_derivatives (use rge or zo, "
                "which accept any callable)"
            )
        loss, slopes = objective.directional_derivatives(point, directions)
        return loss, _finite(slopes)

    def passes(self, directions: int) -> int:
        """One for the values, and one per tangent."""
        return 1 + directions


class GradientEstimator(Protocol):
    """A way to estimate the gradient of a loss at a point."""

    def passes(self, dim: int) -> int:
        """Evaluations for one estimate in `dim` dimensions."""
        ...

    def __call__(self, objective: BlackBox, point: Array, mask: Array | None = None) -> Estimate:
        """Estimate the gradient at `point` [d]; zero where `mask` [d] is zero."""
        ...


@dataclass(frozen=True)
class CoordinateGradient:
    """g_i = slope along e_i, i = 1..d; with central differences this is the paper's CGE."""

    slopes: Slopes

    def passes(self, dim: int) -> int:
        """Evaluations for d directions, in blocks."""
        sizes = [len(block) for block in _blocks(dim)]
        return sum(map(self.slopes.passes, sizes))

    def __call__(self, objective: BlackBox, point: Array, mask: Array | None = None) -> Estimate:
        """A coordinate whose losses are not finite gets 0."""
        gradient, losses = np.empty_like(point), []
        for block in _blocks(point.size):
            loss, gradient[block] = self.slopes(objective, point, _unit_vectors(block, point.size))
            losses.append(loss)
        masked = gradient if mask is None else gradient * mask
        return Estimate(masked, float(np.mean(losses)))


@dataclass(frozen=True)
class RandomGradient:
    """g = (1/q) sum_j s_j u_j, u_j random; with central differences this is the paper's RGE."""

    slopes: Slopes
    queries: int  #: q
    law: str  #: of the directions, see `draw_directions`
    rng: np.random.Generator

    def passes(self, dim: int) -> int:  # noqa: ARG002 - the same in any dimension
        """Evaluations for q directions."""
        return self.slopes.passes(self.queries)

    def __call__(self, objective: BlackBox, point: Array, mask: Array | None = None) -> Estimate:
        """Directions and estimate are zero outside the mask (u * Omega)."""
        directions = draw_directions(self.queries, point.size, self.rng, self.law, mask)
        loss, slopes = self.slopes(objective, point, directions)
        return Estimate(slopes @ directions / self.queries, loss)


@dataclass(frozen=True)
class Backpropagation:
    """The exact gradient by reverse mode: the first-order baseline, not forward-only."""

    def passes(self, dim: int) -> int:  # noqa: ARG002 - the same in any dimension
        """One; the objective counts the backward pass."""
        return 1

    def __call__(self, objective: BlackBox, point: Array, mask: Array | None = None) -> Estimate:
        """Components that are not finite are set to zero."""
        if not isinstance(objective, ReverseMode):
            raise ConfigError(
                "a first-order estimator needs an objective with gradient (use rge or zo)"
            )
        loss, gradient = objective.gradient(point)
        gradient = _finite(gradient)
        return Estimate(gradient if mask is None else gradient * mask, loss)


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


def _blocks(dim: int) -> list[NDArray[np.intp]]:
    """Coordinates in blocks of at most `DIRECTIONS_PER_CALL`."""
    return [
        np.arange(start, min(start + DIRECTIONS_PER_CALL, dim))
        for start in range(0, dim, DIRECTIONS_PER_CALL)
    ]


def _unit_vectors(indices: NDArray[np.intp], dim: int) -> Array:
    """Rows e_i [len(indices), dim]."""
    vectors = np.zeros((indices.size, dim))
    vectors[np.arange(indices.size), indices] = 1.0
    return vectors


def _finite(slopes: Array) -> Array:
    """Replace slopes that are not finite by zero, because the loss overflowed there."""
    return np.where(np.isfinite(slopes), slopes, 0.0)
