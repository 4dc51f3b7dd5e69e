"""Choosing and stacking: on unseen images only, and never worse for a head that does harm."""

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import log_softmax

from sharpzo_engine.clip.features import Features
from sharpzo_engine.heads import stacking
from sharpzo_engine.heads.fitting import LinearHead, fit_gda
from sharpzo_engine.heads.pooling import NO_POOL, fit_pool, spread
from sharpzo_engine.heads.stacking import (
    HEAD_ALONE,
    PROMPT,
    STACKED,
    TEMPLATES,
    TIP_ADAPTER,
    WRITTEN_STACKED,
    ZERO_SHOT,
    HeadData,
    accuracy,
    stack_heads,
)
from tests.engine.heads.test_heads import CLASSES, WIDTH, clusters, unit_rows

Real = NDArray[np.floating]


def a_prompt(quality: float, seed: int = 5) -> LinearHead:
    """Class rows between noise (0) and the classes' own directions (1)."""
    means = fit_gda(clusters(1, seed=50), CLASSES).weights
    noise = np.random.default_rng(seed).standard_normal((CLASSES, WIDTH))
    rows = unit_rows(quality * unit_rows(means) + (1 - quality) * unit_rows(noise))
    return LinearHead(20 * rows.astype(np.float32), np.zeros(CLASSES, np.float32))


def head_data(source: str = "official", shots: int = 8, **changes: object) -> HeadData:
    fields: dict[str, object] = {
        "train": clusters(shots),
        "validation": clusters(6, seed=1),
        "source": source,
        "prompt": a_prompt(0.7),
        "zero_shot": a_prompt(0.4),
    }
    if source == "training":
        fields["validation"] = fields["train"]
    data = HeadData(**{**fields, **changes})  # type: ignore[arg-type]
    if "unbiased" in changes:
        return data
    return replace(data, unbiased=data.prompt.logits(data.validation.images))


def mislabelled(features: Features) -> Features:
    """Every class under the next one's name: a head fitted to this only does harm."""
    return Features(features.images, (features.labels + 1) % CLASSES)


# --- pools


def some_members() -> tuple[Real, Real, NDArray[np.int64]]:
    test = clusters(12, seed=3)
    prompt, head = a_prompt(0.6), fit_gda(clusters(4), CLASSES)
    return prompt.logits(test.images), head.logits(test.images), test.labels


def test_a_pool_has_the_most_likely_weights() -> None:
    first, second, labels = some_members()
    pool = fit_pool([first, second], labels)

    def loss(a: float, b: float) -> float:
        chances = log_softmax(a * first.astype(np.float64) + b * second, axis=1)
        return float(-chances[np.arange(len(labels)), labels].mean())

    a, b = pool.weights
    assert pool.loss == pytest.approx(loss(a, b))
    for factor in (0.8, 1.25):
        assert loss(a * factor, b) > pool.loss
        assert loss(a, b * factor) > pool.loss


def test_one_member_gets_its_temperature() -> None:
    first, _, labels = some_members()
    (weight,) = fit_pool([first], labels).weights
    (again,) = fit_pool([first * weight], labels).weights
    assert again == pytest.approx(1, abs=0.02)  # but for the prior


def test_perfectly_separated_images_leave_weights_finite() -> None:
    pool = fit_pool([np.eye(3), np.eye(3)], np.arange(3))
    assert all(0 < weight < 100 for weight in pool.weights)


@pytest.mark.parametrize("bad", [np.full((60, 5), np.nan), np.ones((60, 5))])
def test_logits_that_say_nothing_make_no_pool(bad: Real) -> None:
    first, _, labels = some_members()
    assert fit_pool([first, bad], labels) is NO_POOL


def test_a_member_that_is_always_wrong_makes_no_pool() -> None:
    first, second, labels = some_members()
    assert fit_pool([first, -second], labels) is NO_POOL


# --- choosing


def test_a_good_head_is_stacked_and_gains() -> None:
    found = stack_heads("auto", head_data())
    test = clusters(40, seed=2)
    assert found.served.kind in ("gda", "linear")
    names = [ZERO_SHOT, PROMPT, HEAD_ALONE, STACKED, WRITTEN_STACKED, TIP_ADAPTER]
    assert list(found.rows) == names
    rows = {name: accuracy(head, test) for name, head in found.rows.items()}
    assert accuracy(found.served.head, test) >= max(rows[PROMPT], rows[HEAD_ALONE] - 0.02)


