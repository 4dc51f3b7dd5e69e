"""Stage 2: sparse zeroth-order SGD (SharpZO, arXiv 2506.20990, section 4.2).

Every `prune_interval` steps, starting with the first, the mask Omega is updated from a
coordinate-wise gradient. Each step:

    u_j ~ N(0, I),   j = 1..q                                            directions
    g   = (1/q) sum_j [L(w + mu u_j*Omega) - L(w - mu u_j*Omega)] / (2 mu) u_j*Omega
    w  <- w - eta_t * update(g)                                          SGD or Adam

The estimate is new in every step, and w is never perturbed in place. If the objective has
forward-mode derivatives, slopes along u_j can be exact instead of differences.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sharpzo_engine.config import ZoConfig
from sharpzo_engine.errors import CheckpointError
from sharpzo_engine.randomness import dump_state, load_state
from sharpzo_engine.search.gradients import (
    BlackBox,
    CentralDifferences,
    CoordinateGradient,
    GradientEstimator,
    RandomGradient,
)
from sharpzo_engine.search.stages.stage import Descent, StageState, StepOutcome

Array = NDArray[np.float64]
ADAM_BETAS = (0.9, 0.99)
ADAM_EPS = 1e-8


class SparseZo(Descent):
    """One run of stage 2, step by step."""

    def __init__(
        self,
        config: ZoConfig,
        start: Array,
        rng: np.random.Generator,
        horizon: int,
        *,
        estimator: GradientEstimator | None = None,
        mask_estimator: GradientEstimator | None = None,
    ) -> None:
        """Start at `start` [d]; the cosine schedule ends after `horizon` steps.

        Both estimators default to finite differences, which work for any black box.
        """
        self._config = config
        differences = CentralDifferences(config.rge_step)
        self._estimator = estimator or RandomGradient(
            differences, config.queries, config.directions, rng
        )
        self._mask_estimator = mask_estimator or CoordinateGradient(
            CentralDifferences(config.mask_step)
        )
        self._rng = rng
        super().__init__(start, horizon)
        self._mask = np.ones_like(start)
        self._mean = np.zeros_like(start)
        self._square = np.zeros_like(start)

    @property
    def passes_per_step(self) -> int:
        """Evaluations of the next step."""
        dim = self._point.size
        refresh = self._mask_estimator.passes(dim) if self._refresh_is_due() else 0
        return self._estimator.passes(dim) + refresh

    def step(self, objective: BlackBox) -> StepOutcome:
        """Run one step: an estimate, preceded by a full gradient if the mask is due."""
        if self._refresh_is_due():
            gradient = self._mask_estimator(objective, self._point).gradient
            self._mask = prune_mask(
                self._point, gradient, self._config.prune_ratio, self._config.mask
            )
        estimate = self._estimator(objective, self._point, self._mask)
        self._point = self._point - self.learning_rate * self._update(estimate.gradient)
        self._steps += 1
        return StepOutcome(loss=estimate.loss)

    @property
    def learning_rate(self) -> float:
        """eta_t: constant, or a cosine from eta to 0 over the horizon."""
        if self._config.schedule == "constant":
            return self._config.learning_rate
        phase = math.pi * min(1.0, self._steps / self._horizon)
        return self._config.learning_rate * 0.5 * (1 + math.cos(phase))

    def _refresh_is_due(self) -> bool:
        return self._config.mask != "none" and self._steps % self._config.prune_interval == 0

    def _update(self, estimate: Array) -> Array:
        """SGD: the estimate itself. Adam (arXiv 1412.6980): bias-corrected moments."""
        if self._config.optimizer == "sgd":
            return estimate
        first, second = ADAM_BETAS
        self._mean = first * self._mean + (1 - first) * estimate
        self._square = second * self._square + (1 - second) * estimate**2
        t = self._steps + 1
        mean = self._mean / (1 - first**t)
        square = self._square / (1 - second**t)
        # A coordinate that was just masked still has momentum, but must not move.
        return self._mask * mean / (np.sqrt(square) + ADAM_EPS)

    def state(self) -> StageState:
        """Everything needed to continue."""
        return StageState(
            arrays={
                "point": self._point,
                "mask": self._mask,
                "mean": self._mean,
                "square": self._square,
            },
            scalars={
                "steps": self._steps,
                "horizon": self._horizon,
                "rng": dump_state(self._rng),
            },
        )

    def restore(self, state: StageState) -> None:
        """Set a fresh run to a saved state; the next step equals the uninterrupted one.

        Raises:
            CheckpointError: the state is of another search space.
        """
        if state.arrays["point"].shape != self._point.shape:
            raise CheckpointError("the stage-2 state belongs to another run")
        self._point, self._mask = state.arrays["point"], state.arrays["mask"]
        self._mean, self._square = state.arrays["mean"], state.arrays["square"]
        self._steps = int(state.scalars["steps"])
        self._horizon = int(state.scalars["horizon"])
        load_state(self._rng, state.scalars["rng"])


def prune_mask(point: Array, gradient: Array, ratio: float, criterion: str) -> Array:
    """Omega [d]: ones at the floor(ratio * d) coordinates of highest score (at least one).

    `z-score` is the paper's saliency s_i = w_i^2 z(g_i^2), z standardising over the coordinates;
    if all g_i^2 are equal, |w_i| decides. `gradient` keeps the largest |g_i|, the steepest descent
    among steps of equal size. On ties the lower index is kept.
    """
    score = np.abs(gradient) if criterion == "gradient" else _saliency(point, gradient)
    keep = max(1, math.floor(ratio * point.size))
    mask = np.zeros_like(point)
    mask[np.argsort(-score, kind="stable")[:keep]] = 1.0
    return mask


def _saliency(point: Array, gradient: Array) -> Array:
    square = gradient**2
    spread = square.std()
    if spread == 0:
        return np.abs(point)
    scores: Array = point**2 * (square - square.mean()) / spread
    return scores
