"""The slice of the loss around a result, on functions whose slices are known."""

import numpy as np
import pytest

from sharpzo_engine.search.landscape import (
    ACROSS,
    ALONG,
    Array,
    Landscape,
    NoLandscape,
    SearchSpeed,
    compute_landscape,
    orthogonal,
)

ORIGIN = np.full(8, 0.5)
RESULT = np.arange(8.0)
QUICK = SearchSpeed(seconds=1.0, forward_passes=10_000)


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def distance_to_result(points: Array) -> Array:
    squares: Array = ((points - RESULT) ** 2).sum(-1)
    return squares


def test_a_quadratic_has_its_circles_around_the_result() -> None:
    found = compute_landscape(distance_to_result, ORIGIN, RESULT, rng(), QUICK)
    assert isinstance(found, Landscape)
    step = float(((RESULT - ORIGIN) ** 2).sum())
    expected = step * ((found.x[None, :] - 1) ** 2 + found.y[:, None] ** 2)
    np.testing.assert_allclose(found.loss, expected, atol=1e-9)
    assert found.forward_passes == found.loss.size == 17 * 11


def test_both_prompts_lie_on_the_grid() -> None:
    assert {0.0, 1.0} <= set(ALONG)
    assert 0.0 in ACROSS.round(12)
    found = compute_landscape(distance_to_result, ORIGIN, RESULT, rng(), QUICK)
    assert isinstance(found, Landscape)
    row = int(np.abs(found.y).argmin())
    assert found.loss[row, list(found.x).index(1.0)] == pytest.approx(0, abs=1e-9)


def test_the_direction_across_is_orthogonal_as_long_and_the_seeds() -> None:
    across = orthogonal(RESULT, rng())
    assert across @ RESULT == pytest.approx(0, abs=1e-9)
    assert np.linalg.norm(across) == pytest.approx(np.linalg.norm(RESULT))
    assert np.array_equal(across, orthogonal(RESULT, rng()))
    assert not np.array_equal(across, orthogonal(RESULT, np.random.default_rng(4)))


def never(points: Array) -> Array:
    raise AssertionError("nothing may be evaluated")


def test_there_is_no_slice_without_a_result() -> None:
    found = compute_landscape(never, ORIGIN, ORIGIN.copy(), rng(), QUICK)
    assert isinstance(found, NoLandscape)
    assert "no better prompt" in found.reason
    assert found.forward_passes == 0


@pytest.mark.parametrize(
    ("seconds", "passes", "skipped"),
    [
        (60.0, 8000, False),  # 1.4 s
        (60.0, 600, True),  # 18.7 s: more than 10 s, and than 5 % of a minute
        (6000.0, 10_000, False),  # 112 s, less than 5 %
        (6000.0, 3000, True),  # 374 s
        (5.0, 1, True),  # hardly begun: a pass takes seconds
        (0.0, 0, False),
    ],
)
def test_a_slow_encoder_is_spared(seconds: float, passes: int, skipped: bool) -> None:
    found = compute_landscape(
        distance_to_result, ORIGIN, RESULT, rng(), SearchSpeed(seconds, passes)
    )
    assert isinstance(found, NoLandscape) is skipped
    if isinstance(found, NoLandscape):
        assert "187 forward passes would take" in found.reason


def test_what_a_row_raises_ends_the_survey() -> None:
    seen: list[tuple[int, int]] = []

    def stop_at_3(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compute_landscape(distance_to_result, ORIGIN, RESULT, rng(), QUICK, stop_at_3)
    assert seen == [(0, 11), (1, 11), (2, 11), (3, 11)]
