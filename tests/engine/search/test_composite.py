"""What the objective shows of its inside, against torch's own derivatives in float64."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd.functional import hessian
from torch.nn import functional

from sharpzo_engine.clip.tokens import PromptTokens
from sharpzo_engine.clip.torch import cross_entropy as module
from sharpzo_engine.clip.torch.backbone import Backbone
from sharpzo_engine.clip.torch.text_encoder import ForwardTextEncoder, PlainTextEncoder
from sharpzo_engine.config import PromptConfig
from sharpzo_engine.search.objective import Objective
from sharpzo_engine.search.prompt_space import PromptSpace
from sharpzo_engine.search.stages.gauss_newton import Composite
from tests.engine.conftest import random_features

NAMES = ["cat", "red panda", "fire truck", "dog", "very old red zebra house"]
IMAGES, DIM = 40, 6


def make_objective(clip: Backbone, max_rows: int | None = None) -> Objective:
    space = PromptSpace(clip, NAMES, PromptConfig(intrinsic_dim=DIM))
    space.prompts.forward = ForwardTextEncoder(clip.tower, tokens_of(clip), max_rows)
    return Objective(space, random_features(IMAGES, clip.embed_dim, len(NAMES)))


def tokens_of(clip: Backbone) -> PromptTokens:
    return clip.tokenize(PromptConfig().context, NAMES)


@pytest.fixture(params=[None, 20])
def objective(clip: Backbone, request: pytest.FixtureRequest) -> Objective:
    """With all classes in one pack, and with several packs."""
    return make_objective(clip, request.param)


POINT = 0.5 * np.random.default_rng(3).normal(size=DIM)
DIRECTIONS = np.random.default_rng(4).normal(size=(4, DIM))


def exact_outputs(objective: Objective, points: Tensor) -> Tensor:
    """T(w) [n, C * E] through open_clip's own tower in float64."""
    space = objective.space
    tower = copy.deepcopy(space.backbone.model).double()
    encoder = PlainTextEncoder(tower, tokens_of(space.backbone))
    offsets = points @ torch.from_numpy(space.projection).T
    start = torch.from_numpy(space.initial_context).double()
    context = start + offsets.view(-1, *start.shape)
    return encoder.encode(context).flatten(1)


def exact_jacobian(objective: Objective) -> np.ndarray:
    """T'(w)^T [d, C * E] by reverse mode, one output at a time."""
    point = torch.from_numpy(POINT).requires_grad_()
    outputs = exact_outputs(objective, point[None])[0]
    rows = [torch.autograd.grad(output, point, retain_graph=True)[0] for output in outputs]
    return torch.stack(rows, dim=1).numpy()


def exact_loss(objective: Objective, outputs: Tensor) -> Tensor:
    features = objective.features
    images, labels = torch.from_numpy(features.images).double(), torch.from_numpy(features.labels)
    embeddings = outputs.view(len(NAMES), -1)
    logits = objective.space.backbone.logit_scale * images @ embeddings.T
    return functional.cross_entropy(logits, labels)


def random_rows(objective: Objective, count: int) -> np.ndarray:
    size = len(NAMES) * objective.space.backbone.embed_dim
    return np.random.default_rng(5).normal(size=(count, size)).astype(np.float32)


def test_the_packs_are_one_and_several(clip: Backbone) -> None:
    packs = [len(make_objective(clip, rows).space.prompts.forward.packs) for rows in (None, 20)]
    assert packs[0] == 1 < packs[1]


def test_the_objective_is_a_composite(objective: Objective) -> None:
    assert isinstance(objective, Composite)


