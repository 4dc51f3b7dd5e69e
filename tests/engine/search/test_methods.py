"""Which stages and estimators a method runs, what each pass costs, and which point comes out."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from sharpzo_engine.clip.torch.backbone import Backbone
from sharpzo_engine.clip.torch.text_encoder import ForwardTextEncoder
from sharpzo_engine.clip.torch.text_reverse import TextReverse
from sharpzo_engine.clip.torch.text_tangent import TextTangent
from sharpzo_engine.config import PRESETS, CmaConfig, PromptConfig, TuningConfig
from sharpzo_engine.errors import ConfigError
from sharpzo_engine.search.gradients import (
    Backpropagation,
    CentralDifferences,
    CoordinateGradient,
    ForwardDerivatives,
    RandomGradient,
)
from sharpzo_engine.search.loop import Search, Validated
from sharpzo_engine.search.methods import passes_per_stage_2_step, stage_1, stage_2, stage_label
from sharpzo_engine.search.objective import Objective
from sharpzo_engine.search.progress import Progress
from sharpzo_engine.search.prompt_space import PromptSpace
from sharpzo_engine.search.stages.gauss_newton import GaussNewton
from sharpzo_engine.search.stages.reference import ReferenceCma, ReferenceZo
from sharpzo_engine.search.stages.sharp_cma import SharpCma, sharpness_estimator
from sharpzo_engine.search.stages.sparse_zo import SparseZo
from sharpzo_engine.search.stages.stage import Stage
from tests.engine.conftest import random_features

NAMES = ["cat", "red panda", "fire truck"]
DIM = 16


def make_objective(clip: Backbone, seed: int = 0) -> Objective:
    # A scale at which finite differences are exact enough to be compared, and every trial is taken.
    prompt = PromptConfig(intrinsic_dim=DIM, projection_scale=4.0)
    space = PromptSpace(clip, NAMES, prompt)
    return Objective(space, random_features(24, clip.embed_dim, len(NAMES), seed))


@pytest.fixture
def objective(clip: Backbone) -> Objective:
    return make_objective(clip)


class Opaque:
    """The same black box, with nothing but losses to be had."""

    def __init__(self, objective: Objective) -> None:
        self.space = objective.space
        self._objective = objective

    def __call__(self, points: np.ndarray) -> np.ndarray:
        return self._objective(points)


def config(preset: str = "default", **changes: Any) -> TuningConfig:
    """A preset in small."""
    small = {
        "total_steps": 8,
        "change_point": 3,
        "prompt": {"intrinsic_dim": DIM},
        "cma": {"population_size": 6},
        "zo": {"queries": 2, "prune_interval": 2},
    }
    for key, value in changes.items():
        small[key] = {**small[key], **value} if isinstance(small.get(key), dict) else value  # type: ignore[dict-item]
    return TuningConfig.parse(small, preset)


def begin(config: TuningConfig, objective: Any) -> Any:
    return stage_2(config, objective, np.zeros(DIM), 10)


# --- which stage, which estimator


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({}, GaussNewton),
        ({"estimator": "rge"}, GaussNewton),
        ({"optimizer": "gauss-newton"}, GaussNewton),
        ({"mask": "gradient"}, SparseZo),
        ({"optimizer": "adam"}, SparseZo),
        ({"optimizer": "sgd"}, SparseZo),
    ],
)
def test_stage_2_is_gauss_newton_unless_something_else_was_asked_for(
    objective: Objective, options: dict[str, str], kind: type
) -> None:
    assert type(begin(config(zo=options), objective)) is kind


@pytest.mark.parametrize(
    ("settings", "labels"),
    [
        (config(), ("CMA-ES", "Gauss-Newton")),
        (config("paper"), ("Sharp CMA-ES", "Sparse ZO")),
        (config("reference"), ("Sharp CMA-ES", "ZO")),
        (config(zo={"optimizer": "adam"}), ("CMA-ES", "ZO")),
        (config(method="first-order"), ("CMA-ES", "First-order")),
    ],
)
def test_a_stage_is_called_after_its_optimiser(
    objective: Objective, settings: TuningConfig, labels: tuple[str, str]
) -> None:
    assert stage_label("stage1", settings, objective) == labels[0]
    assert stage_label("stage2", settings, objective) == labels[1]


def test_every_step_of_a_run_is_reported_with_its_label(clip: Backbone) -> None:
    steps: list[Progress] = []
    Search(config(), make_objective(clip), make_objective(clip, seed=1), steps.append).run()
    assert {step.phase: step.phase_label for step in steps} == {
        "stage1": "CMA-ES",
        "stage2": "Gauss-Newton",
    }


@pytest.mark.parametrize("selection", ["best", "last"])
def test_the_step_that_the_kept_point_comes_from_is_known(clip: Backbone, selection: str) -> None:
    kept: list[Validated] = []  # after the start and after each step
    objective, validation = make_objective(clip), make_objective(clip, seed=1)
    settings = config(selection=selection)
    search = Search(settings, objective, validation, lambda _: kept.append(search.best))
    kept.append(search.best)
    search.run()
    last = len(search.history)
    by_step = [step for step, best in enumerate(kept) if best is search.best]
    assert search.selected_step == (last if selection == "last" else min(by_step, default=last))


def test_where_no_step_is_better_the_hand_written_prompt_is_kept(clip: Backbone) -> None:
    search = Search(config(), make_objective(clip), make_objective(clip, seed=1))
    assert search.selected_step == 0


def test_without_a_budget_the_search_ends_when_more_would_change_little(
    clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sharpzo_engine.config.ENOUGH_BESIDE_HEAD", 150)
    settings = config(head="auto", max_forward_passes=None, total_steps=10_000)
    search = Search(settings, make_objective(clip), make_objective(clip, seed=1))
    search.run()
    assert search.stopped_by == "enough"
    assert 100 < search.forward_passes <= 150
    for passes in range(151, 171):  # also where the planned steps leave a few passes
        monkeypatch.setattr("sharpzo_engine.config.ENOUGH_BESIDE_HEAD", passes)
        search = Search(settings, make_objective(clip), make_objective(clip, seed=1))
        search.run()
        assert search.stopped_by == "enough"
    longer = config(head="auto", max_forward_passes=300, total_steps=10_000)
    search = Search(longer, make_objective(clip), make_objective(clip, seed=1))
    search.run()
    assert search.stopped_by == "max_forward_passes"
    assert search.forward_passes > 250


def test_a_prompt_alone_ends_when_validation_has_long_been_better(
    clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sharpzo_engine.search.loop.LEAST_PATIENCE", 60)
    settings = config(head="none", max_forward_passes=None, total_steps=10_000)
    search = Search(settings, make_objective(clip), make_objective(clip, seed=1))
    search.run()
    assert search.stopped_by == "enough"
    best = [r for r in search.history if r.step == search.selected_step]
    found = best[0].forward_passes if best else 0
    since = search.forward_passes - found
    assert max(60, found) <= since + 40 < max(60, found) + 120


def test_progress_says_how_many_steps_the_passes_are_enough_for(clip: Backbone) -> None:
    seen: list[Progress] = []
    settings = config(max_forward_passes=300, total_steps=10_000)
    Search(settings, make_objective(clip), make_objective(clip, seed=1), seen.append).run()
    assert {p.total_steps for p in seen if p.phase == "stage1"} == {10_000}
    (expected,) = {p.total_steps for p in seen if p.phase == "stage2"}
    # The last steps may be too dear, as a step is reckoned to need all of its trials.
    assert len(seen) <= expected < len(seen) + 10


def test_a_point_is_judged_by_validation_images_that_did_not_choose_it(clip: Backbone) -> None:
    validation = make_objective(clip, seed=1)
    search = Search(config(), make_objective(clip), validation)
    search.run()
    logits = search.unbiased_logits()
    first, second = validation.halves
    assert logits is not None
    assert (first ^ second).all()
    chosen = [validated.point for validated in search._half_best]
    assert not np.array_equal(*chosen)
    scale = search.space.backbone.logit_scale
    for half, point in ((first, chosen[1]), (second, chosen[0])):
        expected = (
            scale
            * validation.features.images[half]
            @ (search.space.class_embeddings(point[None])[0].T)
        )
        np.testing.assert_allclose(logits[half], expected, rtol=0, atol=1e-4)
    losses = [validation.score(point).halves for point in chosen]
    assert losses[0][0] <= losses[1][0]
    assert losses[1][1] <= losses[0][1]


def test_a_black_box_that_shows_nothing_is_followed_by_adam_on_differences(
    objective: Objective,
) -> None:
    stage = begin(config(), Opaque(objective))
    assert type(stage) is SparseZo
    assert stage._estimator.slopes == CentralDifferences(1e-3)
    stage.step(Opaque(objective))
    moved = np.abs(stage.point)
    np.testing.assert_allclose(moved, 0.1, rtol=1e-3)  # Adam's first step is eta everywhere


@pytest.mark.parametrize("option", [{"optimizer": "gauss-newton"}, {"estimator": "jvp"}])
def test_what_a_black_box_does_not_show_is_refused(
    objective: Objective, option: dict[str, str]
) -> None:
    opaque = Opaque(objective)
    with pytest.raises(ConfigError, match="needs an objective"):
        begin(config(zo=option), opaque).step(opaque)


@pytest.mark.parametrize(
    ("estimator", "slopes", "mask_slopes"),
    [
        ("auto", ForwardDerivatives(), ForwardDerivatives()),
        ("jvp", ForwardDerivatives(), ForwardDerivatives()),
        ("rge", CentralDifferences(0.02), CentralDifferences(0.03)),
    ],
)
def test_the_estimator_decides_how_slopes_are_found(
    objective: Objective, estimator: str, slopes: object, mask_slopes: object
) -> None:
    zo = {"optimizer": "adam", "estimator": estimator, "rge_step": 0.02, "mask_step": 0.03}
    stage = begin(config(zo=zo), objective)
    assert isinstance(stage._estimator, RandomGradient)
    assert (stage._estimator.slopes, stage._estimator.queries) == (slopes, 2)
    assert stage._estimator.law == "orthogonal"
    assert stage._mask_estimator == CoordinateGradient(mask_slopes)  # type: ignore[arg-type]


@pytest.mark.parametrize("optimizer", ["auto", "gauss-newton", "adam", "sgd"])
def test_first_order_backpropagates_whatever_the_optimizer(
    objective: Objective, optimizer: str
) -> None:
    stage = begin(config(method="first-order", zo={"optimizer": optimizer}), objective)
    assert type(stage) is SparseZo
    assert stage._estimator == stage._mask_estimator == Backpropagation()


@pytest.mark.parametrize(
    ("name", "estimator"),
    [
        ("none", None),
        ("zo", CoordinateGradient(CentralDifferences(0.02))),
        ("jvp", CoordinateGradient(ForwardDerivatives())),
        ("fo", Backpropagation()),
    ],
)
def test_the_sharpness_estimator_is_the_one_named(name: str, estimator: object) -> None:
    cma = CmaConfig.model_validate({"sharpness_estimator": name, "cge_step": 0.02})
    assert sharpness_estimator(cma) == estimator
    assert sharpness_estimator(cma.model_copy(update={"rho": 0.0})) is None


def test_reference_numerics_run_the_reference_stages(objective: Objective) -> None:
    settings = config("reference")
    first = stage_1(settings, objective)
    assert type(first) is ReferenceCma
    first.step(objective)
    second = stage_2(settings, objective, first.point, 10, first)
    assert type(second) is ReferenceZo
    seeded = second.state().arrays["sum"]
    np.testing.assert_array_equal(seeded, np.tile(first.gradient, (6, 1)))


def test_reference_stage_2_alone_starts_from_an_empty_sum(objective: Objective) -> None:
    second = begin(config("reference", method="zo"), objective)
    assert type(second) is ReferenceZo
    np.testing.assert_array_equal(second.state().arrays["sum"], np.zeros((6, DIM)))


@pytest.mark.parametrize("preset", PRESETS)
def test_only_the_reference_preset_repeats_accidents(objective: Objective, preset: str) -> None:
    settings = config(preset)
    kinds = type(stage_1(settings, objective)), type(begin(settings, objective))
    plain = GaussNewton if preset in ("default", "fast") else SparseZo
    assert kinds == ((ReferenceCma, ReferenceZo) if preset == "reference" else (SharpCma, plain))


@pytest.mark.parametrize("name", ["jvp", "fo"])
def test_exact_sharpness_is_the_direction_of_finite_differences(
    objective: Objective, name: str
) -> None:
    perturbations = []
    for estimator in ("zo", name):
        cma = {"sharpness_estimator": estimator, "cge_step": 1e-2, "rho": 0.3}
        stage = stage_1(config(cma=cma), objective)
        stage.step(objective)
        perturbations.append(stage.state().arrays["perturbation"])
    assert np.linalg.norm(perturbations[0]) == pytest.approx(0.3, rel=1e-6)
    np.testing.assert_allclose(perturbations[1], perturbations[0], atol=0.3 * 2e-3)


# --- the bill


class Counted:
    """Evaluations as the text tower sees them, whoever asks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.forward = self.backward = 0
        self._count(monkeypatch, ForwardTextEncoder, "encode", len)
        self._count(monkeypatch, TextTangent, "slopes", len)
        self._count(monkeypatch, TextTangent, "products", len)
        self._count(monkeypatch, TextTangent, "__init__", lambda _: 1)
        self._count(monkeypatch, TextReverse, "__init__", lambda _: 1)
        original = TextReverse.pull_back

        def pull_back(reverse: TextReverse, cotangent: torch.Tensor) -> torch.Tensor:
            self.backward += 1
            return original(reverse, cotangent)

        monkeypatch.setattr(TextReverse, "pull_back", pull_back)

    def _count(
        self,
        monkeypatch: pytest.MonkeyPatch,
        owner: type,
        name: str,
        cost: Callable[[Any], int],
    ) -> None:
        original = getattr(owner, name)

        def spy(one: Any, first: Any, *rest: Any) -> Any:
            self.forward += cost(first)
            return original(one, first, *rest)

        monkeypatch.setattr(owner, name, spy)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counted]:
    return Counted(monkeypatch)  # type: ignore[return-value]


