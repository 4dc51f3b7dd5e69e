"""Forward mode, reverse mode, finite differences and open_clip's own autograd agree."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from sharpzo_engine.clip.torch.backbone import Backbone
from sharpzo_engine.clip.torch.text_encoder import ForwardTextEncoder
from sharpzo_engine.config import PromptConfig
from sharpzo_engine.search.objective import Objective
from sharpzo_engine.search.prompt_space import PromptSpace
from tests.engine.conftest import ClipMaker, draw_backbone, draw_names, random_features


def make_objective(backbone: Backbone, names: list[str], max_rows: int | None = None) -> Objective:
    space = PromptSpace(backbone, names)
    tokens = backbone.tokenize(PromptConfig().context, names)
    space.prompts.forward = ForwardTextEncoder(backbone.tower, tokens, max_rows)
    return Objective(space, random_features(40, backbone.embed_dim, len(names)))


def plain_gradient(objective: Objective, point: np.ndarray) -> np.ndarray:
    """Autograd through open_clip's own full forward and torch's cross-entropy."""
    space, features = objective.space, objective.features
    context = torch.from_numpy(space.context(point[None])).requires_grad_()
    tokens = space.backbone.tokenize(PromptConfig().context, space.class_names)
    embeddings = space.backbone.plain_text_encoder(tokens).encode(context)[0]
    logits = space.backbone.logit_scale * torch.from_numpy(features.images) @ embeddings.T
    functional.cross_entropy(logits, torch.from_numpy(features.labels)).backward()
    assert context.grad is not None
    return context.grad.double().numpy().ravel() @ space.projection


def some_points(count: int, seed: int) -> np.ndarray:
    return 0.5 * np.random.default_rng(seed).normal(size=(count, 512))


@settings(
    max_examples=15,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],  # shrinking takes minutes and explains little
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_all_ways_to_a_slope_agree(random_clip: ClipMaker, data: st.DataObject) -> None:
    backbone, names = draw_backbone(random_clip, data), draw_names(data)
    objective = make_objective(backbone, names, data.draw(st.sampled_from([None, 20, 60])))
    point, *directions = some_points(1 + data.draw(st.integers(1, 5)), data.draw(st.integers(0, 9)))
    loss, gradient = objective.gradient(point)
    tangent_loss, slopes = objective.directional_derivatives(point, np.array(directions))
    size = np.linalg.norm(gradient) + 1e-3
    assert loss == pytest.approx(objective(point)[0], rel=1e-5)
    assert tangent_loss == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(gradient, plain_gradient(objective, point), atol=1e-4 * size)
    for slope, direction in zip(slopes, directions, strict=True):
        length = size * np.linalg.norm(direction)
        assert slope == pytest.approx(gradient @ direction, abs=1e-4 * length)
        plus, minus = objective(np.array([point + 0.01 * direction, point - 0.01 * direction]))
        assert slope == pytest.approx((plus - minus) / 0.02, abs=1e-3 * length + 1e-4)


def test_passes_are_counted_by_kind(clip: Backbone) -> None:
    objective = make_objective(clip, ["cat", "red panda"])
    point, *directions = some_points(4, 0)
    objective.directional_derivatives(point, np.array(directions))
    assert (objective.forward_passes, objective.backward_passes) == (4, 0)
    objective.gradient(point)
    assert (objective.forward_passes, objective.backward_passes) == (5, 1)


def test_a_gradient_asks_nothing_of_the_weights(clip: Backbone) -> None:
    make_objective(clip, ["cat", "dog"]).gradient(some_points(1, 0)[0])
    parameters = list(clip.model.parameters())
    assert not any(p.requires_grad or p.grad is not None for p in parameters)


@pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")
def test_where_the_point_overflows_slopes_are_nan(clip: Backbone) -> None:
    objective = make_objective(clip, ["cat", "dog"])
    loss, slopes = objective.directional_derivatives(np.full(512, 1e300), some_points(2, 0))
    assert np.isnan(loss)
    assert np.isnan(slopes).all()
