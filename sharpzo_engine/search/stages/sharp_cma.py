"""Stage 1: sharpness-aware CMA-ES (SharpZO, arXiv 2506.20990, section 4.1; pycma does the CMA).

Per generation t, with mean theta_t, step size sigma_t and covariance C_t:

    g    = CGE(theta_t)                                  coordinate-wise gradient
    eps  = rho g / ||g||                                 sharpness perturbation
    x_i ~ N(theta_t, sigma_t^2 C_t),   i = 1..S          candidates
    f_i  = L(x_i + eps)                                  perturbed fitness
    (theta, sigma, C)_{t+1} from the pairs (x_i, f_i)    unperturbed candidates

The direction g may serve several generations (`sharpness_interval`).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharpzo_engine.config import CmaConfig
from sharpzo_engine.errors import CheckpointError
from sharpzo_engine.search.gradients import (
    Backpropagation,
    BlackBox,
    CentralDifferences,
    CoordinateGradient,
    ForwardDerivatives,
    GradientEstimator,
)
from sharpzo_engine.search.stages.stage import StageName, StageState, StepOutcome

with warnings.catch_warnings():  # cma misses matplotlib, which only its plots need
    warnings.simplefilter("ignore")
    import cma
    from cma.sigma_adaptation import CMAAdaptSigmaCSA, CMAAdaptSigmaTPA

Array = NDArray[np.float64]
_TINY = 1e-12  # keeps the division defined where the gradient vanishes
_STEP_SIZE_ADAPTATION = {"csa": CMAAdaptSigmaCSA, "tpa": CMAAdaptSigmaTPA}


class SharpCma:
    """One run of stage 1, generation by generation.

    CMA-ES is a function of its arguments and of the fitness of every generation. So a checkpoint
    contains a table of losses instead of pycma's internals, and `restore` replays the updates
    without evaluations.
    """

    name: StageName = "stage1"

    def __init__(
        self,
        config: CmaConfig,
        start: Array,
        rng: np.random.Generator,
        *,
        ranking: BlackBox | None = None,
    ) -> None:
        """Start at `start` [d]; `rng` must not be shared with other users.

        `ranking` is a cheaper objective for the candidates, which only need to be ranked.
        """
        self._config = config
        self._rng = rng
        self._ranking = ranking
        self._estimator = sharpness_estimator(config)
        self._strategy = _strategy(config, start, rng)
        self._perturbation = np.zeros_like(start)
        self._gradient_norm = 0.0
        self._fitness: list[Array] = []
        self._best_candidate = start

    @property
    def point(self) -> Array:
        """The mean theta [d]."""
        mean: Array = np.array(self._strategy.result.xfavorite, dtype=np.float64)
        return mean

    @property
    def candidates(self) -> list[Array]:
        """Points worth validating: the mean, and the last generation's best candidate."""
        return [self.point, self._best_candidate]

    @property
    def steps(self) -> int:
        """Generations done."""
        return len(self._fitness)

    @property
    def exhausted(self) -> bool:
        """Whether one of CMA-ES's stopping rules applies."""
        return bool(self._strategy.stop())

    @property
    def passes_per_step(self) -> int:
        """Evaluations of the next generation."""
        passes = self._config.population_size
        if self._estimator and self._direction_is_due():
            passes += self._estimator.passes(self._perturbation.size)
        return passes

    def step(self, objective: BlackBox) -> StepOutcome:
        """Run one generation: S evaluations, and a gradient if a sharpness direction is due."""
        if self._estimator and self._direction_is_due():
            self._perturb(self._estimator(objective, self._gradient_point()).gradient)
        candidates = self._strategy.ask()
        rank = self._ranking or objective
        self._tell(candidates, rank(np.stack(candidates) + self._perturbation))
        return StepOutcome(
            loss=float(self._fitness[-1].min()),
            sigma=float(self._strategy.sigma),
            sharpness=self._radius * self._gradient_norm if self._estimator else None,
        )

    def _direction_is_due(self) -> bool:
        return self.steps % self._config.sharpness_interval == 0

    def _gradient_point(self) -> Array:
        """The point of the sharpness gradient: the mean theta_t."""
        return self.point

    @property
    def _radius(self) -> float:
        return self._config.rho

    def _perturb(self, gradient: Array) -> None:
        """Eps = rho g / ||g||: the steepest ascent within radius rho."""
        self._gradient_norm = float(np.linalg.norm(gradient))
        self._perturbation = self._radius * gradient / (self._gradient_norm + _TINY)

    def _tell(self, candidates: list[Array], losses: Array) -> None:
        # NaN ranks last.
        fitness = np.where(np.isnan(losses), np.inf, losses)
        self._strategy.tell(candidates, _rankable(fitness).tolist())
        self._fitness.append(fitness)
        self._best_candidate = np.array(candidates[int(fitness.argmin())])

    def state(self) -> StageState:
        """Everything needed to continue: arrays and JSON values."""
        dim = self._perturbation.size
        # Files only contain finite numbers; the update replaces infinities in the same way.
        table = np.stack([_rankable(f) for f in self._fitness]) if self._fitness else np.empty(0)
        return StageState(
            arrays={"fitness": table, "perturbation": self._perturbation},
            scalars={"gradient_norm": self._gradient_norm, "dim": dim},
        )

    def restore(self, state: StageState) -> None:
        """Replay a saved run; the next `step` then equals the uninterrupted one bit for bit.

        Raises:
            CheckpointError: the state is of another search space, or this run has started.
        """
        if self._fitness or state.scalars["dim"] != self._perturbation.size:
            raise CheckpointError("the stage-1 state belongs to another run")
        for losses in state.arrays["fitness"]:
            self._tell(self._strategy.ask(), losses)
        self._perturbation = state.arrays["perturbation"]
        self._gradient_norm = float(state.scalars["gradient_norm"])


def sharpness_estimator(config: CmaConfig) -> GradientEstimator | None:
    """The estimator of g, or None if there is no perturbation."""
    if config.sharpness_estimator == "none" or config.rho == 0:
        return None
    if config.sharpness_estimator == "fo":
        return Backpropagation()
    if config.sharpness_estimator == "jvp":
        return CoordinateGradient(ForwardDerivatives())
    return CoordinateGradient(CentralDifferences(config.cge_step))


def _rankable(fitness: Array) -> Array:
    """Replace infinities by the worst finite value plus 1, because pycma computes sums."""
    finite = fitness[np.isfinite(fitness)]
    worst = float(finite.max()) if finite.size else 0.0
    return np.where(np.isfinite(fitness), fitness, worst + 1.0)


def _strategy(
    config: CmaConfig, start: Array, rng: np.random.Generator
) -> cma.CMAEvolutionStrategy:
    options: Mapping[str, Any] = {
        "popsize": config.population_size,
        "bounds": None if config.bound is None else [-config.bound, config.bound],
        "CMA_diagonal": config.covariance == "diagonal",
        "AdaptSigma": _STEP_SIZE_ADAPTATION[config.step_size_adaptation],
        "seed": np.nan,  # does not seed numpy's global generator
        "randn": lambda *shape: rng.standard_normal(shape),
        "verbose": -10,  # no output, no signals file
        "verb_log": 0,
    }
    return cma.CMAEvolutionStrategy(start, config.sigma, options)
