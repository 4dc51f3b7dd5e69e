"""Both stages on functions of numpy: what they compute, count, and restore."""

import numpy as np
import pytest

from sharpzo_engine.config import CmaConfig, ZoConfig
from sharpzo_engine.errors import CheckpointError
from sharpzo_engine.search.stages.sharp_cma import SharpCma
from sharpzo_engine.search.stages.sparse_zo import SparseZo, prune_mask
from sharpzo_engine.search.stages.stage import StageState

DIM = 30


class Sphere:
    """|w - 1|^2; remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[np.ndarray] = []

    def __call__(self, points: np.ndarray) -> np.ndarray:
        self.calls.append(points.copy())
        return ((points - 1) ** 2).sum(1)

    @property
    def evaluations(self) -> int:
        return sum(map(len, self.calls))


def cma(seed: int = 0, **changes: object) -> SharpCma:
    values = {"population_size": 12, "sharpness_estimator": "zo", **changes}
    config = CmaConfig.model_validate(values)
    return SharpCma(config, np.zeros(DIM), np.random.default_rng(seed))


def zo(horizon: int = 100, start: np.ndarray | None = None, **changes: object) -> SparseZo:
    point = np.zeros(DIM) if start is None else start
    return SparseZo(ZoConfig.model_validate(changes), point, np.random.default_rng(0), horizon)


# --- stage 1


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
@pytest.mark.parametrize("bound", [None, 5.0])
def test_cma_descends(covariance: str, bound: float | None) -> None:
    stage, sphere = cma(covariance=covariance, bound=bound), Sphere()
    outcomes = [stage.step(sphere) for _ in range(60)]
    assert outcomes[-1].loss < 0.2 * outcomes[0].loss
    assert sphere(stage.point[None])[0] < 0.2 * DIM


def test_a_generation_costs_2d_plus_s_evaluations() -> None:
    stage, sphere = cma(), Sphere()
    for generation in range(1, 4):
        assert stage.passes_per_step == 2 * DIM + 12
        stage.step(sphere)
        assert sphere.evaluations == generation * (2 * DIM + 12)


def test_without_sharpness_a_generation_costs_s_evaluations() -> None:
    stage, sphere = cma(sharpness_estimator="none"), Sphere()
    assert stage.step(sphere).sharpness is None
    assert sphere.evaluations == 12


def test_a_direction_serves_several_generations() -> None:
    stage, sphere = cma(sharpness_interval=3), Sphere()
    for _ in range(6):
        stage.step(sphere)
    assert sphere.evaluations == 2 * (2 * DIM) + 6 * 12


def test_the_perturbation_is_the_normalised_gradient_times_rho() -> None:
    """eps = rho g / |g| at theta = 0, where the sphere's gradient is -2 everywhere."""
    with_sharpness, without = Sphere(), Sphere()
    outcome = cma(rho=0.5).step(with_sharpness)
    cma(sharpness_estimator="none").step(without)
    shift = with_sharpness.calls[-1] - without.calls[-1]
    np.testing.assert_allclose(shift, np.full((12, DIM), -0.5 / np.sqrt(DIM)), rtol=1e-6)
    assert outcome.sharpness == pytest.approx(0.5 * 2 * np.sqrt(DIM), rel=1e-6)


def test_the_gradient_is_taken_at_the_mean() -> None:
    stage, sphere = cma(), Sphere()
    for _ in range(3):
        mean = stage.point
        stage.step(sphere)
    pairs = sphere.calls[-2]
    np.testing.assert_allclose(pairs.mean(0), mean, atol=1e-12)


def test_unperturbed_candidates_are_handed_to_the_update() -> None:
    """With a shift that costs nothing, the search must move as without it."""

    def blind_to_shift(points: np.ndarray) -> np.ndarray:
        return ((points - points.mean(0)) ** 2).sum(1)

    shifted, plain = cma(rho=3.0), cma(sharpness_estimator="none")
    for _ in range(3):
        shifted.step(blind_to_shift)
        plain.step(blind_to_shift)
    np.testing.assert_allclose(shifted.point, plain.point, atol=1e-9)


def test_nan_losses_rank_last() -> None:
    def half_broken(points: np.ndarray) -> np.ndarray:
        return np.where(points[:, 0] > 0, np.nan, ((points - 1) ** 2).sum(1))

    stage = cma(sharpness_estimator="none")
    for _ in range(10):
        outcome = stage.step(half_broken)
    assert np.isfinite(outcome.loss)
    assert np.isfinite(stage.point).all()
    assert stage.point[0] < 0