VARIANTS: dict[str, dict[str, Any]] = {
    "masked adam": {"zo": {"mask": "gradient"}},
    "masked differences": {"zo": {"mask": "z-score", "estimator": "rge"}},
    "first-order": {"method": "first-order"},
    "masked first-order": {"method": "first-order", "zo": {"mask": "gradient"}},
    "jvp sharpness": {"cma": {"sharpness_estimator": "jvp", "sharpness_interval": 2}},
    "fo sharpness": {"cma": {"sharpness_estimator": "fo"}},
    "cma-es": {"method": "cma-es"},
    "gauss-newton alone": {"method": "zo"},
}
RUNS = [(preset, {}) for preset in PRESETS] + [("default", v) for v in VARIANTS.values()]


def run(clip: Backbone, settings: TuningConfig) -> Search:
    search = Search(settings, make_objective(clip), make_objective(clip, seed=1))
    search.run()
    return search


@pytest.mark.parametrize(("preset", "changes"), RUNS, ids=[*PRESETS, *VARIANTS])
def test_the_counter_is_the_number_of_evaluations(
    clip: Backbone, counted: Counted, preset: str, changes: dict[str, Any]
) -> None:
    search = run(clip, config(preset, **changes))
    assert len(search.history) == 8
    assert search.forward_passes == counted.forward
    assert search._objective.backward_passes == counted.backward


