"""The anchor is one more term of the training loss, for every stage, and of no other loss."""

from typing import Any

import numpy as np
import pytest

from sharpzo_engine.clip.cross_entropy import CrossEntropy
from sharpzo_engine.clip.torch.backbone import Backbone
from sharpzo_engine.config import PromptConfig, TuningConfig
from sharpzo_engine.search.anchored_loss import AnchoredLoss
from sharpzo_engine.search.history import StepRecord
from sharpzo_engine.search.loop import Search
from sharpzo_engine.search.objective import Objective
from sharpzo_engine.search.prompt_space import PromptSpace
from tests.engine.conftest import random_features

NAMES = ["cat", "red panda", "fire truck"]
WIDTH, SCALE, MU, STEP, DIM = 24, 20.0, 3.0, 1e-2, 16
rng = np.random.default_rng(5)
EMBEDDINGS, ANCHORS = rng.standard_normal((2, len(NAMES), WIDTH), np.float32) / 5
ROWS = rng.standard_normal((4, len(NAMES), WIDTH), np.float32) / 5


@pytest.fixture
def plain() -> CrossEntropy:
    features = random_features(30, WIDTH, len(NAMES))
    return CrossEntropy(features.images, features.labels, SCALE)


def make_objective(clip: Backbone, anchor: float = 0.0, seed: int = 0) -> Objective:
    space = PromptSpace(clip, NAMES, PromptConfig(intrinsic_dim=DIM, projection_scale=4.0))
    return Objective(space, random_features(24, clip.embed_dim, len(NAMES), seed), anchor)


def config(**changes: Any) -> TuningConfig:
    small = {"total_steps": 30, "change_point": 5, "cma": {"population_size": 6}}
    return TuningConfig.parse({**small, **changes})


def test_the_loss_is_the_formula(plain: CrossEntropy) -> None:
    points = np.stack([EMBEDDINGS, ANCHORS, 2 * EMBEDDINGS])
    penalty = MU / len(NAMES) * ((points - ANCHORS).astype(np.float64) ** 2).sum((1, 2))
    anchored = AnchoredLoss(plain, ANCHORS, MU)
    np.testing.assert_allclose(anchored.losses(points), plain.losses(points) + penalty, rtol=1e-6)
    assert anchored.gradient(EMBEDDINGS)[0] == pytest.approx(anchored.losses(points)[0], rel=1e-6)
    assert anchored.accuracy(EMBEDDINGS) == plain.accuracy(EMBEDDINGS)


@pytest.mark.parametrize("mu", [1.0, 100.0])
def test_the_gradient_is_that_of_differences(plain: CrossEntropy, mu: float) -> None:
    anchored = AnchoredLoss(plain, ANCHORS, mu)
    plus, minus = (anchored.losses(EMBEDDINGS + h * ROWS) for h in (STEP, -STEP))
    found = (ROWS * anchored.gradient(EMBEDDINGS)[1]).sum((1, 2))
    np.testing.assert_allclose(found, (plus - minus) / (2 * STEP), atol=2e-3 * abs(found).max())


@pytest.mark.parametrize("mu", [1.0, 100.0])
def test_the_curvature_is_that_of_differences(plain: CrossEntropy, mu: float) -> None:
    anchored = AnchoredLoss(plain, ANCHORS, mu)
    slopes = [
        (
            anchored.gradient(EMBEDDINGS + STEP * row)[1]
            - anchored.gradient(EMBEDDINGS - STEP * row)[1]
        )
        / (2 * STEP)
        for row in ROWS
    ]
    expected = np.einsum("jce,lce->jl", ROWS, np.stack(slopes))
    found = anchored.curvature(EMBEDDINGS, ROWS)
    np.testing.assert_allclose(found, expected, atol=5e-3 * abs(expected).max())


def test_embeddings_that_are_not_finite_stay_nan(plain: CrossEntropy) -> None:
    points = np.stack([EMBEDDINGS, EMBEDDINGS])
    points[1, 0, 0] = np.inf
    assert np.isnan(AnchoredLoss(plain, ANCHORS, MU).losses(points)).tolist() == [False, True]


def test_every_view_of_the_objective_has_the_term(clip: Backbone) -> None:
    objective, without = make_objective(clip, MU), make_objective(clip)
    point, directions = 0.3 * rng.standard_normal(DIM), rng.standard_normal((3, DIM))
    at, origin = objective.space.class_embeddings(np.stack([point, objective.space.origin]))
    penalty = MU / len(NAMES) * float(np.square(at - origin).sum())
    assert penalty > 0.01
    expected = without(point)[0] + penalty
    loss, slopes = objective.directional_derivatives(point, directions)
    outputs = objective.outputs(point[None])[0]
    ranked = objective.in_precision("bfloat16")(point[None])[0]
    for found in (objective(point)[0], loss, objective.outer_loss(outputs)):
        assert found == pytest.approx(expected, rel=1e-5)
    assert ranked == pytest.approx(expected, rel=0.05)
    exact = objective.gradient(point)[1]
    np.testing.assert_allclose(slopes, directions @ exact, atol=1e-4 * abs(slopes).max())
    model = objective.quadratic_model(outputs, objective.tangents(point, directions))[0]
    np.testing.assert_allclose(model, slopes, atol=1e-4 * abs(slopes).max())
    differences = [
        (objective(point + 1e-3 * u) - objective(point - 1e-3 * u))[0] / 2e-3 for u in directions
    ]
    np.testing.assert_allclose(slopes, differences, atol=1e-2 * abs(slopes).max())


def test_an_anchor_costs_no_pass(clip: Backbone) -> None:
    assert make_objective(clip, MU).forward_passes == 0


def test_at_the_hand_written_prompt_nothing_is_added(clip: Backbone) -> None:
    objective, without = make_objective(clip, 1e6), make_objective(clip)
    origin = objective.space.origin
    assert objective(origin)[0] == pytest.approx(without(origin)[0], abs=1e-5)


def history(clip: Backbone, settings: TuningConfig, training: Objective) -> list[StepRecord]:
    search = Search(settings, training, make_objective(clip, seed=1), clock=lambda: 0.0)
    search.run()
    return search.history


@pytest.mark.parametrize(
    "zo", [{}, {"optimizer": "adam"}, {"optimizer": "adam", "estimator": "rge"}]
)
def test_without_strength_nothing_changes_to_the_bit(clip: Backbone, zo: dict[str, Any]) -> None:
    without = history(clip, config(zo=zo), make_objective(clip))
    settings = config(zo={**zo, "anchor": 0.0})
    assert history(clip, settings, make_objective(clip, settings.zo.anchor)) == without
    assert history(clip, settings, make_objective(clip, 1.0)) != without


@pytest.mark.parametrize("method", ["sharpzo", "cma-es", "zo", "first-order"])
def test_a_strong_anchor_holds_the_class_embeddings(clip: Backbone, method: str) -> None:
    moved = []
    for anchor in (0.0, 1e3):
        settings = config(method=method, selection="last", zo={"anchor": anchor})
        training = make_objective(clip, anchor)
        point = Search(settings, training, make_objective(clip, seed=1)).run()
        at, origin = training.space.class_embeddings(np.stack([point, training.space.origin]))
        moved.append(float(np.square(at - origin).sum()))
    assert moved[1] < 0.2 * moved[0]
