"""The numerical accidents of the released code, each repeated and each undone; numpy only."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sharpzo_engine.config import CmaConfig, TuningConfig, ZoConfig
from sharpzo_engine.errors import CheckpointError
from sharpzo_engine.search.stages.reference import ReferenceCma, ReferenceZo
from sharpzo_engine.search.stages.sharp_cma import SharpCma
from sharpzo_engine.search.stages.sparse_zo import SparseZo

DIM, S = 30, 12
ETA, MU = 0.02, 1e-3
CURVATURE = np.linspace(0.5, 2.0, DIM)


class Quadratic:
    """Half of c |w - 1|^2 by coordinate; remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[np.ndarray] = []

    def __call__(self, points: np.ndarray) -> np.ndarray:
        self.calls.append(points.copy())
        return 0.5 * (CURVATURE * (points - 1) ** 2).sum(1)


def cma(kind: type[SharpCma] = ReferenceCma, seed: int = 0, **changes: Any) -> Any:
    values = {"population_size": S, "sharpness_estimator": "zo", **changes}
    return kind(CmaConfig.model_validate(values), np.zeros(DIM), np.random.default_rng(seed))


def zo(
    start: np.ndarray | None = None, gradient: np.ndarray | None = None, **changes: Any
) -> ReferenceZo:
    values = {"schedule": "constant", "learning_rate": ETA, "queries": 1, "rge_step": MU, **changes}
    return ReferenceZo(
        ZoConfig.model_validate(values),
        np.zeros(DIM) if start is None else start,
        np.random.default_rng(0),
        1000,
        gradient=np.zeros(DIM) if gradient is None else gradient,
        rows=S,
    )


# --- stage 1


class Asked:
    """Keeps every population that a strategy hands out."""

    def __init__(self, stage: SharpCma) -> None:
        self.populations: list[np.ndarray] = []
        ask: Callable[[], list[np.ndarray]] = stage._strategy.ask

        def spy() -> list[np.ndarray]:
            found = ask()
            self.populations.append(np.array(found))
            return found

        stage._strategy.ask = spy


@pytest.mark.parametrize("rho", [0.1, 0.5])
def test_the_radius_is_rho_over_the_root_of_s(rho: float) -> None:
    stage, objective = cma(rho=rho), Quadratic()
    asked = Asked(stage)
    outcome = stage.step(objective)
    shift = objective.calls[-1] - asked.populations[0]
    radius = rho / np.sqrt(S)
    np.testing.assert_allclose(np.linalg.norm(shift, axis=1), radius, rtol=1e-6)
    assert outcome.sharpness == pytest.approx(radius * np.linalg.norm(stage.gradient), rel=1e-6)


def test_the_corrected_radius_is_rho() -> None:
    stage, objective = cma(SharpCma, rho=0.1), Quadratic()
    asked = Asked(stage)
    stage.step(objective)
    shift = objective.calls[-1] - asked.populations[0]
    np.testing.assert_allclose(np.linalg.norm(shift, axis=1), 0.1, rtol=1e-6)


def test_the_first_gradient_is_taken_at_the_mean_of_s_uniform_vectors() -> None:
    stage, objective = cma(seed=5), Quadratic()
    stage.step(objective)
    expected = np.random.default_rng(5).uniform(size=(S, DIM)).mean(0)
    np.testing.assert_allclose(objective.calls[0].mean(0), expected, atol=1e-12)
    np.testing.assert_allclose(stage.gradient, CURVATURE * (expected - 1), rtol=1e-6)


def test_later_gradients_are_taken_at_the_mean_of_the_unscored_population() -> None:
    stage, objective = cma(), Quadratic()
    asked = Asked(stage)
    for generation in range(1, 4):
        stage.step(objective)
        stage.step(objective)
        unscored = asked.populations[4 * generation - 3].mean(0)
        np.testing.assert_allclose(objective.calls[-2].mean(0), unscored, atol=1e-12)


def test_every_generation_samples_twice_and_scores_the_first() -> None:
    stage, objective = cma(sharpness_estimator="none"), Quadratic()
    asked = Asked(stage)
    for generation in range(1, 4):
        stage.step(objective)
        assert len(asked.populations) == 2 * generation
        np.testing.assert_array_equal(objective.calls[-1], asked.populations[-2])


