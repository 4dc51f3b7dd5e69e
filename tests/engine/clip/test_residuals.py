"""Tuning on encoders that know no context vectors: of level `texts`, and of level `images`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sharpzo_engine import PromptClassifier, TunedPrompt, TuningConfig, load_dataset, tune
from sharpzo_engine.clip.encoder import DifferentiablePrompts, Prompts
from sharpzo_engine.clip.level import Level
from sharpzo_engine.clip.residuals import ResidualPrompts, hand_written, prototypes
from sharpzo_engine.clip.torch.backbone import Backbone
from sharpzo_engine.errors import LevelMissing

CLASSES, WIDTH = 5, 24
QUICK = {"max_forward_passes": 400, "shots": 4, "cma": {"population_size": 6}}


class Restricted:
    """An encoder of a lower level."""

    def __init__(self, backbone: Backbone, level: Level) -> None:
        self._backbone = backbone
        self.level = level

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)

    def prompts(self, words: str, class_names: Any) -> Prompts:
        if self.level is Level.IMAGES:
            raise LevelMissing("texts need an encoder of level texts")
        own = self._backbone.prompts(words, class_names)
        return ResidualPrompts(own.encode(own.initial_context[None])[0])


@pytest.fixture
def prompts() -> ResidualPrompts:
    rows = np.random.default_rng(1).standard_normal((CLASSES, WIDTH)).astype(np.float32)
    return ResidualPrompts(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def test_the_start_is_the_embeddings_themselves(prompts: ResidualPrompts) -> None:
    start = prompts.encode(prompts.initial_context[None])[0]
    np.testing.assert_allclose(np.linalg.norm(start, axis=-1), 1, rtol=1e-6)
    np.testing.assert_allclose(start, prompts.tangent(prompts.initial_context).embeddings)
    assert isinstance(prompts, DifferentiablePrompts)


def test_the_residuals_reach_what_distinguishes_the_classes(prompts: ResidualPrompts) -> None:
    start = prompts.encode(prompts.initial_context[None])[0]
    differences = start - start.mean(0)
    frame = np.linalg.qr(prompts.basis.T.astype(np.float64))[0]
    np.testing.assert_allclose(differences @ frame @ frame.T, differences, atol=1e-6)


def test_derivatives_are_those_of_the_encoding(prompts: ResidualPrompts) -> None:
    rng = np.random.default_rng(2)
    at, directions = rng.standard_normal((2, 3, *prompts.initial_context.shape)).astype(np.float32)
    step = np.float32(1e-2)
    ahead, behind = (prompts.encode(at[:1] + sign * step * directions) for sign in (1, -1))
    expected = (ahead - behind) / (2 * step)
    tangent = prompts.tangent(at[0])
    np.testing.assert_allclose(tangent.products(directions), expected, atol=1e-4)
    cotangent = rng.standard_normal((CLASSES, WIDTH)).astype(np.float32)
    slopes = (tangent.products(directions) * cotangent).sum((1, 2))
    np.testing.assert_allclose(tangent.slopes(directions, cotangent), slopes, rtol=1e-4, atol=1e-6)
    pulled = prompts.reverse(at[0]).pull_back(cotangent)
    np.testing.assert_allclose((directions * pulled).sum((1, 2)), slopes, rtol=1e-4, atol=1e-6)


def test_prototypes_are_the_mean_images() -> None:
    images = np.array([[1, 0], [1, 0], [0, 1], [0.6, 0.8]], np.float32)
    found = prototypes(images, np.array([0, 0, 1, 1]), 2)
    start = found.encode(found.initial_context[None])[0]
    np.testing.assert_allclose(start[0], [1, 0], atol=1e-6)
    np.testing.assert_allclose(start[1], np.array([0.3, 0.9]) / np.hypot(0.3, 0.9), atol=1e-6)


def test_texts_are_the_words_with_the_names() -> None:
    assert hand_written("a photo of a", ["ice_cream"]) == ["a photo of a ice cream."]


@pytest.mark.parametrize("level", [Level.TEXTS, Level.IMAGES])
@pytest.mark.parametrize("method", ["sharpzo", "cma-es", "zo", "first-order"])
def test_tuning_works_at_every_level(
    clip: Backbone, pictures: Path, tmp_path: Path, level: Level, method: str
) -> None:
    encoder: Any = Restricted(clip, level)
    config = TuningConfig.parse({**QUICK, "method": method})
    result = tune(load_dataset(pictures, shots=4), encoder, config)
    assert result.metrics["loss"] < 1.0986  # of chance among three classes
    result.prompt.save(tmp_path / "p.safetensors")
    classifier = PromptClassifier(TunedPrompt.load(tmp_path / "p.safetensors"), encoder)
    assert len(classifier.predict(sorted(pictures.glob("test/*/*")))) == 9
    assert classifier.has_zero_shot == (level is Level.TEXTS)
    if classifier.has_zero_shot:
        assert classifier.zero_shot().prompt.weights.shape == (3, clip.embed_dim)
    with pytest.raises(LevelMissing, match="level contexts"):
        classifier.with_classes(["pink", "brown"])
