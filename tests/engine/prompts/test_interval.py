"""Wilson's intervals against published values, and against what they promise."""

import math
import random

import pytest

from sharpzo_engine.prompts.interval import interval_figures, wilson_interval


@pytest.mark.parametrize(
    ("right", "images", "low", "high"),
    [
        # Newcombe 1998, Two-sided confidence intervals for the single proportion, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        # From there to 1 the mirrored formula is n / (n + z^2): 15 / (15 + 1.96^2).
        (15, 15, 15 / (15 + 1.959964**2), 1.0),
    ],
)
def test_published_values(right: int, images: int, low: float, high: float) -> None:
    assert wilson_interval(right / images, images) == pytest.approx((low, high), abs=5e-5)


def test_the_bounds_are_the_accuracies_that_the_test_just_does_not_reject() -> None:
    """Wilson's definition: a bound b is 1.96 standard errors, computed at b, from the accuracy."""
    for images in (1, 7, 293):
        for right in range(1, images):
            accuracy = right / images
            for bound in wilson_interval(accuracy, images):
                error = math.sqrt(bound * (1 - bound) / images)
                assert abs(accuracy - bound) / error == pytest.approx(1.959964, rel=1e-6)


def test_it_is_symmetric_and_stays_between_0_and_1() -> None:
    for images in (1, 2, 15, 1097):
        for right in range(images + 1):
            low, high = wilson_interval(right / images, images)
            assert 0 <= low <= right / images <= high <= 1
            assert wilson_interval(1 - right / images, images) == pytest.approx((1 - high, 1 - low))


def test_about_95_of_100_intervals_hold_the_truth() -> None:
    rng = random.Random(1)
    held = 0
    for _ in range(2000):
        low, high = wilson_interval(sum(rng.random() < 0.8 for _ in range(60)) / 60, 60)
        held += low <= 0.8 <= high
    assert 0.93 <= held / 2000 <= 0.97


@pytest.mark.parametrize(("accuracy", "images"), [(0.5, 0), (1.1, 10), (-0.1, 10), (math.nan, 10)])
def test_what_is_no_accuracy_has_no_interval(accuracy: float, images: int) -> None:
    with pytest.raises(ValueError, match="has no interval"):
        wilson_interval(accuracy, images)


def test_figures_of_what_was_not_measured_are_none() -> None:
    assert interval_figures("a", None, 0) == {"a_low": None, "a_high": None}
    low, high = wilson_interval(0.5, 4)
    assert interval_figures("a", 0.5, 4) == {"a_low": low, "a_high": high}
