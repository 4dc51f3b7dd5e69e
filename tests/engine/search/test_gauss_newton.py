"""Gauss-Newton on functions of numpy: its model, its steps, its bill; no torch in sight."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sharpzo_engine.config import ZoConfig
from sharpzo_engine.errors import CheckpointError, ConfigError
from sharpzo_engine.search.gradients import ForwardDerivatives, RandomGradient
from sharpzo_engine.search.stages import gauss_newton as module
from sharpzo_engine.search.stages.gauss_newton import Composite, GaussNewton
from sharpzo_engine.search.stages.sparse_zo import SparseZo
from sharpzo_engine.search.stages.stage import StageState

DIM, OUTPUTS = 12, 30
LIMIT = 10**6


class LeastSquares:
    """L(w) = |T(w) - y|^2 / 2 with T(w) = tanh(B w), or B w; counts its passes."""

    def __init__(self, *, linear: bool = False, dim: int = DIM) -> None:
        rng = np.random.default_rng(0)
        self.matrix = rng.normal(size=(OUTPUTS, dim)) / np.sqrt(dim)
        self.linear = linear
        self.target = self.inner(rng.normal(size=dim)) + 0.05 * rng.normal(size=OUTPUTS)
        self.passes = 0
        self.trials: list[np.ndarray] = []
        self.directions: list[np.ndarray] = []

    def inner(self, points: np.ndarray) -> np.ndarray:
        linear = points @ self.matrix.T
        return linear if self.linear else np.tanh(linear)

    def derivative(self, point: np.ndarray) -> np.ndarray:
        """T'(w), as [d, O]."""
        slope = 1.0 if self.linear else 1 - self.inner(point) ** 2
        return (self.matrix.T * slope).astype(np.float64)

    def __call__(self, points: np.ndarray) -> np.ndarray:
        self.passes += len(points)
        return np.array([self.outer_loss(row) for row in self.inner(points)])

    def outputs(self, points: np.ndarray) -> np.ndarray:
        self.passes += len(points)
        self.trials += list(points)
        return self.inner(points).astype(np.float32)

    def tangents(self, point: np.ndarray, directions: np.ndarray) -> np.ndarray:
        self.passes += 1 + len(directions)
        self.directions.append(directions)
        return (directions @ self.derivative(point)).astype(np.float32)

    def directional_derivatives(
        self, point: np.ndarray, directions: np.ndarray
    ) -> tuple[float, np.ndarray]:
        self.passes += 1 + len(directions)
        residual = self.inner(point) - self.target
        return self.outer_loss(self.inner(point)), directions @ self.derivative(point) @ residual

    def outer_loss(self, outputs: np.ndarray) -> float:
        return 0.5 * float(((outputs - self.target) ** 2).sum())

    def quadratic_model(
        self, outputs: np.ndarray, jacobian: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        rows = jacobian.astype(np.float64)
        return rows @ (outputs - self.target), rows @ rows.T


class SoftmaxRegression(LeastSquares):
    """The same T as logits of ten images in three classes, under cross-entropy."""

    LABELS = np.arange(10) % 3

    def chances(self, outputs: np.ndarray) -> np.ndarray:
        logits = 3.0 * outputs.reshape(10, 3).astype(np.float64)
        powers = np.exp(logits - logits.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True)

    def residual(self, outputs: np.ndarray) -> np.ndarray:
        return 0.3 * (self.chances(outputs) - np.eye(3)[self.LABELS]).ravel()

    def outer_loss(self, outputs: np.ndarray) -> float:
        return -float(np.log(self.chances(outputs)[np.arange(10), self.LABELS]).mean())

    def directional_derivatives(
        self, point: np.ndarray, directions: np.ndarray
    ) -> tuple[float, np.ndarray]:
        self.passes += 1 + len(directions)
        outputs = self.inner(point)
        slopes = directions @ self.derivative(point) @ self.residual(outputs)
        return self.outer_loss(outputs), slopes

    def quadratic_model(
        self, outputs: np.ndarray, jacobian: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        rows, p = jacobian.astype(np.float64), self.chances(outputs)
        change = 3.0 * rows.reshape(-1, 10, 3)
        centred = change - (change * p).sum(-1, keepdims=True)
        flat = (centred * np.sqrt(p)).reshape(len(rows), -1)
        return rows @ self.residual(outputs), flat @ flat.T / 10


class Resting(LeastSquares):
    """Its model sees no slope anywhere: the stage learns, and never moves."""

    def quadratic_model(self, _: np.ndarray, jacobian: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(len(jacobian)), np.eye(len(jacobian))


class Unmoved(LeastSquares):
    """No point is better than another."""

    def outer_loss(self, _: np.ndarray) -> float:
        return 1.0


class Scripted(LeastSquares):
    """g = e_1 and H = 0.4 I, so that 1.2 is predicted at lambda = 0.1; trials gain what is said."""

    PREDICTED = 1.2

    def __init__(self, gain: float, broken: float | None = None) -> None:
        super().__init__()
        self.gain, self.broken = gain, broken

    def outputs(self, points: np.ndarray) -> np.ndarray:
        rows = super().outputs(points)
        return rows if self.broken is None or len(self.trials) == 1 else 0 * rows + self.broken

    def outer_loss(self, _: np.ndarray) -> float:
        return 5.0 if len(self.trials) == 1 else 5.0 - self.gain

    def quadratic_model(self, _: np.ndarray, jacobian: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.eye(len(jacobian))[0], 0.4 * np.eye(len(jacobian))


def gauss_newton(
    start: np.ndarray | None = None, horizon: int = LIMIT, seed: int = 0, **changes: Any
) -> GaussNewton:
    config = ZoConfig.model_validate({"queries": 4, "memory": 1, **changes})
    point = np.zeros(DIM) if start is None else start
    return GaussNewton(config, point, np.random.default_rng(seed), horizon)


def scalar(stage: GaussNewton, name: str) -> Any:
    return stage.state().scalars[name]


def array(stage: GaussNewton, name: str) -> np.ndarray:
    return stage.state().arrays[name]


def steps(stage: GaussNewton, objective: Composite, count: int) -> GaussNewton:
    for _ in range(count):
        stage.step(objective)
    return stage


# --- descent


def test_the_toys_show_what_the_stage_asks_for() -> None:
    assert isinstance(LeastSquares(), Composite)
    assert isinstance(SoftmaxRegression(), Composite)


def adam(objective: LeastSquares, passes: int) -> float:
    """The best of Adam's losses at three step sizes, on exact slopes and as many passes."""
    losses = []
    for rate in (0.03, 0.1, 0.3):
        objective.passes, rng = 0, np.random.default_rng(0)
        config = ZoConfig(learning_rate=rate, queries=4, optimizer="adam")
        estimator = RandomGradient(ForwardDerivatives(), 4, "orthogonal", rng)
        stage = SparseZo(config, np.zeros(DIM), rng, passes // 5, estimator=estimator)
        while not stage.exhausted:
            stage.step(objective)
        losses.append(objective(stage.point[None])[0])
    return float(min(losses))


def minimum(objective: LeastSquares) -> float:
    stage = gauss_newton(queries=DIM, memory=0)
    return float(objective(steps(stage, objective, 60).point[None])[0])


@pytest.mark.parametrize(("problem", "share"), [(LeastSquares, 0.01), (SoftmaxRegression, 0.4)])
def test_it_descends_much_faster_than_adam_on_as_many_passes(
    problem: Callable[[], LeastSquares], share: float
) -> None:
    objective = problem()
    stage = gauss_newton()
    while objective.passes < 120:
        stage.step(objective)
    lowest, spent = minimum(problem()), objective.passes
    ahead = objective(stage.point[None])[0] - lowest
    assert ahead < share * (adam(problem(), spent) - lowest)


def test_one_whole_step_solves_a_linear_least_squares_problem() -> None:
    objective = LeastSquares(linear=True)
    stage = steps(gauss_newton(queries=DIM, damping=1e-8), objective, 1)
    solution = np.linalg.lstsq(objective.matrix, objective.target, rcond=None)[0]
    np.testing.assert_allclose(stage.point, solution, atol=1e-5)


def test_damping_is_added_to_the_curvature() -> None:
    objective = LeastSquares(linear=True)
    stage = steps(gauss_newton(queries=DIM, damping=2.0), objective, 1)
    damped = objective.matrix.T @ objective.matrix + 2.0 * np.eye(DIM)
    expected = np.linalg.solve(damped, objective.matrix.T @ objective.target)
    np.testing.assert_allclose(stage.point, expected, rtol=1e-4)


def test_the_loss_of_a_step_is_that_of_its_point_and_never_rises() -> None:
    objective, stage = LeastSquares(), gauss_newton()
    before = objective(stage.point[None])[0]
    for _ in range(30):
        loss = stage.step(objective).loss
        assert loss == pytest.approx(objective(stage.point[None])[0], rel=1e-5)
        assert loss <= before
        before = loss


# --- the model


@pytest.mark.parametrize("queries", [3, 5, DIM, 3 * DIM])
def test_after_a_sweep_through_the_coordinates_j_is_the_derivative(queries: int) -> None:
    objective, start = Resting(), np.linspace(-1, 1, DIM)
    stage = steps(gauss_newton(start, queries=queries), objective, -(-DIM // queries))
    np.testing.assert_allclose(array(stage, "jacobian"), objective.derivative(start), atol=1e-5)


def test_half_a_sweep_leaves_the_other_coordinates_unknown() -> None:
    stage = steps(gauss_newton(queries=3), Resting(), 2)
    known = array(stage, "jacobian").any(1)
    assert known.tolist() == [True] * 6 + [False] * 6


def test_while_it_moves_j_stays_close_to_the_derivative() -> None:
    objective, stage = LeastSquares(), gauss_newton(queries=6)
    steps(stage, objective, 12)
    true = objective.derivative(stage.point)
    assert np.linalg.norm(array(stage, "jacobian") - true) < 0.05 * np.linalg.norm(true)


def test_an_update_leaves_what_is_known_across_its_directions() -> None:
    """J <- J + (D - J U^T) U: along U the tangents, across U what was there."""
    objective, stage = LeastSquares(), gauss_newton(queries=3, memory=1)
    steps(stage, objective, 5)
    before = array(stage, "jacobian")
    stage._learn(objective)
    after, frame = array(stage, "jacobian"), objective.directions[-1]
    across = np.eye(DIM) - frame.T @ frame
    np.testing.assert_allclose(frame @ after, frame @ objective.derivative(stage.point), atol=1e-5)
    np.testing.assert_allclose(across @ after, across @ before, atol=1e-5)


def test_the_secant_of_an_accepted_step_is_learnt() -> None:
    """J s = T(w + s) - T(w), for a T that no tangent describes over that length."""
    objective, stage = LeastSquares(), gauss_newton()
    steps(stage, objective, 2)
    before = stage.point
    stage.step(objective)
    step = stage.point - before
    assert np.linalg.norm(step) > 1e-3
    change = objective.inner(stage.point) - objective.inner(before)
    np.testing.assert_allclose(step @ array(stage, "jacobian"), change, atol=1e-5)


def test_the_secant_of_a_rejected_step_is_learnt_too() -> None:
    objective, stage = Unmoved(), gauss_newton(np.full(DIM, 0.5))
    stage.step(objective)
    step = objective.trials[-1] - stage.point
    change = objective.inner(objective.trials[-1]) - objective.inner(stage.point)
    tangent = step @ objective.derivative(stage.point)
    assert np.linalg.norm(change - tangent) > 1e-2 * np.linalg.norm(change)
    np.testing.assert_allclose(step @ array(stage, "jacobian"), change, atol=1e-5)


# --- directions


def test_directions_are_orthonormal_and_q_in_number() -> None:
    objective = LeastSquares()
    steps(gauss_newton(queries=5, memory=2), objective, 10)
    for directions in objective.directions:
        np.testing.assert_allclose(directions @ directions.T, np.eye(5), atol=1e-10)


def test_no_more_directions_are_asked_for_than_there_are_dimensions() -> None:
    objective = LeastSquares()
    steps(gauss_newton(queries=5 * DIM, memory=3), objective, 3)
    assert {len(directions) for directions in objective.directions} == {DIM}


def length_within(directions: np.ndarray, vector: np.ndarray) -> float:
    """Share of a vector's length that lies in the span of orthonormal directions."""
    return float(np.linalg.norm(directions @ vector) / np.linalg.norm(vector))


def test_the_last_steps_are_among_the_directions() -> None:
    objective, stage = LeastSquares(), gauss_newton(queries=6, memory=2)
    points = [stage.point]
    for _ in range(6):
        stage.step(objective)
        points.append(stage.point)
    last, before, oldest = (points[i] - points[i - 1] for i in (-2, -3, -4))
    directions = objective.directions[-1]
    assert length_within(directions, last) == pytest.approx(1, abs=1e-9)
    assert length_within(directions, before) == pytest.approx(1, abs=1e-9)
    assert length_within(directions, oldest) < 0.999


def test_the_models_gradient_is_among_the_directions() -> None:
    objective, stage = LeastSquares(), gauss_newton(queries=3, memory=0)
    seen = []
    exact = objective.quadratic_model

    def spy(outputs: np.ndarray, jacobian: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seen.append(exact(outputs, jacobian)[0])
        return exact(outputs, jacobian)

    objective.quadratic_model = spy  # type: ignore[method-assign]
    steps(stage, objective, 4)
    assert length_within(objective.directions[-1], seen[-2]) == pytest.approx(1, abs=1e-9)


def test_without_memory_no_step_is_kept() -> None:
    objective, stage = LeastSquares(), gauss_newton(queries=3, memory=0)
    steps(stage, objective, 6)
    assert array(stage, "recent").shape == (0, DIM)
    assert objective(stage.point[None])[0] < 0.5 * objective(np.zeros((1, DIM)))[0]


def test_a_single_query_goes_through_the_coordinates() -> None:
    objective = LeastSquares()
    steps(gauss_newton(queries=1, memory=4), objective, 5)
    looked_at = [int(np.abs(d).argmax()) for d in objective.directions]
    assert looked_at == [0, 1, 2, 3, 4]


# --- trials and damping


@pytest.mark.parametrize(
    ("ratio", "factor"),
    [(1.0, 0.5), (0.77, 0.5), (0.73, 1.0), (0.5, 1.0), (0.27, 1.0), (0.23, 3.0), (0.01, 3.0)],
)
def test_damping_follows_the_ratio_of_actual_to_predicted_decrease(
    ratio: float, factor: float
) -> None:
    stage = steps(gauss_newton(), Scripted(ratio * Scripted.PREDICTED), 1)
    assert scalar(stage, "damping") == pytest.approx(0.1 * factor)


def test_a_step_that_lowers_the_loss_is_taken_at_once() -> None:
    """s = -(H + lambda I)^-1 g = -e_1 / 0.5, however poor the prediction was."""
    objective = Scripted(0.01)
    stage = steps(gauss_newton(), objective, 1)
    np.testing.assert_allclose(stage.point, -2.0 * np.eye(DIM)[0], rtol=1e-6)
    assert len(objective.trials) == 1 + 1


@pytest.mark.parametrize("gain", [0.0, -1.0])
def test_a_step_that_does_not_lower_the_loss_is_not_taken(gain: float) -> None:
    objective, stage = Scripted(gain), gauss_newton()
    assert stage.step(objective).loss == 5.0
    np.testing.assert_array_equal(stage.point, np.zeros(DIM))
    assert scalar(stage, "damping") == pytest.approx(0.1 * 3**4)


def test_trials_get_shorter_until_one_is_taken_or_four_have_failed() -> None:
    objective, stage = Scripted(-1.0), gauss_newton()
    stage.step(objective)
    lengths = [-trial[0] for trial in objective.trials[1:]]
    np.testing.assert_allclose(lengths, [1 / (0.4 + 0.1 * 3**i) for i in range(4)], rtol=1e-6)


@pytest.mark.parametrize(("start", "gain", "bound"), [(1e-8, 9.0, 1e-8), (1e6, -1.0, 8.1e7)])
def test_damping_stays_positive_and_finite(start: float, gain: float, bound: float) -> None:
    stage = gauss_newton(damping=start)
    stage.step(Scripted(gain))
    assert scalar(stage, "damping") == pytest.approx(bound)
    for _ in range(3):
        stage.step(Scripted(-1.0))
    assert scalar(stage, "damping") <= 1e8


@pytest.mark.parametrize("broken", [np.nan, np.inf])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_trial_that_overflows_raises_the_damping_and_teaches_nothing(broken: float) -> None:
    objective, stage = Scripted(1.0, broken), gauss_newton()
    stage.step(objective)
    np.testing.assert_array_equal(stage.point, np.zeros(DIM))
    assert scalar(stage, "damping") == pytest.approx(0.1 * 10**4)
    expected = (
        objective.directions[0].T @ objective.directions[0] @ objective.derivative(np.zeros(DIM))
    )
    np.testing.assert_allclose(array(stage, "jacobian"), expected, atol=1e-6)


def test_a_trial_whose_loss_is_not_a_number_is_not_taken() -> None:
    stage = gauss_newton()
    stage.step(Scripted(np.nan))
    np.testing.assert_array_equal(stage.point, np.zeros(DIM))
    assert scalar(stage, "damping") == pytest.approx(0.1 * 10**4)


def test_a_tangent_that_overflows_is_left_out_and_the_others_are_learnt() -> None:
    class OneBroken(Resting):
        def tangents(self, point: np.ndarray, directions: np.ndarray) -> np.ndarray:
            rows = super().tangents(point, directions)
            rows[1, 7] = np.nan
            return rows

    objective = OneBroken()
    stage = steps(gauss_newton(queries=4), objective, 1)
    jacobian = array(stage, "jacobian")
    expected = objective.derivative(np.zeros(DIM))
    np.testing.assert_array_equal(jacobian[1], 0)
    np.testing.assert_allclose(jacobian[[0, 2, 3]], expected[[0, 2, 3]], atol=1e-6)


def test_a_model_that_is_not_finite_leaves_the_point_where_it_is() -> None:
    class Broken(LeastSquares):
        def quadratic_model(
            self, _: np.ndarray, jacobian: np.ndarray
        ) -> tuple[np.ndarray, np.ndarray]:
            return np.full(len(jacobian), np.nan), np.eye(len(jacobian))

    stage, objective = gauss_newton(), Broken()
    stage.step(objective)
    np.testing.assert_array_equal(stage.point, np.zeros(DIM))
    assert len(objective.trials) == 1


# --- the bill and the end


@pytest.mark.parametrize("problem", [LeastSquares, SoftmaxRegression, Unmoved, Resting])
def test_a_step_takes_no_more_passes_than_announced(problem: Callable[[], LeastSquares]) -> None:
    objective, stage = problem(), gauss_newton()
    for _ in range(25):
        announced, before = stage.passes_per_step, objective.passes
        stage.step(objective)
        assert objective.passes - before <= announced


def test_the_costliest_step_takes_as_many_passes_as_announced() -> None:
    """The first outputs, tangents at 1 + q, and four trials in vain."""
    objective, stage = Unmoved(), gauss_newton(queries=4)
    announced = stage.passes_per_step
    stage.step(objective)
    assert objective.passes == announced == 1 + (1 + 4) + 4


def test_a_step_that_succeeds_at_once_takes_q_and_two_passes() -> None:
    objective, stage = LeastSquares(linear=True), gauss_newton(queries=4)
    stage.step(objective)
    before = objective.passes
    stage.step(objective)
    assert objective.passes - before == (1 + 4) + 1


def test_it_is_exhausted_after_eight_steps_in_vain() -> None:
    objective, stage = Unmoved(), gauss_newton()
    for _ in range(8):
        assert not stage.exhausted
        stage.step(objective)
    assert stage.exhausted


def test_a_step_that_succeeds_forgives_the_ones_in_vain() -> None:
    stage = gauss_newton(np.full(DIM, 0.5))
    steps(stage, Resting(), 7)
    stage.step(LeastSquares())
    assert scalar(stage, "fruitless") == 0
    steps(stage, Resting(), 7)
    assert not stage.exhausted


def test_it_is_exhausted_at_its_horizon() -> None:
    stage = gauss_newton(horizon=3)
    counts = []
    while not stage.exhausted:
        stage.step(LeastSquares())
        counts.append(stage.steps)
    assert counts == [1, 2, 3]


def test_a_plain_callable_is_refused() -> None:
    with pytest.raises(ConfigError, match="objective with outputs"):
        gauss_newton().step(lambda points: points.sum(1))


# --- subsets


@pytest.fixture
def room_for_five(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_JACOBIAN", 5 * OUTPUTS + 3)


@pytest.mark.usefixtures("room_for_five")
def test_with_little_room_only_active_coordinates_move_and_are_looked_at() -> None:
    objective, stage = LeastSquares(), gauss_newton(queries=3)
    for _ in range(40):
        before = stage.point
        stage.step(objective)
        active = array(stage, "active")
        assert array(stage, "jacobian").shape == (5, OUTPUTS)
        assert set(np.flatnonzero(stage.point != before)) <= set(active)
        assert set(np.flatnonzero(objective.directions[-1].any(0))) <= set(active)


@pytest.mark.usefixtures("room_for_five")
def test_other_coordinates_take_their_turn_after_four_rounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Five active coordinates, three a step: 20 turns are over after seven steps."""
    monkeypatch.setattr(module, "FRUITLESS_STEPS", 1000)
    objective, stage = Resting(), gauss_newton(queries=3)
    subsets = [tuple(array(steps(stage, objective, 1), "active")) for _ in range(14)]
    assert len(set(subsets[:7])) == len(set(subsets[7:])) == 1
    assert subsets[6] != subsets[7]
    assert all(len(set(subset)) == 5 for subset in subsets)


@pytest.mark.usefixtures("room_for_five")
def test_a_subset_that_no_longer_helps_is_drawn_anew_once_before_the_stage_ends() -> None:
    objective, stage = Resting(), gauss_newton(queries=3)
    subsets = []
    while not stage.exhausted:
        stage.step(objective)
        subsets.append(tuple(array(stage, "active")))
    assert len(subsets) == module.FRUITLESS_STEPS == 8
    assert len(set(subsets[:4])) == len(set(subsets[4:])) == 1
    assert subsets[3] != subsets[4]


@pytest.mark.usefixtures("room_for_five")
def test_a_new_subset_starts_without_what_belonged_to_the_last() -> None:
    objective, stage = LeastSquares(), gauss_newton(queries=3)
    while not array(stage, "active").size or scalar(stage, "turn") < 20:
        stage.step(objective)
    stage._choose_active()
    assert not array(stage, "jacobian").any()
    assert (
        array(stage, "gradient").size == array(stage, "recent").size == scalar(stage, "turn") == 0
    )


@pytest.mark.usefixtures("room_for_five")
def test_all_coordinates_have_their_turn_and_the_loss_falls() -> None:
    objective, stage = LeastSquares(), gauss_newton(queries=3)
    seen: set[int] = set()
    for _ in range(140):
        stage.step(objective)
        seen |= set(array(stage, "active").tolist())
    assert seen == set(range(DIM))
    lowest, start = minimum(LeastSquares()), objective(np.zeros((1, DIM)))[0]
    assert objective(stage.point[None])[0] - lowest < 0.02 * (start - lowest)


def test_there_is_always_room_for_q_coordinates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_JACOBIAN", 1)
    stage = steps(gauss_newton(queries=3), LeastSquares(), 1)
    assert array(stage, "active").size == 3


# --- state


RUN = 20


@pytest.mark.usefixtures("room_for_five")
@pytest.mark.parametrize("interruption", range(RUN + 1))
def test_a_restored_run_goes_on_bit_for_bit(interruption: int) -> None:
    whole, objective = gauss_newton(queries=3, memory=2), LeastSquares()
    steps(whole, objective, interruption)
    state = whole.state()
    steps(whole, objective, RUN - interruption)
    resumed = gauss_newton(np.ones(DIM), horizon=1, seed=9, queries=3, memory=2)
    resumed.restore(state)
    steps(resumed, objective, RUN - interruption)
    ours, theirs = resumed.state(), whole.state()
    assert ours.scalars == theirs.scalars
    for name, expected in theirs.arrays.items():
        assert ours.arrays[name].dtype == expected.dtype
        assert ours.arrays[name].tobytes() == expected.tobytes(), name


@pytest.mark.usefixtures("room_for_five")
def test_the_run_that_is_interrupted_changes_its_subset() -> None:
    stage, objective = gauss_newton(queries=3, memory=2), LeastSquares()
    subsets = {tuple(array(steps(stage, objective, 1), "active")) for _ in range(RUN)}
    assert len(subsets) > 1


def test_a_state_stays_as_it_was_while_runs_go_on() -> None:
    stage, objective = gauss_newton(), LeastSquares()
    state = steps(stage, objective, 3).state()
    kept = copy.deepcopy(state)
    other = gauss_newton()
    other.restore(state)
    steps(other, objective, 2)
    steps(stage, objective, 2)
    for name, expected in kept.arrays.items():
        np.testing.assert_array_equal(state.arrays[name], expected)


def test_a_state_read_from_a_file_need_not_be_writable() -> None:
    stage, objective = gauss_newton(), LeastSquares()
    state = steps(stage, objective, 3).state()
    for saved in state.arrays.values():
        saved.setflags(write=False)
    resumed = gauss_newton()
    resumed.restore(StageState(state.arrays, state.scalars))
    assert resumed.step(objective).loss < scalar(stage, "loss")


def test_the_state_of_another_space_is_refused() -> None:
    state = steps(gauss_newton(), LeastSquares(), 1).state()
    with pytest.raises(CheckpointError):
        gauss_newton(np.zeros(5)).restore(state)
