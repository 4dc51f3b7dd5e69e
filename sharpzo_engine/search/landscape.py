"""A two-dimensional slice of the training loss through the hand-written and the tuned prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sharpzo_engine.search.gradients import BlackBox

Array = NDArray[np.float64]

#: Coordinates of the slice; 0 (the hand-written prompt) and 1 (the tuned one) are among x.
ALONG = np.linspace(-0.5, 1.5, 17)
ACROSS = np.linspace(-0.75, 0.75, 11)
#: A slice is skipped if it would take longer than both of these.
MAX_SECONDS = 10.0
MAX_SHARE = 0.05  # of the time of tuning


@dataclass(frozen=True)
class Landscape:
    """Losses on a grid over the plane `origin + x * (result - origin) + y * across`.

    `across` is a random direction, orthogonal to `result - origin` and of the same length.
    """

    x: Array  #: [nx]
    y: Array  #: [ny]
    loss: Array  #: [ny, nx]; NaN where a point overflows the text tower

    @property
    def forward_passes(self) -> int:
        """Evaluations for the slice, which are not counted for the search."""
        return self.loss.size


@dataclass(frozen=True)
class NoLandscape:
    """The reason why there is no landscape."""

    reason: str

    @property
    def forward_passes(self) -> int:
        """Always 0."""
        return 0


@dataclass(frozen=True)
class SearchSpeed:
    """Time and passes of the search, from which the time of a slice is estimated."""

    seconds: float
    forward_passes: int

    def reason_to_skip(self, passes: int) -> str | None:
        """Why this number of passes takes too long, or None if it does not."""
        needed = passes * self.seconds / max(1, self.forward_passes)
        if needed <= max(MAX_SECONDS, MAX_SHARE * self.seconds):
            return None
        return f"its {passes} forward passes would take about {needed:.0f} s"


def compute_landscape(
    objective: BlackBox,
    origin: Array,
    result: Array,
    rng: np.random.Generator,
    speed: SearchSpeed,
    on_row: Callable[[int, int], None] = lambda _done, _total: None,
) -> Landscape | NoLandscape:
    """Evaluate the slice through `origin` and `result` [d], row by row.

    `on_row` receives the number of finished rows and of all rows; it may raise to stop.
    """
    step = result - origin
    if not np.any(step):
        return NoLandscape("the search found no better prompt than the hand-written one")
    if reason := speed.reason_to_skip(ALONG.size * ACROSS.size):
        return NoLandscape(reason)
    across = orthogonal(step, rng)
    rows = []
    for done, y in enumerate(ACROSS):
        on_row(done, ACROSS.size)
        rows.append(objective(origin + np.outer(ALONG, step) + y * across))
    return Landscape(ALONG, ACROSS, np.stack(rows))


def orthogonal(direction: Array, rng: np.random.Generator) -> Array:
    """A random direction [d >= 2], orthogonal to the given one and of the same norm."""
    norm = np.linalg.norm(direction)
    unit = direction / norm
    draw = rng.standard_normal(direction.size)
    draw -= (draw @ unit) * unit
    result: Array = draw * (norm / np.linalg.norm(draw))
    return result
