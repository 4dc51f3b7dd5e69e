"""Estimators on functions whose gradient is known; no torch in sight."""

import numpy as np
import pytest

from sharpzo_engine.errors import ConfigError
from sharpzo_engine.search import gradients
from sharpzo_engine.search.gradients import (
    Backpropagation,
    BlackBox,
    CentralDifferences,
    CoordinateGradient,
    ForwardDerivatives,
    GradientEstimator,
    RandomGradient,
    draw_directions,
)

DIM = 24
RNG = np.random.default_rng(0)
CURVATURE = RNG.uniform(0.5, 2, DIM)
CENTRE = RNG.normal(size=DIM)


class Quadratic:
    """Counts its evaluations."""

    def __init__(self) -> None:
        self.evaluations = 0

    def __call__(self, points: np.ndarray) -> np.ndarray:
        self.evaluations += len(points)
        return 0.5 * (CURVATURE * (points - CENTRE) ** 2).sum(1)

    def true_gradient(self, point: np.ndarray) -> np.ndarray:
        return CURVATURE * (point - CENTRE)


class Differentiable(Quadratic):
    """Offers both exact modes, and counts them as the engine does."""

    def directional_derivatives(
        self, point: np.ndarray, directions: np.ndarray
    ) -> tuple[float, np.ndarray]:
        self.evaluations += 1 + len(directions)
        return float(Quadratic()(point[None])[0]), directions @ self.true_gradient(point)

    def gradient(self, point: np.ndarray) -> tuple[float, np.ndarray]:
        self.evaluations += 1
        return float(Quadratic()(point[None])[0]), self.true_gradient(point)


def coordinate_gradient(objective: BlackBox, point: np.ndarray, step: float) -> np.ndarray:
    return CoordinateGradient(CentralDifferences(step))(objective, point).gradient


class Fixed:
    """A generator that hands out given numbers."""

    def __init__(self, directions: np.ndarray) -> None:
        self.directions = directions

    def standard_normal(self, shape: tuple[int, int]) -> np.ndarray:
        assert self.directions.shape == shape
        return self.directions


def random_gradient(
    objective: BlackBox, point: np.ndarray, step: float, directions: np.ndarray
) -> tuple[np.ndarray, float]:
    rng: np.random.Generator = Fixed(directions)  # type: ignore[assignment]
    estimator = RandomGradient(CentralDifferences(step), len(directions), "gaussian", rng)
    estimate = estimator(objective, point)
    return estimate.gradient, estimate.loss


def test_coordinate_gradient_is_exact_on_a_quadratic_with_2d_evaluations() -> None:
    objective, point = Quadratic(), RNG.normal(size=DIM)
    estimate = coordinate_gradient(objective, point, 1e-3)
    np.testing.assert_allclose(estimate, objective.true_gradient(point), rtol=1e-7)
    assert objective.evaluations == 2 * DIM


def test_coordinate_gradient_in_blocks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    objective, point = Quadratic(), RNG.normal(size=DIM)
    whole = coordinate_gradient(objective, point, 1e-3)
    monkeypatch.setattr(gradients, "DIRECTIONS_PER_CALL", 7)
    np.testing.assert_array_equal(coordinate_gradient(objective, point, 1e-3), whole)


def test_central_differences_cancel_the_even_orders() -> None:
    estimate = coordinate_gradient(lambda p: (p**2 + p**3).sum(1), np.full(3, 0.5), 0.1)
    np.testing.assert_allclose(estimate, 2 * 0.5 + 3 * 0.25 + 0.1**2, rtol=1e-9)


@pytest.mark.parametrize("law", ["gaussian", "orthogonal"])
def test_random_gradient_averages_to_the_gradient(law: str) -> None:
    objective, point, rng = Quadratic(), np.zeros(DIM), np.random.default_rng(1)
    directions = [draw_directions(4, DIM, rng, law) for _ in range(5000)]
    mean = np.mean([random_gradient(objective, point, 1e-3, u)[0] for u in directions], axis=0)
    true = objective.true_gradient(point)
    assert np.linalg.norm(mean - true) < 0.05 * np.linalg.norm(true)
    assert objective.evaluations == 5000 * 4 * 2


def test_as_many_orthogonal_directions_as_dimensions_give_the_exact_gradient() -> None:
    objective, point = Quadratic(), RNG.normal(size=DIM)
    directions = draw_directions(DIM, DIM, np.random.default_rng(2), "orthogonal")
    estimate, _ = random_gradient(objective, point, 1e-3, directions)
    np.testing.assert_allclose(estimate, objective.true_gradient(point), rtol=1e-6)


def test_random_gradient_returns_the_mean_loss() -> None:
    objective, point = Quadratic(), RNG.normal(size=DIM)
    directions = draw_directions(3, DIM, np.random.default_rng(2))
    _, loss = random_gradient(objective, point, 1e-4, directions)
    assert loss == pytest.approx(float(objective(point[None])[0]), rel=1e-5)


