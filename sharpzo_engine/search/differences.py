"""How smoothly an encoder answers, measured around a point by differences of its outputs T.

    one-sided   D(u) = [T(w + h u) - T(w)] / h              one pass each; error h/2 T'' and noise
    central     D(u) = [T(w + h u) - T(w - h u)] / (2 h)    two passes each; error h^2/6 T'''

Answers with rounding noise of variance s^2 give tangents with noise 2 s^2 / h^2 and s^2 / (2 h^2):
small steps drown in noise, large ones smooth over the curvature. The best step is where a change of
the step changes the tangent least, and that change is the tangents' error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Floats = NDArray[np.float32]

#: Steps to try along unit directions; each doubles the one before.
STEPS = (0.003125, 0.00625, 0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
PROBES = 2  #: directions to try them along
#: Share of a tangent's square that may be error, up to which an encoder counts as smooth.
SMOOTH_SHARE = 0.001


class Outputs(Protocol):
    """An objective that returns T, flattened to O numbers."""

    def outputs(self, points: Array) -> Floats:
        """T at points [n, d] -> [n, O]; n forward passes."""
        ...


@dataclass(frozen=True)
class Roughness:
    """The best differences around a point."""

    step: float  #: h
    error: float  #: E |D - T'u|^2
    smooth: bool  #: one-sided differences are good enough; otherwise these are central ones

    @property
    def noise(self) -> float:
        """E |T - its smooth part|^2, if all error of the central differences is noise."""
        return 0.0 if self.smooth else 2 * self.step**2 * self.error


def measure(objective: Outputs, point: Array, directions: Array) -> Roughness:
    """Measure T at `point` [d] along orthonormal `directions` [p, d]; see `PASSES`."""
    steps = np.array(STEPS)[:, None, None]
    offsets = steps * directions  # [K, p, d]
    points = np.concatenate([point[None], *(point + offsets), *(point - offsets)])
    centre, *rest = np.split(objective.outputs(points).astype(np.float64), [1])
    plus, minus = rest[0].reshape(2, len(STEPS), len(directions), -1)
    central = (plus - minus) / (2 * steps)
    changes = np.square(np.diff(central, axis=0)).sum(-1).mean(1)  # from each step to the next
    changes = np.nan_to_num(changes, nan=np.inf)  # answers that overflow
    changes[~central[:-1].any(axis=(1, 2))] = np.inf  # answers too coarse for this step
    best = int(changes.argmin())
    signal = float(np.square(central[best]).sum(-1).mean())
    errors = np.square((plus - centre) / steps - central[best]).sum(-1).mean(1) + changes[best]
    closest = int(np.nan_to_num(errors, nan=np.inf).argmin())
    if errors[closest] <= SMOOTH_SHARE * signal:
        return Roughness(STEPS[closest], float(errors[closest]), smooth=True)
    return Roughness(STEPS[best], float(changes[best]), smooth=False)


#: Forward passes of `measure`.
PASSES = 1 + 2 * len(STEPS) * PROBES