def test_unlabelled_images_are_used_in_the_head_and_in_cross_validation() -> None:
    more = clusters(40, seed=4).images
    plain, wanted = (head_data("training", 4, unlabelled=u) for u in (None, more))
    served = stack_heads("gda", wanted).served
    test = clusters(10, seed=2).images
    head = fit_gda(wanted.train, CLASSES, wanted.texts, more)
    trial = stack_heads("gda", wanted).choice.candidates[0]
    assert served.name == trial.name == "gda"
    expected = served.alpha * head.logits(test)
    np.testing.assert_allclose(served.head.logits(test), expected, rtol=0, atol=1e-4)
    unseen = [
        fit_gda(seen, CLASSES, wanted.texts, more).logits(judged.images)
        for seen, judged in wanted.folds()
    ]
    labels = np.concatenate([judged.labels for _, judged in wanted.folds()])
    assert trial.loss == pytest.approx(fit_pool([np.concatenate(unseen)], labels).loss)
    assert trial.loss != stack_heads("gda", plain).choice.candidates[0].loss


def test_the_stack_is_one_matrix_and_one_bias() -> None:
    wanted = head_data(validation=clusters(40, seed=1), prompt=a_prompt(0.9))
    test = clusters(3, seed=2)
    served = stack_heads("gda", wanted).served
    assert served.name == "tuned prompt + gda"
    head = fit_gda(wanted.train, CLASSES, wanted.texts)
    expected = wanted.prompt.logits(test.images) + served.alpha * head.logits(test.images)
    np.testing.assert_allclose(served.head.logits(test.images), expected, rtol=0, atol=1e-4)
    assert (served.prompt_weight, served.head.weights.dtype) == (1.0, np.float32)


def test_auto_takes_no_head_that_only_does_harm() -> None:
    bad = head_data(train=mislabelled(clusters(8)))
    found = stack_heads("auto", bad)
    assert found.served.kind == "none"
    np.testing.assert_array_equal(found.served.head.weights, bad.prompt.weights)
    assert stack_heads("gda", bad).served.alpha == 0


def test_auto_drops_a_prompt_that_only_does_harm() -> None:
    good = a_prompt(0.9)
    served = stack_heads("auto", head_data(prompt=LinearHead(-good.weights, good.bias))).served
    assert "tuned prompt" not in served.name
    assert accuracy(served.head, clusters(40, seed=2)) > 0.6


def test_validation_decides_though_test_images_would_say_otherwise() -> None:
    # Validation swears by the head, test images by the prompt: nothing but the former is seen.
    validation = mislabelled(clusters(6, seed=1))
    wanted = head_data(train=mislabelled(clusters(8)), validation=validation, prompt=a_prompt(0.9))
    found, test = stack_heads("auto", wanted), clusters(40, seed=2)
    assert found.served.kind != "none"
    assert accuracy(found.served.head, validation) > 0.6
    assert accuracy(found.served.head, test) < 0.2 < accuracy(wanted.prompt, test)


def test_the_temperature_calibrates_what_is_served() -> None:
    wanted = head_data(validation=clusters(200, seed=1))
    for kind in ("none", "gda", "linear"):
        served = stack_heads(kind, wanted).served
        logits = served.head.logits(wanted.validation.images).astype(np.float64)
        (left,) = fit_pool([logits / served.temperature], wanted.validation.labels).weights
        assert left == pytest.approx(1, abs=0.02)


def test_a_class_may_be_missing_from_validation() -> None:
    full = clusters(6, seed=1)
    served = stack_heads("auto", head_data(validation=full[full.labels != 2])).served
    assert accuracy(served.head, clusters(40, seed=2)) > 0.6


def test_held_out_images_are_trained_on_in_the_end() -> None:
    wanted = head_data("holdout", train=clusters(6), validation=clusters(2, seed=1))
    served, test = stack_heads("gda", wanted).served, clusters(3, seed=2)
    both = Features(
        np.concatenate([wanted.train.images, wanted.validation.images]),
        np.concatenate([wanted.train.labels, wanted.validation.labels]),
    )
    head = fit_gda(both, CLASSES, wanted.texts)
    logits = served.alpha * head.logits(test.images)
    expected = served.prompt_weight * wanted.prompt.logits(test.images) + logits
    np.testing.assert_allclose(served.head.logits(test.images), expected, rtol=0, atol=1e-4)


def test_an_official_split_is_never_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, fitted = head_data(), []
    recipe = stacking.Recipe("gda", lambda f, d: fitted.append(f) or fit_gda(f, d.classes))
    monkeypatch.setattr(stacking, "RECIPES", {"gda": (recipe,)})
    stack_heads("auto", wanted)
    assert fitted == [wanted.train]


@pytest.mark.parametrize("shots", [2, 3])
def test_training_images_are_judged_by_heads_that_have_not_seen_them(shots: int) -> None:
    folds = list(head_data("training", shots).folds())
    assert len(folds) == shots
    for seen, judged in folds:
        assert sorted(judged.labels.tolist()) == list(range(CLASSES))
        rows = {tuple(row) for row in seen.images.tolist()}
        assert rows.isdisjoint(tuple(row) for row in judged.images.tolist())
        assert len(seen) + len(judged) == shots * CLASSES