def test_stage_1_leaves_the_global_generator_alone() -> None:
    np.random.seed(7)  # noqa: NPY002 - the global generator is what is tested
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    cma().step(Sphere())
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_the_loss_of_a_generation_is_its_lowest() -> None:
    stage, sphere = cma(sharpness_estimator="none"), Sphere()
    assert stage.step(sphere).loss == Sphere()(sphere.calls[-1]).min()


def test_worth_validating_are_first_the_mean_then_the_best_candidate() -> None:
    stage, sphere = cma(sharpness_estimator="none"), Sphere()
    for _ in range(3):
        stage.step(sphere)
        mean, best = stage.candidates
        np.testing.assert_array_equal(mean, stage.point)
        candidates = sphere.calls[-1]
        np.testing.assert_array_equal(best, candidates[Sphere()(candidates).argmin()])


def test_a_cheaper_black_box_ranks_and_the_gradient_is_not_its_business() -> None:
    values = {"population_size": 12, "sharpness_estimator": "zo"}
    cheap, exact = Sphere(), Sphere()
    rng = np.random.default_rng(0)
    stage = SharpCma(CmaConfig.model_validate(values), np.zeros(DIM), rng, ranking=cheap)
    stage.step(exact)
    assert (cheap.evaluations, exact.evaluations) == (12, 2 * DIM)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_only_the_full_covariance_learns_how_coordinates_go_together(covariance: str) -> None:
    def valley(points: np.ndarray) -> np.ndarray:
        return points.sum(1) ** 2 + 0.01 * (points**2).sum(1)

    stage = cma(covariance=covariance, sharpness_estimator="none")
    for _ in range(40):
        stage.step(valley)
    learnt = np.array(stage._strategy.sm.covariance_matrix)
    between = learnt[~np.eye(DIM, dtype=bool)] if learnt.ndim == 2 else np.zeros(1)
    assert between.any() == (covariance == "full")


@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_no_candidate_leaves_the_box(side: float) -> None:
    sphere = Sphere()
    stage = cma(bound=0.5, sigma=1.0, sharpness_estimator="none")
    for _ in range(10):
        stage.step(lambda points: sphere(side * points))
    reached = side * np.concatenate(sphere.calls)
    assert np.abs(reached).max() <= 0.5
    assert (side * reached).max() > 0.45


def test_the_sharpness_of_a_direction_in_use_survives_a_restore() -> None:
    whole = cma(sharpness_interval=4)
    whole.step(Sphere())
    resumed = cma(sharpness_interval=4)
    resumed.restore(whole.state())
    assert resumed.step(Sphere()).sharpness == whole.step(Sphere()).sharpness != 0


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
@pytest.mark.parametrize("interruption", [0, 1, 7, 20])
def test_a_restored_cma_goes_on_bit_for_bit(interruption: int, covariance: str) -> None:
    options = {"covariance": covariance, "sharpness_interval": 3, "bound": 5.0}
    whole = cma(**options)
    for step in range(30):
        if step == interruption:
            state = whole.state()
        whole.step(Sphere())
    resumed = cma(**options)
    resumed.restore(state)
    for _ in range(30 - interruption):
        resumed.step(Sphere())
    assert resumed.point.tobytes() == whole.point.tobytes()


@pytest.mark.parametrize("broken", [0.5, 1.0])
def test_a_cma_whose_losses_were_not_numbers_has_a_finite_state_and_goes_on(broken: float) -> None:
    """`broken` of the candidates, at least; a file of infinities would be refused."""

    def half_broken(points: np.ndarray) -> np.ndarray:
        order = points[:, 0].argsort().argsort()
        return np.where(order < broken * len(points), np.nan, ((points - 1) ** 2).sum(1))

    whole = cma(sharpness_estimator="none")
    for step in range(8):
        if step == 4:
            state = whole.state()
        whole.step(half_broken)
    assert all(np.isfinite(array).all() for array in state.arrays.values())
    resumed = cma(sharpness_estimator="none")
    resumed.restore(state)
    for _ in range(4):
        resumed.step(half_broken)
    for name, expected in whole.state().arrays.items():
        assert resumed.state().arrays[name].tobytes() == expected.tobytes()
    assert [p.tobytes() for p in resumed.candidates] == [p.tobytes() for p in whole.candidates]


