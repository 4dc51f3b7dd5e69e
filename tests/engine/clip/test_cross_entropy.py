"""The image side in numpy and in torch: one loss, one gradient, one curvature."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sharpzo_engine.clip import cross_entropy as module
from sharpzo_engine.clip.cross_entropy import CrossEntropy
from sharpzo_engine.clip.torch import cross_entropy as torch_module
from sharpzo_engine.clip.torch.arrays import to_tensor
from sharpzo_engine.clip.torch.cross_entropy import TorchCrossEntropy
from tests.engine.conftest import random_features

Floats = NDArray[np.float32]

CPU = torch.device("cpu")
WIDTH, SCALE = 24, 30.0
#: Images and classes: few, more images than a chunk holds, more classes than images.
SIZES = [(40, 5), (40_000, 7), (90, 3_000)]
POINTS, ROWS = 3, 6


def unit_rows(*shape: int, seed: int = 1) -> Floats:
    rows = np.random.default_rng(seed).standard_normal(shape, np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def make_losses(images: int, classes: int) -> tuple[CrossEntropy, TorchCrossEntropy]:
    features = random_features(images, WIDTH, classes)
    return (
        CrossEntropy(features.images, features.labels, SCALE),
        TorchCrossEntropy(features.images, features.labels, SCALE, CPU),
    )


def exact(images: int, classes: int, embeddings: Floats) -> tuple[float, NDArray[np.float64]]:
    """The loss and its gradient by the formulas, in float64."""
    features, rows = random_features(images, WIDTH, classes), np.arange(images)
    logits = SCALE * features.images.astype(np.float64) @ embeddings.T.astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    chances = np.exp(logits)
    chances /= chances.sum(1, keepdims=True)
    loss = -np.log(chances[rows, features.labels]).mean()
    chances[rows, features.labels] -= 1
    return float(loss), SCALE / images * chances.T @ features.images


def test_the_sizes_are_smaller_and_larger_than_a_chunk() -> None:
    logits = [images * classes for images, classes in SIZES]
    for limit in (module.MAX_LOGITS, torch_module.MAX_LOGITS["cpu"]):
        assert POINTS * logits[0] < limit < min(logits[1:])
    assert logits[0] < module.MAX_CURVATURE_LOGITS < min(logits[1:])


@pytest.mark.parametrize(("images", "classes"), SIZES)
def test_losses_agree(images: int, classes: int) -> None:
    own, other = make_losses(images, classes)
    embeddings = unit_rows(POINTS, classes, WIDTH)
    found = own.losses(embeddings)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, other.losses(embeddings), rtol=1e-6)
    expected = [exact(images, classes, one)[0] for one in embeddings]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(("images", "classes"), SIZES)
def test_gradients_agree(images: int, classes: int) -> None:
    own, other = make_losses(images, classes)
    (embeddings,) = unit_rows(1, classes, WIDTH)
    loss, gradient = own.gradient(embeddings)
    other_loss, other_gradient = other.gradient(embeddings)
    expected_loss, expected = exact(images, classes, embeddings)
    assert gradient.dtype == np.float32
    assert loss == pytest.approx(other_loss, rel=1e-6)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    size = np.abs(expected).max()
    np.testing.assert_allclose(gradient, other_gradient, rtol=0, atol=1e-5 * size)
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-5 * size)


@pytest.mark.parametrize(("images", "classes"), SIZES)
def test_curvatures_agree(images: int, classes: int) -> None:
    own, other = make_losses(images, classes)
    (embeddings,) = unit_rows(1, classes, WIDTH)
    jacobian = unit_rows(ROWS, classes, WIDTH, seed=2)
    found, expected = own.curvature(embeddings, jacobian), other.curvature(embeddings, jacobian)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(found, found.T, rtol=1e-5, atol=1e-6 * np.abs(found).max())


@pytest.mark.parametrize(("images", "classes"), SIZES)
def test_accuracies_agree(images: int, classes: int) -> None:
    own, other = make_losses(images, classes)
    features = random_features(images, WIDTH, classes)
    random = unit_rows(classes, WIDTH)
    known = random.copy()  # the nearest of some images is their own class
    known[: min(images, classes)] = features.images[: min(images, classes)]
    for embeddings in (random, known):
        assert own.accuracy(embeddings) == other.accuracy(embeddings)
        best = (features.images @ embeddings.T).argmax(1)
        assert own.accuracy(embeddings) == (best == features.labels).mean()
    assert own.accuracy(known) > own.accuracy(random)


def test_parts_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    own, _ = make_losses(50, 4)
    embeddings, jacobian = unit_rows(9, 4, WIDTH), unit_rows(ROWS, 4, WIDTH, seed=2)

    def answers() -> list[NDArray[np.float64] | float]:
        loss, gradient = own.gradient(embeddings[0])
        curvature = own.curvature(embeddings[0], jacobian)
        return [own.losses(embeddings), loss, gradient, curvature, own.accuracy(embeddings[0])]

    whole = answers()
    monkeypatch.setattr(module, "MAX_LOGITS", 30)
    monkeypatch.setattr(module, "MAX_LOGIT_DERIVATIVES", 3 * ROWS * 4)
    for parts, expected in zip(answers(), whole, strict=True):
        np.testing.assert_allclose(parts, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("chunk", [2**17, 60])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_nan_and_stays_with_its_point(
    bad: float, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_LOGITS", chunk)
    embeddings = unit_rows(POINTS, 5, WIDTH)
    for loss in make_losses(40, 5):
        expected = loss.losses(embeddings)
        spoilt = embeddings.copy()
        spoilt[1, 3, 7] = bad
        expected[1] = np.nan
        np.testing.assert_array_equal(loss.losses(spoilt), expected)
        assert np.isnan(loss.gradient(spoilt[1])[0])
        assert np.isnan(loss.gradient(spoilt[1])[1]).any()


def test_the_same_calls_give_the_same_bits() -> None:
    embeddings, jacobian = unit_rows(POINTS, 7, WIDTH), unit_rows(ROWS, 7, WIDTH, seed=2)
    first, second = (make_losses(20_000, 7)[0] for _ in range(2))
    for _ in range(3):
        np.testing.assert_array_equal(first.losses(embeddings), second.losses(embeddings))
        pairs = zip(first.gradient(embeddings[0]), second.gradient(embeddings[0]), strict=True)
        for one, other in pairs:
            np.testing.assert_array_equal(one, other)
        curvatures = [loss.curvature(embeddings[0], jacobian) for loss in (first, second)]
        np.testing.assert_array_equal(*curvatures)


def shifted(array: Floats, floats: int) -> Floats:
    """The same numbers, so many floats behind an aligned address."""
    room = np.empty(array.size + 32, np.float32)
    start = -(room.ctypes.data // 4) % 16 + floats
    copy = room[start : start + array.size].reshape(array.shape)
    copy[...] = array
    return copy


@pytest.mark.parametrize("floats", [0, 1, 2, 5])
def test_tensors_are_aligned_copies_wherever_an_array_is(floats: int) -> None:
    """Kernels may round differently on other addresses, and a resumed run reads a cache."""
    array = shifted(unit_rows(9, WIDTH), floats)
    assert array.ctypes.data % 64 == 4 * floats
    tensor = to_tensor(array, CPU)
    assert tensor.data_ptr() % 64 == 0
    np.testing.assert_array_equal(tensor, array)
    array[0] = 7
    assert not (tensor == 7).any()


def test_tensors_are_made_of_any_view() -> None:
    array = unit_rows(9, WIDTH)
    array.flags.writeable = False
    for view in (array, array[::-1], array[::2], array.T):
        np.testing.assert_array_equal(to_tensor(view, CPU), view)


@pytest.mark.parametrize("floats", [0, 1, 2, 5])
def test_losses_do_not_depend_on_where_the_images_are(floats: int) -> None:
    features, embeddings = random_features(500, WIDTH, 7), unit_rows(POINTS, 7, WIDTH)
    here, there = (
        TorchCrossEntropy(images, features.labels, SCALE, CPU)
        for images in (shifted(features.images, 0), shifted(features.images, floats))
    )
    there_too = shifted(embeddings, floats)
    np.testing.assert_array_equal(here.losses(embeddings), there.losses(there_too))
    np.testing.assert_array_equal(here.gradient(embeddings[0])[1], there.gradient(there_too[0])[1])
