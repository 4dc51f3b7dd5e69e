"""Classes without images in one classifier: the offset is that of classes left out."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from sharpzo_engine.clip.features import Features
from sharpzo_engine.heads import extra_classes
from sharpzo_engine.heads.extra_classes import Calibration, add_offset, calibrate
from sharpzo_engine.heads.fitting import LinearHead, fit_gda
from sharpzo_engine.heads.pooling import spread
from sharpzo_engine.heads.stacking import HEAD_ALONE, HeadData, stack_heads
from tests.engine.heads.test_heads import unit_rows

SEEN, EXTRA, WIDTH = 8, 6, 32
Array = NDArray[np.float64]


def images(shots: int, seed: int = 0, classes: int = SEEN + EXTRA) -> Features:
    """Noisy unit vectors around one direction per class."""
    labels = np.arange(classes).repeat(shots)
    noise = np.random.default_rng([seed, 3]).standard_normal((len(labels), WIDTH))
    return Features(unit_rows(centres()[labels] + 1.8 * noise).astype(np.float32), labels)


def centres() -> Array:
    return np.random.default_rng(42).standard_normal((SEEN + EXTRA, WIDTH))


def texts() -> Array:
    """Directions that say something of the classes, but not all."""
    noise = np.random.default_rng(43).standard_normal((SEEN + EXTRA, WIDTH))
    return unit_rows(centres() + 1.5 * noise)


def all_of(features: Features) -> NDArray[np.bool_]:
    return np.ones(len(features), np.bool_)


def recognised(head: LinearHead, features: Features) -> tuple[float, float]:
    """Accuracies of test images of classes with and without images."""
    right = head.logits(features.images).argmax(1) == features.labels
    extra = features.labels >= SEEN
    return float(right[~extra].mean()), float(right[extra].mean())


def test_a_head_that_is_not_calibrated_hardly_recognises_classes_without_images() -> None:
    shots, test = images(16, classes=SEEN), images(60, seed=1)
    head = fit_gda(shots, SEEN + EXTRA, texts())
    calibration, _ = calibrate(shots, all_of(shots), SEEN, texts()[:SEEN])
    unit = spread(head.logits(shots.images)[:, :SEEN])
    before = recognised(head, test)
    after = recognised(add_offset(head, SEEN, calibration.offset * unit), test)
    assert before[0] - before[1] > 0.2
    assert abs(after[0] - after[1]) < (before[0] - before[1]) / 2
    assert harmonic(*after) > harmonic(*before)


def harmonic(one: float, other: float) -> float:
    return 2 * one * other / (one + other)


@pytest.mark.parametrize("shots", [1, 2, 16])
def test_the_offset_balances_what_calibration_saw(shots: int) -> None:
    training, validation = images(shots, classes=SEEN), images(8, seed=2, classes=SEEN)
    both = Features(
        np.concatenate([training.images, validation.images]),
        np.concatenate([training.labels, validation.labels]),
    )
    fitted = np.arange(len(both)) < len(training)
    found, weight = calibrate(both, fitted, SEEN, texts()[:SEEN])
    assert found.seen_accuracy == pytest.approx(found.left_out_accuracy, abs=0.02)
    assert found.seen_accuracy_without > found.seen_accuracy
    assert found.left_out_accuracy_without < found.left_out_accuracy
    assert found.offset > 0
    assert weight > 0


def test_a_turn_judges_only_what_its_head_was_not_fitted_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shots, used = images(3, classes=SEEN), []

    def spy(features: Features, classes: int, words: Array) -> LinearHead:
        used.append(features)
        return fit_gda(features, classes, words)

    monkeypatch.setattr(extra_classes, "fit_gda", spy)
    turns = list(extra_classes._turns(shots, all_of(shots), SEEN, texts()[:SEEN]))
    assert len(turns) == len(used) == 2 * extra_classes.SHUFFLES
    for own, turn in zip(used, turns, strict=True):
        kept = np.flatnonzero(~turn.left_out)
        assert turn.left_out.sum() == SEEN // 2
        np.testing.assert_array_equal(np.bincount(own.labels, minlength=SEEN)[kept], 2)
        assert len(own) == 2 * len(kept)
        assert len(turn.seen) == len(kept)  # the third image of each
        assert len(turn.rest) == 3 * (SEEN - len(kept))
        judged = {tuple(row) for row in shots.images} - {tuple(row) for row in own.images}
        assert len(judged) == len(turn.labels)
    assert all(sum(turn.left_out[k] for turn in turns) for k in range(SEEN))


def test_thresholds_are_where_answers_change() -> None:
    logits = np.array([[2.0, 1.0, 0.5], [1.0, 2.0, 0.5], [2.0, 1.0, 1.5], [0.0, 0.0, 3.0]])
    labels, left_out = np.array([0, 0, 2, 2]), np.array([False, False, True])
    turn = extra_classes._Turn.judge(logits, labels, left_out)
    np.testing.assert_array_equal(turn.seen, [1.5, -np.inf])
    np.testing.assert_array_equal(turn.rest, [0.5, -3.0])
    for offset in (-4.0, -1.0, 0.0, 0.7, 1.4, 1.6, 5.0):
        right = (logits + offset * left_out).argmax(1) == labels
        assert extra_classes._accuracies(turn.seen, turn.rest, offset) == (
            right[:2].mean(),
            right[2:].mean(),
        )


def test_the_balance_is_the_smallest_difference_of_all_offsets() -> None:
    rng = np.random.default_rng(0)
    seen, rest = rng.normal(1, 1, 50), rng.normal(0.5, 1, 70)
    seen[:5], rest[:9] = -np.inf, np.inf
    found = extra_classes._balance(seen, rest)

    def gap(offset: float) -> float:
        one, other = extra_classes._accuracies(seen, rest, offset)
        return abs(one - other)

    assert gap(found) == pytest.approx(min(map(gap, np.linspace(-5, 5, 20_001))))
    assert extra_classes._balance(np.full(3, -np.inf), np.full(3, np.inf)) == 0.0


# --- what is served


def head_data(source: str, shots: int = 6) -> HeadData:
    prompt = LinearHead(20 * texts().astype(np.float32), np.zeros(SEEN + EXTRA, np.float32))
    training = images(shots, classes=SEEN)
    validation = training if source == "training" else images(5, seed=2, classes=SEEN)
    return HeadData(training, validation, source, prompt, prompt, extra_classes=EXTRA)


@pytest.mark.parametrize("source", ["official", "holdout", "training"])
@pytest.mark.parametrize("kind", ["gda", "auto"])
def test_gda_alone_is_served_with_its_offset(source: str, kind: str) -> None:
    data = head_data(source)
    found = stack_heads(kind, data)
    served, calibration = found.served, found.choice.calibration
    assert isinstance(calibration, Calibration)
    assert (served.name, served.kind, served.prompt_weight) == ("gda", "gda", 0.0)
    assert found.rows[HEAD_ALONE] is served.head
    plain = fit_gda(data.everything, SEEN + EXTRA, data.texts)
    unit = spread(plain.logits(data.everything.images)[:, :SEEN])
    expected = served.alpha * add_offset(plain, SEEN, calibration.offset * unit).logits(
        images(2).images
    )
    np.testing.assert_allclose(served.head.logits(images(2).images), expected, atol=1e-3)
    described = found.choice.describe()
    assert described["calibration"]["offset"] == calibration.offset  # type: ignore[index]
    assert "without images" in found.choice.reason


def test_probabilities_are_calibrated() -> None:
    served = stack_heads("gda", head_data("official", shots=16)).served.head
    test = images(60, seed=1)
    logits = served.logits(test.images).astype(np.float64)
    rows = np.exp(logits - logits.max(1, keepdims=True))
    rows /= rows.sum(1, keepdims=True)
    right = rows.argmax(1) == test.labels
    assert rows.max(1).mean() == pytest.approx(right.mean(), abs=0.12)


def test_images_that_are_not_finite_leave_the_prompt() -> None:
    data = head_data("official")
    broken = Features(np.full_like(data.train.images, np.nan), data.train.labels)
    found = stack_heads("gda", replace(data, train=broken))
    assert (found.served.kind, found.served.head) == ("none", data.prompt)
    assert found.choice.calibration is None


def test_without_extra_classes_nothing_is_recorded() -> None:
    data = replace(head_data("official"), extra_classes=0)
    assert "calibration" not in stack_heads("gda", data).choice.describe()
