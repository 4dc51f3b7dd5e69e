"""Calibrated answers and the hand-written prompt, on a tuned prompt of the engine's own."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sharpzo_engine import PromptClassifier, TuneResult, TuningConfig, load_dataset, tune
from sharpzo_engine.clip.features import extract_features
from sharpzo_engine.clip.torch.backbone import Backbone
from sharpzo_engine.errors import ArtifactError, NotCalibrated
from sharpzo_engine.prompts.evaluation import evaluate

CONFIG = TuningConfig.parse(
    {
        "shots": 4,
        "total_steps": 6,
        "change_point": 3,
        "head": "gda",
        "prompt": {"intrinsic_dim": 8, "context": "a picture of the colour"},
        "cma": {"population_size": 4},
    }
)


@pytest.fixture(scope="module")
def result(clip: Backbone, pictures: Path) -> TuneResult:
    return tune(load_dataset(pictures), clip, CONFIG)


@pytest.fixture(scope="module")
def images(pictures: Path) -> list[Path]:
    return sorted(pictures.glob("test/*/*.png"))


def test_calibrated_scores_are_those_at_the_prompts_temperature(
    result: TuneResult, clip: Backbone, images: list[Path]
) -> None:
    head = {**result.prompt.metadata["head"], "temperature": 3.0}
    prompt = replace(result.prompt, metadata={**result.prompt.metadata, "head": head})
    classifier = PromptClassifier(prompt, clip)
    embeddings = classifier.embed(images)
    logits = (embeddings @ prompt.weights.T + prompt.bias) / 3.0
    exponents = np.exp(logits - logits.max(1, keepdims=True))
    expected = exponents / exponents.sum(1, keepdims=True)
    calibrated = classifier.predict(images, 3, calibrated=True)
    for row, predictions in zip(expected, calibrated, strict=True):
        np.testing.assert_allclose(
            [p.score for p in predictions], row[[p.index for p in predictions]], rtol=0, atol=1e-5
        )
    plain = classifier.predict(images, 3)
    assert [[p.label for p in row] for row in calibrated] == [
        [p.label for p in row] for row in plain
    ]
    assert all(c[0].score < p[0].score for c, p in zip(calibrated, plain, strict=True))


def test_a_prompt_without_a_temperature_is_not_calibrated(
    result: TuneResult, clip: Backbone, images: list[Path]
) -> None:
    bare = replace(result.prompt, metadata={"backbone": clip.describe()})
    with pytest.raises(NotCalibrated, match="no temperature"):
        PromptClassifier(bare, clip).predict(images, calibrated=True)
    assert PromptClassifier(bare, clip).predict(images)


def test_the_hand_written_prompt_is_what_the_run_compared_with(
    result: TuneResult, clip: Backbone, pictures: Path
) -> None:
    written = PromptClassifier(result.prompt, clip).zero_shot()
    features = extract_features(load_dataset(pictures).split("test"), clip)
    found = evaluate(written.prompt.weights, features, written.prompt.class_names)
    assert found.accuracy == result.metrics["zero_shot_accuracy"]
    assert written.prompt.temperature is None
    assert written.prompt.hand_written_context == "a picture of the colour"
    np.testing.assert_array_equal(written.prompt.bias, np.zeros(3))


def test_the_hand_written_prompt_is_open_clips_own_forward(
    result: TuneResult, clip: Backbone, images: list[Path]
) -> None:
    classifier = PromptClassifier(result.prompt, clip).zero_shot()
    names = [f"a picture of the colour {name}." for name in result.prompt.class_names]
    with torch.inference_mode():
        texts = clip.model.encode_text(clip.tokenizer(names), normalize=True)
        embeddings = torch.from_numpy(classifier.embed(images))
        expected = (clip.logit_scale * embeddings @ texts.T).softmax(-1)
    for row, predictions in zip(expected, classifier.predict(images, 3), strict=True):
        scores = {p.index: p.score for p in predictions}
        assert scores == pytest.approx(dict(enumerate(row.tolist())), abs=1e-5)
    again = classifier.zero_shot().prompt
    np.testing.assert_array_equal(again.class_embeddings, classifier.prompt.class_embeddings)


def test_some_of_the_classes_are_told_apart_as_before(
    result: TuneResult, clip: Backbone, images: list[Path]
) -> None:
    whole = PromptClassifier(result.prompt, clip)
    some = PromptClassifier(result.prompt.among(["red", "deep blue"]), clip)
    embeddings = whole.embed(images)
    assert some.prompt.stacked is not None
    assert some.prompt.temperature == result.prompt.temperature
    columns = [result.prompt.class_names.index(name) for name in ("red", "deep blue")]
    expected = whole.logits(embeddings)[:, columns]
    np.testing.assert_allclose(some.logits(embeddings), expected, rtol=1.3e-6, atol=1e-5)
    with pytest.raises(ArtifactError, match="not tuned on the class 'pink'"):
        result.prompt.among(["red", "pink"])
    with pytest.raises(ArtifactError, match="two classes"):
        result.prompt.among(["red"])


def test_the_context_stands_before_other_names(result: TuneResult, clip: Backbone) -> None:
    moved = PromptClassifier(result.prompt, clip).with_classes(["cat", "red"])
    own = result.prompt.class_embeddings[result.prompt.class_names.index("red")]
    np.testing.assert_allclose(moved.prompt.class_embeddings[1], own, rtol=0, atol=1e-5)
    assert not np.allclose(moved.prompt.class_embeddings[0], own, atol=1e-3)
    assert moved.prompt.metadata["head"] == {"kind": "none"}
    torn = replace(result.prompt, context=result.prompt.context[1:])
    with pytest.raises(ArtifactError, match="words and vectors differ"):
        PromptClassifier(torn, clip).with_classes(["cat", "dog"])
