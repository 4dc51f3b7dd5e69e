"""The objective is the mean cross-entropy, however points and images are batched."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from sharpzo_engine.clip.features import Features
from sharpzo_engine.clip.torch.backbone import Backbone
from sharpzo_engine.config import PromptConfig
from sharpzo_engine.search import objective as module
from sharpzo_engine.search.objective import Objective
from sharpzo_engine.search.prompt_space import PromptSpace, draw_projection
from tests.engine.conftest import random_features

NAMES = ["cat", "red panda", "fire truck", "dog"]


@pytest.fixture
def features(clip: Backbone) -> Features:
    return random_features(50, clip.embed_dim, len(NAMES))


def points(count: int) -> np.ndarray:
    return 0.5 * np.random.default_rng(1).normal(size=(count, 512))


def test_is_the_mean_cross_entropy(clip: Backbone, features: Features) -> None:
    space = PromptSpace(clip, NAMES)
    logits = clip.logit_scale * features.images @ space.class_embeddings(points(1))[0].T
    logits, labels = torch.from_numpy(logits), torch.from_numpy(features.labels)
    expected = functional.cross_entropy(logits.double(), labels)
    assert Objective(space, features)(points(1))[0] == pytest.approx(float(expected), rel=1e-5)


def test_batching_changes_nothing(
    clip: Backbone, features: Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = Objective(PromptSpace(clip, NAMES), features)
    whole = objective(points(9))
    one_by_one = np.concatenate([objective(point[None]) for point in points(9)])
    monkeypatch.setattr(module, "MAX_EMBEDDINGS", 300)
    monkeypatch.setattr(objective._images, "max_logits", 30)
    monkeypatch.setattr(objective.space.prompts.forward, "max_rows", 30)
    np.testing.assert_allclose(one_by_one, whole, rtol=1e-6)
    np.testing.assert_allclose(objective(points(9)), whole, rtol=1e-6)


def test_counts_every_point(clip: Backbone, features: Features) -> None:
    objective = Objective(PromptSpace(clip, NAMES), features)
    objective(points(7))
    objective.score(points(1)[0])
    assert objective.forward_passes == 8


def test_score_agrees_with_the_call(clip: Backbone, features: Features) -> None:
    space = PromptSpace(clip, NAMES)
    objective = Objective(space, features)
    score = objective.score(space.origin)
    best = (features.images @ space.class_embeddings(space.origin[None])[0].T).argmax(-1)
    assert score.loss == pytest.approx(objective(space.origin)[0], rel=1e-6)
    assert score.accuracy == pytest.approx((best == features.labels).mean())


def test_the_origin_is_the_hand_written_prompt(clip: Backbone) -> None:
    space = PromptSpace(clip, NAMES)
    texts = [f"a photo of a {name}." for name in NAMES]
    with torch.inference_mode():
        expected = clip.model.encode_text(clip.tokenizer(texts), normalize=True).numpy()
    np.testing.assert_allclose(
        space.class_embeddings(space.origin[None])[0], expected, rtol=0, atol=2e-6
    )


def test_the_projection_is_fixed_by_the_seed(clip: Backbone) -> None:
    hashes = [PromptSpace(clip, NAMES, seed=seed).projection_sha256 for seed in (1, 1, 2)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_automatic_scale_matches_the_token_embeddings(clip: Backbone) -> None:
    config = PromptConfig(projection_scale=3.0)
    space = PromptSpace(clip, NAMES, config)
    offsets = space.context(np.random.default_rng(0).normal(size=(200, 512)))
    offsets = offsets - space.initial_context
    ratio = np.sqrt(np.square(offsets).mean() / np.square(space.initial_context).mean())
    assert ratio == pytest.approx(3.0, rel=0.05)


@pytest.mark.parametrize("shape", [(64, 16), (16, 64)])
@pytest.mark.parametrize("law", ["gaussian", "orthogonal"])
def test_projection_entries_have_the_standard_deviation_asked_for(
    law: str, shape: tuple[int, int]
) -> None:
    drawn = draw_projection(*shape, law, 0.2, np.random.default_rng(0))
    assert drawn.std() == pytest.approx(0.2, rel=0.1)
    if law == "orthogonal":
        gram = drawn.T @ drawn if shape[0] > shape[1] else drawn @ drawn.T
        np.testing.assert_allclose(gram, np.eye(16) * 0.2**2 * 64, atol=1e-12)


def test_the_same_calls_give_the_same_bits(clip: Backbone, features: Features) -> None:
    first, second = (Objective(PromptSpace(clip, NAMES), features) for _ in range(2))
    directions = points(6)
    for _ in range(3):
        np.testing.assert_array_equal(first(points(9)), second(points(9)))
        np.testing.assert_array_equal(
            first.directional_derivatives(points(1)[0], directions)[1],
            second.directional_derivatives(points(1)[0], directions)[1],
        )


@pytest.mark.parametrize("bad", [1e300, np.nan, np.inf])
@pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")
def test_an_overflow_is_nan_and_stays_with_its_point(
    clip: Backbone, features: Features, bad: float
) -> None:
    objective, candidates = Objective(PromptSpace(clip, NAMES), features), points(9)
    expected = objective(candidates)
    candidates[4] = bad
    expected[4] = np.nan
    np.testing.assert_array_equal(objective(candidates), expected)


def test_reduced_precision_ranks_like_full(clip: Backbone, features: Features) -> None:
    objective = Objective(PromptSpace(clip, NAMES), features)
    reduced = objective.in_precision("bfloat16")
    exact, rough = objective(points(20)), reduced(points(20))
    assert objective.forward_passes == 40
    assert rough == pytest.approx(exact, rel=0.05)
    assert np.corrcoef(exact.argsort().argsort(), rough.argsort().argsort())[0, 1] > 0.9
    assert objective.in_precision("float32") is objective


def test_no_image_is_lost_between_chunks(clip: Backbone, features: Features) -> None:
    objective = Objective(PromptSpace(clip, NAMES), features)
    loss, accuracy = objective._images.losses, objective._images.accuracy
    embeddings = objective.space.class_embeddings(points(1))
    whole = float(loss(embeddings)[0]), accuracy(embeddings[0])
    objective._images.max_logits = 7 * len(NAMES)
    assert (float(loss(embeddings)[0]), accuracy(embeddings[0])) == pytest.approx(whole, rel=1e-6)