@pytest.mark.parametrize(("preset", "changes"), RUNS, ids=[*PRESETS, *VARIANTS])
def test_a_step_never_takes_more_passes_than_it_announces(
    objective: Objective, preset: str, changes: dict[str, Any]
) -> None:
    settings = config(preset, **changes)
    stages: list[Stage] = [stage_1(settings, objective), begin(settings, objective)]
    for stage in stages:
        for _ in range(5):
            announced, before = stage.passes_per_step, objective.forward_passes
            stage.step(objective)
            spent = objective.forward_passes - before
            assert spent <= announced
            assert isinstance(stage, GaussNewton) or spent == announced


def test_backpropagation_counts_one_pass_each_way(objective: Objective) -> None:
    stage = begin(config(method="first-order"), objective)
    for step in range(1, 4):
        stage.step(objective)
        assert (objective.forward_passes, objective.backward_passes) == (step, step)


def test_forward_only_methods_never_go_backwards(clip: Backbone, counted: Counted) -> None:
    run(clip, config())
    assert counted.backward == 0


@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("default", {"zo": {"queries": DIM}}),
        ("default", {"zo": {"queries": 3 * DIM}}),
        ("default", {"zo": {"optimizer": "adam"}}),
        ("default", {"zo": {"mask": "gradient"}}),
        ("default", {"zo": {"mask": "z-score", "estimator": "rge"}}),
        ("default", {"method": "first-order", "zo": {"mask": "gradient"}}),
        ("reference", {}),
    ],
)
def test_a_step_of_stage_2_is_expected_to_cost_what_it_does(
    objective: Objective, preset: str, changes: dict[str, Any]
) -> None:
    settings = config(preset, **changes)
    stage = begin(settings, objective)
    stage.step(objective)
    stage.step(objective)
    before = objective.forward_passes
    for _ in range(4):
        stage.step(objective)
    expected = passes_per_stage_2_step(settings, objective)
    assert (objective.forward_passes - before) / 4 == expected


