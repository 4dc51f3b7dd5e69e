"""Gauss-Newton for encoders that only answer, perhaps with rounding noise.

The stage is that of `gauss_newton`, with tangents from differences of outputs. Their kind and their
step h are chosen by `Roughness`, which is measured every `MEASURE_EVERY` steps. Where T is smooth,
nothing else changes. Where it is rough:

- Tangents come from central differences, which are noisy: J takes from each only what its error
  does not explain.
- T at the point is the mean over the points of the differences, and T of a trial the mean over
  `JITTER` points at distance h. One answer is no measure of a point: the search would stay where
  noise happened to be lucky.
- A step is accepted, and the damping follows it, up to the noise of the loss (`_slack`), as in
  noise-tolerant trust-region methods (Sun and Nocedal, arXiv 2201.00973). So noise neither raises
  the damping without end nor ends the run.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sharpzo_engine.search import differences
from sharpzo_engine.search.differences import Roughness, measure
from sharpzo_engine.search.stages.gauss_newton import TRIALS, Composite, GaussNewton
from sharpzo_engine.search.stages.stage import StageState

Array = NDArray[np.float64]
Floats = NDArray[np.float32]

#: Steps between two measurements of the roughness.
MEASURE_EVERY = 50
#: Consecutive steps without a decrease, before central differences are used, as where T is rough.
PATIENCE = 4
#: Answers whose mean is T of a trial, where T is rough.
JITTER = 4
#: Noise of a loss, in standard deviations, that a step may raise it by.
SLACK = 2.0
_UNKNOWN = Roughness(math.nan, math.nan, smooth=True)


class NoisyGaussNewton(GaussNewton):
    """One run of stage 2, a step at a time."""

    _roughness = _UNKNOWN

    @property
    def exhausted(self) -> bool:
        """Whether the horizon is reached; noise may make steps look fruitless for a while."""
        return self._steps >= self._horizon

    @property
    def passes_per_step(self) -> int:
        """Upper bound on the evaluations of the next step."""
        return 1 + differences.PASSES + 2 * self._config.queries + JITTER * TRIALS

    def _learn(self, objective: Composite) -> None:
        """Compute differences along the step's directions and update J with them."""
        stuck = self._fruitless > 0 and self._fruitless % PATIENCE == 0
        if stuck or self._steps % MEASURE_EVERY == 0:
            self._measure(objective)
        if stuck:  # the differences may be worse than they looked
            self._roughness = replace(self._roughness, smooth=False)
            self._damping = self._config.damping
        directions, step = self._directions(), self._roughness.step
        offsets = step * self._spread(directions)
        if self._roughness.smooth:
            self._slack = 0.0
            news = objective.outputs(self._point + offsets) - self._outputs
            tangents = news / np.float32(step)
        else:
            points = np.concatenate([self._point + offsets, self._point - offsets])
            plus, minus = np.split(objective.outputs(points), 2)
            tangents = (plus - minus) / np.float32(2 * step)
            self._average(objective, (plus + minus) / np.float32(2))
        known = np.isfinite(tangents).all(1)
        self._correct(directions[known], tangents[known], self._roughness.error)

    def _measure(self, objective: Composite) -> None:
        """Measure the roughness along the last step, which is steep, and a random direction."""
        random = self._rng.standard_normal((differences.PROBES, self._active.size))
        chosen = np.vstack([*self._recent[-1:], random])[: min(differences.PROBES, random.shape[1])]
        frame, _ = np.linalg.qr(chosen.T)
        self._roughness = measure(objective, self._point, self._spread(frame.T))

    def _average(self, objective: Composite, pairs: Floats) -> None:
        """Take T from pairs of answers [q, O] around the point, and the noise of its loss."""
        usable = pairs[np.isfinite(pairs).all(1)]
        if not len(usable):
            return
        self._outputs = usable.mean(0)
        self._loss = objective.outer_loss(self._outputs)
        losses = np.array([objective.outer_loss(pair) for pair in usable])
        self._slack = SLACK * float(losses.std()) / math.sqrt(len(usable))

    def _outputs_at(self, objective: Composite, point: Array) -> Floats:
        """T [O] at a point [d], without its noise as far as possible."""
        if self._roughness.smooth:
            return super()._outputs_at(objective, point)
        around = self._rng.standard_normal((JITTER // 2, self._active.size))
        around *= self._roughness.step / np.linalg.norm(around, axis=1, keepdims=True)
        offsets = self._spread(around)
        mean: Floats = objective.outputs(np.concatenate([point + offsets, point - offsets])).mean(0)
        return mean

    def _secant_error(self, length: float) -> float:
        answers = 1 / JITTER + 0.5 / self._config.queries
        return self._roughness.noise * answers / length**2

    def state(self) -> StageState:
        """Everything needed to continue."""
        state, rough = super().state(), self._roughness
        known = {"slack": self._slack, "smooth": rough.smooth}
        if not math.isnan(rough.step):
            known |= {"difference_step": rough.step, "tangent_error": rough.error}
        return StageState(arrays=state.arrays, scalars={**state.scalars, **known})

    def restore(self, state: StageState) -> None:
        """Set a fresh run to a saved state; the next step equals the uninterrupted one.

        Raises:
            CheckpointError: the state is of another search space.
        """
        super().restore(state)
        scalars = state.scalars
        self._slack = float(scalars["slack"])
        self._roughness = Roughness(
            float(scalars.get("difference_step", math.nan)),
            float(scalars.get("tangent_error", math.nan)),
            smooth=bool(scalars["smooth"]),
        )
