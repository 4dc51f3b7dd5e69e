"""A 2-D slice of the training loss through the hand-written and the tuned prompt."""

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
#: A slice that takes longer than both of these is left out.
MAX_SECONDS = 10.0
MAX_SHARE = 0.05  # of the time of tuning


@dataclass(frozen=True)
class Landscape:
    """Losses on a grid over the plane `origin + x * (result - origin) + y * across`.

    `across` is a random direction, orthogonal to the way from origin to result and as long as it.
    """

    x: Array  #: [nx]
    y: Array  #: [ny]
    loss: Array  #: [ny, nx], NaN where a point overflows the text tower

    @property
    def forward_passes(self) -> int:
        """Evaluations it took; they are no part of the search's bill."""
        return self.loss.size


@dataclass(frozen=True)
class NoLandscape:
    """Why there is none."""

    reason: str

    @property
    def forward_passes(self) -> int:
        """None were spent."""
        return 0


@dataclass(frozen=True)
class Pace:
    """How fast the search was, by which the time of a slice is foretold."""

    seconds: float
    forward_passes: int

    def forbids(self, passes: int) -> str | None:
        """Why so many more passes would take too long; None if they do not."""
        needed = passes * self.seconds / max(1, self.forward_passes)
        if needed <= max(MAX_SECONDS, MAX_SHARE * self.seconds):
            return None
        return f"its {passes} forward passes would have taken about {needed:.0f} s"


def survey(
    objective: BlackBox,
    origin: Array,
    result: Array,
    rng: np.random.Generator,
    pace: Pace,
    on_row: Callable[[int, int], None] = lambda _done, _total: None,
) -> Landscape | NoLandscape:
    """Evaluate the slice through `origin` and `result` [d], a row at a time.

    `on_row` is told how many rows are done, of how many; what it raises ends the survey.
    """
    step = result - origin
    if not np.any(step):
        return NoLandscape("the hand-written prompt was not improved upon")
    if reason := pace.forbids(ALONG.size * ACROSS.size):
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