def test_the_corrected_stage_samples_once() -> None:
    stage = cma(SharpCma)
    asked = Asked(stage)
    stage.step(Quadratic())
    assert len(asked.populations) == 1


def test_what_is_evaluated_and_handed_on_is_the_mean_of_the_unscored_population() -> None:
    stage = cma()
    asked = Asked(stage)
    for _ in range(3):
        stage.step(Quadratic())
        np.testing.assert_allclose(stage.point, asked.populations[-1].mean(0), atol=1e-12)
        (evaluated,) = stage.candidates
        np.testing.assert_array_equal(evaluated, stage.point)


def test_the_second_population_costs_no_evaluations() -> None:
    stage, objective = cma(), Quadratic()
    for generation in range(1, 4):
        assert stage.passes_per_step == 2 * DIM + S
        stage.step(objective)
        assert sum(map(len, objective.calls)) == generation * (2 * DIM + S)


def test_stopping_rules_are_not_consulted() -> None:
    stage, corrected = cma(sharpness_estimator="none"), cma(SharpCma, sharpness_estimator="none")
    for _ in range(3):
        for one in (stage, corrected):
            one._strategy.opts.set({"maxiter": 2})
            one.step(Quadratic())
    assert corrected.exhausted
    assert not stage.exhausted


@pytest.mark.parametrize("interruption", [0, 1, 2, 6, 11])
def test_a_restored_reference_stage_1_goes_on_bit_for_bit(interruption: int) -> None:
    whole, objective = cma(), Quadratic()
    for step in range(12):
        if step == interruption:
            state = whole.state()
        whole.step(objective)
    resumed = cma()
    resumed.restore(state)
    for _ in range(12 - interruption):
        resumed.step(objective)
    assert resumed.point.tobytes() == whole.point.tobytes()
    assert resumed.gradient.tobytes() == whole.gradient.tobytes()


def test_the_gradient_is_at_hand_after_a_restore() -> None:
    whole = cma()
    whole.step(Quadratic())
    resumed = cma()
    resumed.restore(whole.state())
    assert np.abs(whole.gradient).min() > 0
    np.testing.assert_array_equal(resumed.gradient, whole.gradient)


# --- stage 2


def directions_of_steps(count: int, queries: int) -> list[np.ndarray]:
    """What the stage draws: one row in the first step, S rows from the second on."""
    rng = np.random.default_rng(0)
    rows = [1] + [S] * (count - 1)
    return [np.stack([rng.standard_normal((r, DIM)) for _ in range(queries)]) for r in rows]