def test_the_state_of_another_space_is_refused() -> None:
    state = cma().state()
    with pytest.raises(CheckpointError):
        SharpCma(CmaConfig(), np.zeros(5), np.random.default_rng(0)).restore(state)


# --- stage 2


def test_sgd_is_eta_times_the_estimate() -> None:
    """With all directions of an orthogonal frame the estimate is the gradient: -2 at the origin."""
    stage = zo(optimizer="sgd", schedule="constant", queries=DIM, learning_rate=0.1)
    stage.step(Sphere())
    np.testing.assert_allclose(stage.point, np.full(DIM, 0.2), rtol=1e-6)


def test_the_estimate_is_fresh_in_every_step() -> None:
    """Two steps from 0: w1 = 0.2, and w2 = w1 + 0.1 * 2 * (1 - w1); nothing accumulates."""
    stage = zo(optimizer="sgd", schedule="constant", queries=DIM, learning_rate=0.1)
    stage.step(Sphere())
    stage.step(Sphere())
    np.testing.assert_allclose(stage.point, np.full(DIM, 0.2 + 0.16), rtol=1e-6)


def test_adams_first_step_is_eta_in_every_coordinate() -> None:
    stage = zo(queries=DIM, learning_rate=0.01, schedule="constant")
    stage.step(Sphere())
    np.testing.assert_allclose(stage.point, np.full(DIM, 0.01), rtol=1e-4)


def test_adam_is_adam() -> None:
    """Betas 0.9 and 0.99, retold on the exact gradients of a quadratic of uneven slopes."""
    slopes, w = np.linspace(0.1, 3, DIM), np.full(DIM, 2.0)
    rate, mean, square = 0.05, np.zeros(DIM), np.zeros(DIM)
    stage = zo(start=w, queries=DIM, learning_rate=rate, schedule="constant")
    for t in range(1, 7):
        gradient = slopes * w
        mean, square = 0.9 * mean + 0.1 * gradient, 0.99 * square + 0.01 * gradient**2
        w = w - rate * mean / (1 - 0.9**t) / (np.sqrt(square / (1 - 0.99**t)) + 1e-8)
        stage.step(lambda points: 0.5 * (slopes * points**2).sum(1))
    np.testing.assert_allclose(stage.point, w, rtol=1e-6)


def test_the_denominator_of_adam_is_safe_but_no_brake() -> None:
    """Its epsilon is far below any slope that counts."""
    stage = zo(queries=DIM, learning_rate=0.01, schedule="constant")
    stage.step(lambda points: 1e-4 * points.sum(1))
    np.testing.assert_allclose(stage.point, np.full(DIM, -0.01), rtol=1e-3)


def test_a_coordinate_that_a_refresh_freezes_does_not_coast() -> None:
    steep = np.zeros(DIM)
    steep[:5] = 1.0
    stage = zo(mask="gradient", prune_ratio=5 / DIM, prune_interval=3, queries=5)
    for _ in range(3):
        stage.step(lambda points: points @ steep)
    frozen = stage.point[:5]
    stage.step(lambda points: points @ steep[::-1])
    np.testing.assert_array_equal(stage.point[:5], frozen)
    assert (stage.point[-5:] != 0).all()


def test_the_mask_has_a_difference_step_of_its_own() -> None:
    stage, sphere = zo(mask="gradient", mask_step=0.25, rge_step=0.5, queries=1), Sphere()
    stage.step(sphere)
    assert np.abs(sphere.calls[0]).max() == 0.25


def test_a_mask_keeps_at_least_one_coordinate() -> None:
    assert list(prune_mask(np.ones(4), np.array([1, -3, 2, 0.0]), 0.01, "gradient")) == [0, 1, 0, 0]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_stage_2_descends(optimizer: str) -> None:
    rate = 0.02 if optimizer == "sgd" else 0.05
    stage, sphere = zo(300, optimizer=optimizer, learning_rate=rate, queries=2), Sphere()
    for _ in range(300):
        stage.step(sphere)
    assert sphere(stage.point[None])[0] < 0.05 * DIM


def test_a_step_costs_2q_evaluations_and_a_refresh_2d() -> None:
    stage, sphere = zo(mask="gradient", prune_interval=3, queries=2), Sphere()
    expected = 0
    for step in range(7):
        cost = 4 + (2 * DIM if step % 3 == 0 else 0)
        assert stage.passes_per_step == cost
        stage.step(sphere)
        expected += cost
        assert sphere.evaluations == expected


