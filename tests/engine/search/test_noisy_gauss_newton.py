"""Gauss-Newton without derivatives, on functions of numpy: smooth ones and rounded ones."""

import copy

import numpy as np
import pytest

from sharpzo_engine.config import ZoConfig
from sharpzo_engine.search import differences
from sharpzo_engine.search.differences import STEPS, measure
from sharpzo_engine.search.stages.gauss_newton import GaussNewton
from sharpzo_engine.search.stages.noisy_gauss_newton import (
    JITTER,
    MEASURE_EVERY,
    NoisyGaussNewton,
)
from tests.engine.search.test_gauss_newton import DIM, OUTPUTS, LeastSquares

HORIZON = 150
CONFIG = ZoConfig(optimizer="gauss-newton", queries=4)


class OnlyAnswers(LeastSquares):
    """Gives no derivatives; answers are rounded to multiples of `grain`."""

    def __init__(self, grain: float = 0.0) -> None:
        super().__init__()
        self.grain = grain

    def outputs(self, points: np.ndarray) -> np.ndarray:
        answers = super().outputs(points)
        return np.round(answers / self.grain) * np.float32(self.grain) if self.grain else answers

    def tangents(self, *_: np.ndarray) -> np.ndarray:
        raise AssertionError("this encoder only answers")

    def true_loss(self, point: np.ndarray) -> float:
        return self.outer_loss(self.inner(point))


def make(cls: type[GaussNewton] = NoisyGaussNewton, horizon: int = HORIZON) -> GaussNewton:
    return cls(CONFIG, np.full(DIM, 0.3), np.random.default_rng(0), horizon)


def run(stage: GaussNewton, objective: LeastSquares) -> np.ndarray:
    while not stage.exhausted:
        stage.step(objective)
    return stage.point


@pytest.fixture(scope="module")
def lowest() -> float:
    objective = LeastSquares()
    return objective.outer_loss(objective.inner(run(make(GaussNewton), objective)))


def test_smooth_answers_are_as_good_as_derivatives(lowest: float) -> None:
    objective = OnlyAnswers()
    assert objective.true_loss(run(make(), objective)) == pytest.approx(lowest, rel=1e-3)


@pytest.mark.parametrize("grain", [0.02, 0.1, 0.3])
def test_rounded_answers_lead_close_to_the_minimum(lowest: float, grain: float) -> None:
    objective = OnlyAnswers(grain)
    stage = make()
    start = objective.true_loss(stage.point)
    losses = []
    while not stage.exhausted:
        stage.step(objective)
        losses.append(objective.true_loss(stage.point))
    assert stage.steps == HORIZON  # noise does not end the run
    rounding = OUTPUTS * grain**2 / 12 / 2
    assert np.median(losses[-50:]) < lowest + 2 * rounding < start


def test_derivatives_of_rounded_answers_lead_nowhere() -> None:
    """What the stage is for: tiny differences of rounded answers are zero or huge."""
    objective = OnlyAnswers(0.1)
    step = STEPS[0]

    class Naive(GaussNewton):
        def _learn(self, objective: OnlyAnswers) -> None:  # type: ignore[override]
            directions = self._directions()
            offsets = step * self._spread(directions)
            tangents = (objective.outputs(self._point + offsets) - self._outputs) / step
            self._correct(directions, tangents)

    stages = make(Naive), make()
    naive, noisy = (objective.true_loss(run(stage, objective)) for stage in stages)
    assert noisy < 0.5 * naive


def test_answers_that_do_not_change_are_not_called_smooth() -> None:
    found = measure(OnlyAnswers(0.1), np.zeros(DIM), np.eye(2, DIM))
    assert found.step > STEPS[0]


def test_roughness_tells_smooth_from_rounded() -> None:
    directions = np.eye(2, DIM)
    smooth = measure(OnlyAnswers(), np.zeros(DIM), directions)
    rough = measure(OnlyAnswers(0.1), np.full(DIM, 0.3), directions)
    assert smooth.smooth
    assert smooth.noise == 0
    assert smooth.step < 0.05
    assert not rough.smooth
    assert rough.step >= 0.1
    # Rounding to multiples of g has the variance g^2 / 12 in every output.
    assert 0.1 < rough.noise / (OUTPUTS * 0.1**2 / 12) < 10


def test_roughness_of_overflowing_answers_is_measured_where_there_are_some() -> None:
    class Overflows(OnlyAnswers):
        def outputs(self, points: np.ndarray) -> np.ndarray:
            answers = super().outputs(points)
            answers[np.abs(points).max(1) > 1] = np.nan
            return answers

    found = measure(Overflows(), np.zeros(DIM), np.eye(2, DIM))
    assert found.smooth
    assert np.isfinite(found.error)


@pytest.mark.parametrize("grain", [0.0, 0.1])
def test_the_bill_is_never_above_what_was_announced(grain: float) -> None:
    objective, stage = OnlyAnswers(grain), make()
    while not stage.exhausted:
        announced, before = stage.passes_per_step, objective.passes
        stage.step(objective)
        assert objective.passes - before <= announced


def test_the_bill_of_smooth_answers_is_that_of_derivatives() -> None:
    exact, smooth = LeastSquares(), OnlyAnswers()
    for objective, stage in ((exact, make(GaussNewton)), (smooth, make())):
        for _ in range(MEASURE_EVERY):
            stage.step(objective)
    trials = 4 * MEASURE_EVERY  # of which either may need more
    assert smooth.passes <= exact.passes + differences.PASSES + trials


@pytest.mark.parametrize("grain", [0.0, 0.1])
@pytest.mark.parametrize("steps", [1, MEASURE_EVERY - 1, MEASURE_EVERY + 3])
def test_a_restored_run_goes_on_with_the_same_bits(grain: float, steps: int) -> None:
    objective, stage = OnlyAnswers(grain), make()
    for _ in range(steps):
        stage.step(objective)
    other = make()
    other.restore(copy.deepcopy(stage.state()))
    for one in (stage, other):
        for _ in range(MEASURE_EVERY + 5):
            one.step(objective)
    assert np.array_equal(stage.point, other.point)
    assert stage.state().scalars == other.state().scalars


def test_a_trial_of_rough_answers_is_a_mean() -> None:
    objective, stage = OnlyAnswers(0.1), make()
    stage.step(objective)
    before = objective.passes
    found = stage._outputs_at(objective, stage.point)
    assert objective.passes - before == JITTER
    assert len(np.unique(np.round(found / 0.1, 4) % 1)) > 2  # no longer on the grid
