"""Which stages and estimators each method uses."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sharpzo_engine.config import TuningConfig, ZoConfig
from sharpzo_engine.randomness import Purpose, generator
from sharpzo_engine.search.gradients import (
    Backpropagation,
    BlackBox,
    CentralDifferences,
    CoordinateGradient,
    ForwardDerivatives,
    ForwardMode,
    GradientEstimator,
    RandomGradient,
    Slopes,
)
from sharpzo_engine.search.objective import Objective
from sharpzo_engine.search.progress import Phase
from sharpzo_engine.search.stages.gauss_newton import Composite, GaussNewton
from sharpzo_engine.search.stages.noisy_gauss_newton import NoisyGaussNewton
from sharpzo_engine.search.stages.reference import ReferenceCma, ReferenceZo
from sharpzo_engine.search.stages.sharp_cma import SharpCma, sharpness_estimator
from sharpzo_engine.search.stages.sparse_zo import SparseZo
from sharpzo_engine.search.stages.stage import Stage

Array = NDArray[np.float64]


def has_stage_1(config: TuningConfig) -> bool:
    """Whether the run begins with CMA-ES."""
    return config.method == "cma-es" or (config.method == "sharpzo" and config.change_point != 0)


def has_stage_2(config: TuningConfig) -> bool:
    """Whether the run ends with gradient steps."""
    return config.method != "cma-es"


def stage_label(phase: Phase, config: TuningConfig, objective: BlackBox) -> str:
    """The optimiser that stage 1 or 2 of this run uses, in words for people."""
    if phase == "stage1":
        return "Sharp CMA-ES" if sharpness_estimator(config.cma) else "CMA-ES"
    if config.method == "first-order":
        return "First-order"
    if config.numerics != "reference" and _is_gauss_newton(config, objective):
        return "Gauss-Newton"
    return "ZO" if config.zo.mask == "none" else "Sparse ZO"


def stage_1(config: TuningConfig, objective: Objective) -> SharpCma:
    """CMA-ES from the hand-written prompt."""
    rng = generator(config.seed, Purpose.STAGE_1)
    origin = objective.space.origin
    if config.numerics == "reference":
        return ReferenceCma(config.cma, origin, rng)
    ranking = objective.in_precision(config.cma.ranking_precision)
    return SharpCma(config.cma, origin, rng, ranking=ranking)


def stage_2(
    config: TuningConfig,
    objective: Objective,
    start: Array,
    horizon: int,
    before: Stage | None = None,
) -> Stage:
    """Gradient steps from `start` [d]; `before` is the previous stage, if any."""
    rng = generator(config.seed, Purpose.STAGE_2)
    if config.numerics == "reference":
        gradient = before.gradient if isinstance(before, ReferenceCma) else np.zeros_like(start)
        rows = config.cma.population_size
        return ReferenceZo(config.zo, start, rng, horizon, gradient=gradient, rows=rows)
    if _is_gauss_newton(config, objective):
        stage = GaussNewton if is_exact(objective) else NoisyGaussNewton
        return stage(config.zo, start, rng, horizon)
    return SparseZo(
        config.zo,
        start,
        rng,
        horizon,
        estimator=_estimator(config, objective, rng),
        mask_estimator=_mask_estimator(config, objective),
    )


def passes_per_stage_2_step(config: TuningConfig, objective: Objective) -> float:
    """Average evaluations per step of stage 2, including refreshes of the mask."""
    if config.numerics == "reference":
        return 2 * config.zo.queries
    dim = objective.space.dim
    if _is_gauss_newton(config, objective):
        return 2 + min(config.zo.queries, dim)  # values, tangents, and a trial that succeeds
    rng = generator(config.seed, Purpose.STAGE_2)
    passes: float = _estimator(config, objective, rng).passes(dim)
    if config.zo.mask != "none":
        passes += _mask_estimator(config, objective).passes(dim) / config.zo.prune_interval
    return passes


def is_exact(objective: BlackBox) -> bool:
    """Whether the objective has exact directional derivatives."""
    if isinstance(objective, Objective):
        return objective.is_exact
    return isinstance(objective, ForwardMode)


def _is_gauss_newton(config: TuningConfig, objective: BlackBox) -> bool:
    zo = config.zo
    if config.method == "first-order" or zo.optimizer not in ("auto", "gauss-newton"):
        return False
    return zo.optimizer == "gauss-newton" or (
        zo.mask == "none" and isinstance(objective, Composite)
    )


def _estimator(
    config: TuningConfig, objective: BlackBox, rng: np.random.Generator
) -> GradientEstimator:
    """The gradient estimator of stage 2."""
    if config.method == "first-order":
        return Backpropagation()
    zo = config.zo
    return RandomGradient(_slopes(zo, objective, zo.rge_step), zo.queries, zo.directions, rng)


def _mask_estimator(config: TuningConfig, objective: BlackBox) -> GradientEstimator:
    if config.method == "first-order":
        return Backpropagation()
    return CoordinateGradient(_slopes(config.zo, objective, config.zo.mask_step))


def _slopes(config: ZoConfig, objective: BlackBox, step: float) -> Slopes:
    """Exact derivatives if requested, or by default if the objective supports them."""
    supported = config.estimator == "auto" and is_exact(objective)
    if supported or config.estimator == "jvp":
        return ForwardDerivatives()
    return CentralDifferences(step)