def test_the_cosine_schedule_runs_from_eta_to_0() -> None:
    stage = zo(4, learning_rate=1.0)
    rates = []
    while not stage.exhausted:
        rates.append(stage.learning_rate)
        stage.step(Sphere())
    np.testing.assert_allclose(rates, [1, 0.5 + 0.5 * np.sqrt(0.5), 0.5, 0.5 - 0.5 * np.sqrt(0.5)])


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_only_the_mask_moves_and_is_looked_at(optimizer: str) -> None:
    start = np.zeros(DIM)
    start[:10] = 3.0

    def steep_at_first_ten(points: np.ndarray) -> np.ndarray:
        return (points[:, :10] ** 2).sum(1) + 0.01 * (points[:, 10:] ** 2).sum(1)

    asked: list[np.ndarray] = []

    def spy(points: np.ndarray) -> np.ndarray:
        asked.append(points)
        return steep_at_first_ten(points)

    options = {"mask": "gradient", "prune_ratio": 10 / DIM, "queries": 4, "learning_rate": 0.1}
    stage = zo(start=start, optimizer=optimizer, **options)
    for _ in range(5):
        stage.step(spy)
    assert not np.concatenate(asked[1:])[:, 10:].any()  # after the mask's own gradient
    assert (stage.point[:10] != 3.0).all()
    np.testing.assert_array_equal(stage.point[10:], 0.0)


def test_the_mask_keeps_the_highest_scores() -> None:
    point, gradient = np.ones(10), np.ones(10)
    gradient[[2, 7]] = 5.0
    for criterion in ("z-score", "gradient"):
        mask = prune_mask(point, gradient, 0.2, criterion)
        assert set(np.flatnonzero(mask)) == {2, 7}


@pytest.mark.parametrize("ratio", [0.1, 0.33, 0.5, 1.0])
def test_the_mask_keeps_the_floor_of_the_ratio(ratio: float) -> None:
    rng = np.random.default_rng(0)
    mask = prune_mask(rng.normal(size=64), rng.normal(size=64), ratio, "z-score")
    assert mask.sum() == int(ratio * 64)


def test_the_score_is_w_squared_times_the_z_score_of_g_squared() -> None:
    point, gradient = np.array([10.0, 1.0, 1.0, 0.1]), np.array([1.0, 2.0, 3.0, 3.1])
    # z(g^2) is negative for the first: a large weight with a small gradient goes first.
    assert list(prune_mask(point, gradient, 0.5, "z-score")) == [0, 0, 1, 1]


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.8])
def test_the_z_score_is_that_of_squares_and_weighs_by_squares(ratio: float) -> None:
    """Neither z(|g|) nor w z(g^2) keeps the same coordinates; both signs of w occur."""
    rng = np.random.default_rng(3)
    point, gradient = rng.normal(size=60), rng.normal(size=60)

    def kept(weights: np.ndarray, values: np.ndarray) -> set[int]:
        scores = weights * (values - values.mean()) / values.std()
        return set(np.argsort(scores)[::-1][: int(ratio * 60)].tolist())

    mask = prune_mask(point, gradient, ratio, "z-score")
    assert set(np.flatnonzero(mask)) == kept(point**2, gradient**2)
    assert kept(point**2, gradient**2) != kept(point**2, np.abs(gradient))
    assert kept(point**2, gradient**2) != kept(point, gradient**2)


def test_equal_gradients_leave_the_choice_to_the_weights() -> None:
    mask = prune_mask(np.array([0.1, -3.0, 2.0, 0.2]), np.ones(4), 0.5, "z-score")
    assert list(mask) == [0, 1, 1, 0]


@pytest.mark.parametrize("interruption", [0, 1, 8, 19])
@pytest.mark.parametrize("options", [{}, {"mask": "z-score", "prune_interval": 5, "queries": 3}])
def test_a_restored_stage_2_goes_on_bit_for_bit(
    options: dict[str, object], interruption: int
) -> None:
    whole = zo(start=np.ones(DIM) * 2, **options)
    for step in range(20):
        if step == interruption:
            saved = whole.state()
            state = StageState({k: v.copy() for k, v in saved.arrays.items()}, saved.scalars)
        whole.step(Sphere())
    resumed = zo(start=np.zeros(DIM), **options)
    resumed.restore(state)
    for _ in range(20 - interruption):
        resumed.step(Sphere())
    assert resumed.point.tobytes() == whole.point.tobytes()