# --- which point comes out


def test_the_best_validated_point_comes_out(clip: Backbone) -> None:
    search = run(clip, config())
    losses = [record.val_loss for record in search.history if record.val_loss is not None]
    validation = make_objective(clip, seed=1)
    assert validation(search.best.point)[0] == pytest.approx(search.best.score.loss, rel=1e-6)
    assert search.best.score.loss <= min(losses)


@pytest.mark.parametrize("preset", ["default", "reference"])
def test_the_last_point_comes_out_where_that_was_asked_for(clip: Backbone, preset: str) -> None:
    search = run(clip, config(preset, selection="last"))
    np.testing.assert_array_equal(search.best.point, search._stage.point)
    assert search.best.point.any()


def test_the_last_point_of_stage_1_is_its_mean_whatever_scores_better(clip: Backbone) -> None:
    settings = config(selection="last", method="cma-es")
    search = Search(settings, make_objective(clip), make_objective(clip, seed=1))
    better = 0
    for _ in range(8):
        search._advance()
        mean, candidate = (search._validation(point)[0] for point in search._stage.candidates)
        better += candidate < mean
        np.testing.assert_array_equal(search.best.point, search._stage.point)
    assert better


def change_of_stages(clip: Backbone, settings: TuningConfig) -> tuple[Stage, Search]:
    """The stage that has ended, and the search before the first step of the next."""
    search = Search(settings, make_objective(clip), make_objective(clip, seed=1))
    ended = search._stage
    while search.phase == "stage1":
        search._advance()
    return ended, search


def test_stage_2_starts_from_the_best_validated_point(clip: Backbone) -> None:
    ended, search = change_of_stages(clip, config(change_point=6))
    np.testing.assert_array_equal(search._stage.point, search.best.point)
    assert (search.best.point != ended.point).any()


def test_stage_2_of_the_reference_starts_from_the_unscored_mean(clip: Backbone) -> None:
    settings = config("reference", selection="best", change_point=5)
    ended, search = change_of_stages(clip, settings)
    np.testing.assert_array_equal(search._stage.point, ended.point)
    assert (search.best.point != ended.point).any()