def test_outputs_are_the_class_embeddings_in_float64s_view(objective: Objective) -> None:
    points = np.stack([POINT, -POINT, 0 * POINT])
    with torch.no_grad():
        expected = exact_outputs(objective, torch.from_numpy(points)).numpy()
    found = objective.outputs(points)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_tangents_are_the_jacobian_times_the_directions(objective: Objective) -> None:
    expected = DIRECTIONS @ exact_jacobian(objective)
    found = objective.tangents(POINT, DIRECTIONS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_the_outer_loss_is_the_loss(objective: Objective) -> None:
    outputs = objective.outputs(POINT[None])[0]
    assert objective.outer_loss(outputs) == pytest.approx(objective(POINT)[0], rel=1e-6)
    exact = exact_loss(objective, torch.from_numpy(outputs).double())
    assert objective.outer_loss(outputs) == pytest.approx(float(exact), rel=1e-6)


def test_the_quadratic_model_is_the_gradient_and_the_gauss_newton_matrix(
    objective: Objective,
) -> None:
    outputs, rows = objective.outputs(POINT[None])[0], random_rows(objective, 7)
    at = torch.from_numpy(outputs).double().requires_grad_()
    (slope,) = torch.autograd.grad(exact_loss(objective, at), at)
    second = hessian(lambda t: exact_loss(objective, t), at.detach()).numpy()
    gradient, curvature = objective.quadratic_model(outputs, rows)
    assert gradient.dtype == curvature.dtype == np.float64
    expected = rows @ slope.numpy()
    np.testing.assert_allclose(gradient, expected, atol=1e-5 * np.abs(expected).max())
    expected = rows @ second @ rows.T
    np.testing.assert_allclose(curvature, expected, atol=1e-5 * np.abs(expected).max())


def test_on_the_true_jacobian_the_model_is_that_of_the_prompt(objective: Objective) -> None:
    """The gradient in w, and the exact Gauss-Newton matrix T'^T l'' T'."""
    outputs, jacobian = objective.outputs(POINT[None])[0], exact_jacobian(objective)
    gradient, curvature = objective.quadratic_model(outputs, jacobian.astype(np.float32))
    np.testing.assert_allclose(
        gradient, objective.gradient(POINT)[1], atol=1e-4 * np.abs(gradient).max()
    )
    at = torch.from_numpy(outputs).double()
    second = hessian(lambda t: exact_loss(objective, t), at).numpy()
    expected = jacobian @ second @ jacobian.T
    np.testing.assert_allclose(curvature, expected, atol=1e-5 * np.abs(expected).max())


def test_curvature_is_symmetric_and_has_no_negative_direction(objective: Objective) -> None:
    outputs = objective.outputs(POINT[None])[0]
    _, curvature = objective.quadratic_model(outputs, random_rows(objective, 20))
    np.testing.assert_allclose(curvature, curvature.T, rtol=1e-5, atol=1e-8)
    assert np.linalg.eigvalsh(curvature).min() > -1e-5 * np.abs(curvature).max()


def test_a_shift_common_to_all_classes_has_no_curvature(objective: Objective) -> None:
    """Softmax does not see it."""
    outputs = objective.outputs(POINT[None])[0]
    shift = np.random.default_rng(0).normal(size=objective.space.backbone.embed_dim)
    rows = np.tile(shift, len(NAMES))[None].astype(np.float32)
    gradient, curvature = objective.quadratic_model(outputs, rows)
    assert abs(gradient[0]) < 1e-5
    assert abs(curvature[0, 0]) < 1e-5


def test_curvature_in_parts_is_the_same(
    objective: Objective, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs, rows = objective.outputs(POINT[None])[0], random_rows(objective, 7)
    whole = objective.quadratic_model(outputs, rows)[1]
    monkeypatch.setattr(module, "MAX_LOGIT_DERIVATIVES", 7 * len(NAMES) * 3)
    np.testing.assert_allclose(
        objective.quadratic_model(outputs, rows)[1], whole, rtol=1e-5, atol=1e-6 * whole.max()
    )


@pytest.mark.parametrize(("share", "stride"), [(4, 4), (2.5, 3)])
def test_of_many_images_every_nth_makes_up_the_curvature(
    objective: Objective, monkeypatch: pytest.MonkeyPatch, share: float, stride: int
) -> None:
    outputs, rows = objective.outputs(POINT[None])[0], random_rows(objective, 7)
    monkeypatch.setattr(module, "MAX_CURVATURE_LOGITS", int(IMAGES * len(NAMES) / share))
    found = objective.quadratic_model(outputs, rows)[1]
    features, shape = objective.features, (len(NAMES), -1)
    sample = objective.space.backbone.image_loss(
        features.images[::stride], features.labels[::stride]
    )
    monkeypatch.undo()
    expected = sample.curvature(outputs.reshape(shape), rows.reshape(7, *shape))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * expected.max())


def test_few_images_all_count(objective: Objective, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs, rows = objective.outputs(POINT[None])[0], random_rows(objective, 3)
    whole = objective.quadratic_model(outputs, rows)[1]
    monkeypatch.setattr(module, "MAX_CURVATURE_LOGITS", IMAGES * len(NAMES))
    np.testing.assert_array_equal(objective.quadratic_model(outputs, rows)[1], whole)


def test_outputs_tangents_and_models_are_counted_as_they_cost(objective: Objective) -> None:
    objective.outputs(np.stack([POINT, -POINT]))
    assert objective.forward_passes == 2
    objective.tangents(POINT, DIRECTIONS)
    assert objective.forward_passes == 2 + 1 + 4
    outputs = objective.outputs(POINT[None])[0]
    objective.outer_loss(outputs)
    objective.quadratic_model(outputs, random_rows(objective, 3))
    assert (objective.forward_passes, objective.backward_passes) == (8, 0)
