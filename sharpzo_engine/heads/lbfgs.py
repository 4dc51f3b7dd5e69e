"""L-BFGS for smooth convex functions whose curvature is about 1 (Nocedal and Wright, ch. 7.2).

Our own, because SciPy would be a third of an installation for small devices.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Function = Callable[[Array], tuple[float, Array]]  #: point -> loss and gradient
Pairs = deque[tuple[Array, Array]]  #: steps s and the changes y of the gradient over them

HISTORY = 10  # pairs that are kept
ITERATIONS = 100
SUFFICIENT = 1e-4  # share of the promised decrease that a step must bring (Armijo's condition)
SHORTEST = 1e-8  # steps are halved down to this


def minimise(function: Function, start: Array, tolerance: float) -> Array:
    """The point at which a step lowers the loss by less than `tolerance` of it; deterministic."""
    pairs: Pairs = deque(maxlen=HISTORY)
    point, (loss, gradient) = start, function(start)
    for _ in range(ITERATIONS):
        found = _search_line(function, point, loss, gradient, _direction(gradient, pairs))
        if found is None:
            break
        moved, lower, slope = found
        if _dot(moved - point, slope - gradient) > 0:  # rounding may hide the curvature
            pairs.append((moved - point, slope - gradient))
        finished = loss - lower <= tolerance * loss
        point, loss, gradient = moved, lower, slope
        if finished:
            break
    return point


def _direction(gradient: Array, pairs: Pairs) -> Array:
    """-H g by the two-loop recursion, H the inverse curvature that the pairs show."""
    q = gradient.copy()
    alphas: list[float] = []
    for s, y in reversed(pairs):
        alphas.append(_dot(s, q) / _dot(s, y))
        q -= alphas[-1] * y
    if pairs:
        s, y = pairs[-1]
        q *= _dot(s, y) / _dot(y, y)
    for (s, y), alpha in zip(pairs, reversed(alphas), strict=True):
        q += (alpha - _dot(y, q) / _dot(s, y)) * s
    return -q


def _search_line(
    function: Function, point: Array, loss: float, gradient: Array, direction: Array
) -> tuple[Array, float, Array] | None:
    """Halve the step until the loss falls enough; None if it never does (or is not a number)."""
    slope, length = _dot(gradient, direction), 1.0
    while length >= SHORTEST:
        moved = point + length * direction
        lower, new_gradient = function(moved)
        if lower < loss and lower <= loss + SUFFICIENT * length * slope:
            return moved, lower, new_gradient
        length /= 2
    return None


def _dot(a: Array, b: Array) -> float:
    return float(np.vdot(a, b))