def test_a_prompt_that_knows_the_training_images_by_heart_does_not_silence_the_head() -> None:
    train = clusters(3)
    by_heart = fit_gda(train, CLASSES)
    overfitted = LinearHead(*LinearHead(100 * by_heart.weights, 100 * by_heart.bias).in_float32())
    served = stack_heads("auto", head_data("training", 3, prompt=overfitted)).served
    assert served.kind != "none"
    assert served.alpha > 0


def test_with_one_shot_the_head_is_spread_as_the_prompt() -> None:
    wanted = head_data("training", 1)
    served = stack_heads("auto", wanted).served
    assert (served.name, served.temperature) == ("gda", 1.0)
    head = fit_gda(wanted.train, CLASSES, wanted.texts).logits(wanted.train.images)
    of_prompt = spread(wanted.prompt.logits(wanted.train.images))
    assert served.alpha * spread(head) == pytest.approx(of_prompt)


@pytest.mark.parametrize("source", ["official", "holdout", "training"])
def test_a_prompt_that_chose_itself_is_not_served(source: str) -> None:
    """It knows the validation images by heart, and nothing else; unbiased logits show that."""
    few = clusters(8, seed=1)
    by_heart = LinearHead(*fit_gda(few, CLASSES).in_float32())
    noise = a_prompt(0.0, seed=8).logits(few.images)
    wanted = head_data(source, train=few, validation=few, prompt=by_heart, unbiased=noise)
    assert "tuned prompt" not in stack_heads("auto", wanted).served.name


def test_a_lead_that_may_be_chance_serves_the_default() -> None:
    """Two images per class cannot show that the better prompt is better; many can."""
    for images, name in ((2, "gda"), (40, "tuned prompt + linear")):
        wanted = head_data(validation=clusters(images, seed=1), prompt=a_prompt(0.9))
        found = stack_heads("auto", wanted)
        assert found.served.name == name
        assert found.choice.images == images * CLASSES
        assert found.choice.candidates[0].loss < next(
            line.loss for line in found.choice.candidates if line.name == "hand-written prompt"
        )
        assert name in found.choice.reason


def test_one_validation_image_compares_nothing() -> None:
    one = clusters(1, seed=1)[:1]
    found = stack_heads("auto", head_data(validation=one, prompt=a_prompt(0.9)))
    assert found.served.name == "gda"
    assert found.choice.reason == "gda: no images are left to compare candidates on"
    assert (found.choice.images, found.choice.candidates) == (1, ())


@pytest.mark.parametrize("source", ["official", "holdout", "training"])
def test_what_is_served_in_place_of_a_broken_head_is_said(source: str) -> None:
    bad = clusters(1 if source == "training" else 4)
    bad.images[0] = np.nan
    found = stack_heads("gda", head_data(source, train=bad))
    assert found.served.name in found.choice.reason.split(":")[0]


def test_a_hand_written_prompt_can_be_served() -> None:
    """Training images say the wrong thing, and the tuned prompt is noise."""
    wanted = head_data(
        train=mislabelled(clusters(8)), prompt=a_prompt(0.0), zero_shot=a_prompt(0.9)
    )
    found = stack_heads("auto", wanted)
    assert (found.served.name, found.served.kind) == ("hand-written prompt", "none")
    np.testing.assert_array_equal(found.served.head.weights, wanted.zero_shot.weights)
    assert not found.served.is_prompt


def test_templates_are_a_row_and_half_of_the_texts() -> None:
    wanted = head_data(templates=a_prompt(0.6))
    assert TEMPLATES in stack_heads("auto", wanted).rows
    np.testing.assert_allclose(
        wanted.texts, wanted.zero_shot.weights + a_prompt(0.6).weights, rtol=1e-6
    )
    found = stack_heads("auto", wanted)
    expected = fit_gda(wanted.train, CLASSES, wanted.texts)
    (recipe,) = stacking.RECIPES["gda"]
    fitted = recipe.fit(wanted.train, wanted)
    assert isinstance(fitted, LinearHead)
    np.testing.assert_array_equal(fitted.weights, expected.weights)
    assert "templates + gda" in {line.name for line in found.choice.candidates}


@pytest.mark.parametrize("source", ["official", "holdout", "training"])
def test_images_that_are_not_finite_leave_the_prompt_alone(source: str) -> None:
    bad = clusters(4)
    bad.images[0] = np.nan
    for kind in ("auto", "gda"):
        served = stack_heads(kind, head_data(source, train=bad)).served
        assert served.head.is_finite
        assert math.isfinite(served.temperature)


def test_no_head_fits_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacking, "RECIPES", None)
    found = stack_heads("none", head_data())
    assert (found.served.kind, list(found.rows)) == ("none", [ZERO_SHOT, PROMPT])


def test_many_validation_images_are_thinned_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacking, "MAX_LOGITS", 60)
    ((_, judged),) = head_data(validation=clusters(6, seed=1)).folds()
    assert np.bincount(judged.labels).tolist() == [2] * CLASSES