def test_masked_coordinates_stay_exactly_zero() -> None:
    mask = np.zeros(DIM)
    mask[[1, 5, 6]] = 1
    for law in ("gaussian", "orthogonal"):
        directions = draw_directions(5, DIM, np.random.default_rng(3), law, mask)
        rng = np.random.default_rng(3)
        estimator = RandomGradient(CentralDifferences(1e-3), 5, law, rng)
        estimate = estimator(Quadratic(), np.zeros(DIM), mask)
        assert set(np.flatnonzero(estimate.gradient)) == {1, 5, 6}
        assert set(np.flatnonzero(directions.any(0))) == {1, 5, 6}


def test_orthogonal_directions_have_the_norm_of_gaussian_ones() -> None:
    directions = draw_directions(8, DIM, np.random.default_rng(4), "orthogonal")
    np.testing.assert_allclose(directions @ directions.T, DIM * np.eye(8), atol=1e-12)


def test_a_loss_that_is_not_a_number_counts_as_flat() -> None:
    def objective(points: np.ndarray) -> np.ndarray:
        return np.where(points[:, 0] != 0, np.nan, points.sum(1))

    np.testing.assert_allclose(coordinate_gradient(objective, np.zeros(3), 0.1), [0, 1, 1])


EXACT = ForwardDerivatives()
DIFFERENCES = CentralDifferences(1e-3)


@pytest.mark.parametrize(
    ("estimator", "passes"),
    [
        (CoordinateGradient(DIFFERENCES), 2 * DIM),
        (CoordinateGradient(EXACT), 1 + DIM),
        (RandomGradient(DIFFERENCES, 5, "gaussian", RNG), 10),
        (RandomGradient(EXACT, 5, "gaussian", RNG), 6),
        (Backpropagation(), 1),
    ],
)
def test_estimators_cost_what_they_say(estimator: GradientEstimator, passes: int) -> None:
    objective = Differentiable()
    estimator(objective, np.ones(DIM))
    assert objective.evaluations == estimator.passes(DIM) == passes


@pytest.mark.parametrize(
    "estimator",
    [
        CoordinateGradient(EXACT),
        RandomGradient(EXACT, DIM, "orthogonal", np.random.default_rng(5)),
        RandomGradient(DIFFERENCES, DIM, "orthogonal", np.random.default_rng(5)),
        Backpropagation(),
    ],
)
def test_whole_frames_give_the_exact_gradient(estimator: GradientEstimator) -> None:
    objective, point = Differentiable(), RNG.normal(size=DIM)
    estimate = estimator(objective, point)
    np.testing.assert_allclose(estimate.gradient, objective.true_gradient(point), rtol=1e-6)
    assert estimate.loss == pytest.approx(float(objective(point[None])[0]), rel=1e-4)


@pytest.mark.parametrize("estimator", [CoordinateGradient(EXACT), Backpropagation()])
def test_whole_gradients_respect_the_mask(estimator: GradientEstimator) -> None:
    mask = np.zeros(DIM)
    mask[3] = 1
    assert set(np.flatnonzero(estimator(Differentiable(), np.ones(DIM), mask).gradient)) == {3}


@pytest.mark.parametrize("estimator", [CoordinateGradient(EXACT), Backpropagation()])
def test_what_an_objective_does_not_offer_is_refused(estimator: GradientEstimator) -> None:
    with pytest.raises(ConfigError, match="needs an objective"):
        estimator(Quadratic(), np.ones(DIM))


def test_orthogonal_directions_do_not_lean_to_one_side() -> None:
    """QR alone has signs of its own: its first vectors would point against their coordinate."""
    rng = np.random.default_rng(6)
    first = [draw_directions(1, 2, rng, "orthogonal")[0, 0] for _ in range(400)]
    assert abs(np.mean(first)) < 0.25
    normal = np.random.default_rng(7).standard_normal((1, DIM))
    (direction,) = draw_directions(1, DIM, np.random.default_rng(7), "orthogonal")
    np.testing.assert_allclose(direction, normal[0] * np.sqrt(DIM) / np.linalg.norm(normal))


def test_the_loss_of_a_whole_gradient_is_the_mean_over_its_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gradients, "DIRECTIONS_PER_CALL", DIM // 2)
    objective, step = Quadratic(), 0.5
    estimate = CoordinateGradient(CentralDifferences(step))(objective, CENTRE)
    assert estimate.loss == pytest.approx(0.5 * step**2 * CURVATURE.mean(), rel=1e-9)


class Overflowing(Differentiable):
    def true_gradient(self, point: np.ndarray) -> np.ndarray:
        gradient = super().true_gradient(point)
        gradient[2] = np.nan
        return gradient

    def directional_derivatives(
        self, point: np.ndarray, directions: np.ndarray
    ) -> tuple[float, np.ndarray]:
        slopes = directions @ Quadratic.true_gradient(self, point)
        return 0.0, np.where(directions[:, 2] != 0, np.inf, slopes)


@pytest.mark.parametrize("estimator", [CoordinateGradient(EXACT), Backpropagation()])
def test_an_exact_slope_that_overflows_counts_as_flat(estimator: GradientEstimator) -> None:
    gradient = estimator(Overflowing(), np.ones(DIM)).gradient
    expected = Quadratic().true_gradient(np.ones(DIM))
    expected[2] = 0
    np.testing.assert_allclose(gradient, expected)
