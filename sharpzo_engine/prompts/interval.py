"""How far a measured accuracy may be from the true one; in plain Python, for every caller."""

from __future__ import annotations

from math import sqrt

_Z = 1.959963984540054  # quantile of the standard normal distribution at 0.975


def wilson_interval(accuracy: float, images: int) -> tuple[float, float]:
    """Wilson's score interval at 95 % for the accuracy of a classifier, as fractions.

    `accuracy` is k / n for k right of n `images`. It covers which images happened to be
    drawn for the test, nothing else: not another seed or other shots, nor photos of another kind.
    Unlike the usual mean ± 1.96 standard errors it stays within 0 and 1, and keeps its width where
    all answers are right: 15 of 15 give 79.6 % to 100 %.

    Source: Wilson 1927, Probable Inference, the Law of Succession, and Statistical Inference.

    Raises:
        ValueError: there are no images, or the accuracy is no fraction.
    """
    if images < 1 or not 0 <= accuracy <= 1:
        raise ValueError(
            f"an accuracy of {accuracy} on {images} images has no interval "
            "(give a fraction from 0 to 1, and at least one image)"
        )
    square = _Z**2 / images
    middle = accuracy + square / 2
    half = sqrt(square * (accuracy * (1 - accuracy) + square / 4))
    low, high = (middle - half) / (1 + square), (middle + half) / (1 + square)
    return max(0.0, low), min(1.0, high)


def interval_figures(
    name: str, accuracy: float | None, images: int
) -> dict[str, float | int | None]:
    """The interval as two figures, `NAME_low` and `NAME_high`; None if nothing was measured."""
    low, high = (None, None) if accuracy is None else wilson_interval(accuracy, images)
    return {f"{name}_low": low, f"{name}_high": high}