@pytest.mark.parametrize("queries", [1, 3])
def test_the_sum_is_the_seed_plus_all_estimates_and_is_never_reset(queries: int) -> None:
    """Retold with loops: v and w have S rows, and the loss sees the rows' mean."""
    seed, objective = np.linspace(-1, 1, DIM), Quadratic()
    stage = zo(gradient=seed, queries=queries)
    w, v, estimates = np.zeros((S, DIM)), np.tile(seed, (S, 1)), np.zeros((S, DIM))
    for directions in directions_of_steps(6, queries):
        estimate = np.zeros((S, DIM))
        for u in directions:
            plus = objective((w + MU * u).mean(0)[None])[0]
            minus = objective((w - MU * u).mean(0)[None])[0]
            estimate += (plus - minus) / (2 * MU) * u / queries
        estimates += estimate
        v = v + estimate
        w = w - ETA * v
        stage.step(objective)
        arrays = stage.state().arrays
        np.testing.assert_allclose(arrays["sum"], seed + estimates, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(arrays["rows"], w, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(stage.point, w.mean(0), rtol=1e-6, atol=1e-9)


def test_the_parameter_has_s_rows_after_the_first_step() -> None:
    stage = zo()
    shapes = [stage.state().arrays["rows"].shape]
    for _ in range(2):
        stage.step(Quadratic())
        shapes.append(stage.state().arrays["rows"].shape)
    assert shapes == [(1, DIM), (S, DIM), (S, DIM)]


def test_the_smoothing_shrinks_by_the_root_of_s_after_the_first_step() -> None:
    stage, objective = zo(), Quadratic()
    radii = []
    for _ in range(60):
        stage.step(objective)
        plus, minus = objective.calls[-1]
        radii.append(np.linalg.norm(plus - minus) / 2)
    assert radii[0] == pytest.approx(MU * np.sqrt(DIM), rel=0.5)
    assert np.mean(radii[1:]) == pytest.approx(MU * np.sqrt(DIM / S), rel=0.1)


def test_the_seed_is_applied_again_in_every_step() -> None:
    """On a flat loss only the seed moves w: n steps are n times eta times the seed."""
    seed = np.linspace(-1, 1, DIM)
    stage = zo(gradient=seed)
    for _ in range(5):
        stage.step(lambda points: np.zeros(len(points)))
    np.testing.assert_allclose(stage.point, -5 * ETA * seed, atol=1e-12)


def test_the_step_size_is_constant_in_the_preset() -> None:
    config = TuningConfig.parse({}, "reference").zo
    stage = ReferenceZo(
        config, np.zeros(DIM), np.random.default_rng(0), 10, gradient=np.ones(DIM), rows=S
    )
    rates = []
    for _ in range(9):
        rates.append(stage.learning_rate)
        stage.step(Quadratic())
    assert rates == [config.learning_rate] * 9


@pytest.mark.parametrize("queries", [1, 4])
def test_a_step_costs_2q_evaluations(queries: int) -> None:
    stage, objective = zo(queries=queries), Quadratic()
    for step in range(1, 4):
        assert stage.passes_per_step == 2 * queries
        stage.step(objective)
        assert sum(map(len, objective.calls)) == step * 2 * queries


def test_the_loss_of_a_step_is_the_mean_of_its_evaluations() -> None:
    stage, objective = zo(queries=2), Quadratic()
    loss = stage.step(objective).loss
    assert loss == pytest.approx(Quadratic()(objective.calls[0]).mean(), rel=1e-12)


def test_a_slope_that_is_not_a_number_does_not_enter_the_sum() -> None:
    stage = zo(gradient=np.ones(DIM))
    stage.step(lambda points: np.full(len(points), np.nan))
    np.testing.assert_array_equal(stage.state().arrays["sum"], np.ones((S, DIM)))


def test_it_falls_first_and_grows_without_bound_where_the_corrected_stage_converges() -> None:
    config = ZoConfig(
        schedule="constant",
        learning_rate=0.01,
        queries=1,
        optimizer="sgd",
        directions="gaussian",
        mask="none",
    )
    corrected = SparseZo(config, np.zeros(DIM), np.random.default_rng(0), 1000)
    released = zo(gradient=-CURVATURE, learning_rate=0.01)
    losses: dict[str, list[float]] = {"corrected": [], "released": []}
    for _ in range(800):
        losses["corrected"].append(corrected.step(Quadratic()).loss)
        losses["released"].append(released.step(Quadratic()).loss)
    start = losses["released"][0]
    assert min(losses["released"]) < 0.8 * start
    assert max(losses["released"][-100:]) > 10 * start
    assert max(losses["corrected"][-100:]) < 0.01 * start


@pytest.mark.parametrize("interruption", range(8))
def test_a_restored_reference_stage_2_goes_on_bit_for_bit(interruption: int) -> None:
    whole, objective = zo(gradient=np.ones(DIM), queries=2), Quadratic()
    for step in range(8):
        if step == interruption:
            state = whole.state()
        whole.step(objective)
    resumed = zo(start=np.ones(DIM), queries=2)
    resumed.restore(state)
    for _ in range(8 - interruption):
        resumed.step(objective)
    for name, expected in whole.state().arrays.items():
        assert resumed.state().arrays[name].tobytes() == expected.tobytes(), name


def test_the_state_of_another_space_is_refused() -> None:
    with pytest.raises(CheckpointError):
        cma().restore(
            ReferenceCma(
                CmaConfig(population_size=S), np.zeros(5), np.random.default_rng(0)
            ).state()
        )
    with pytest.raises(CheckpointError):
        zo().restore(zo(np.zeros(5), np.zeros(5)).state())
