"""Heads against independent computations: the direct formulas and scikit-learn."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression

from sharpzo_engine.clip.features import Features
from sharpzo_engine.errors import TooFewImages
from sharpzo_engine.heads.fitting import (
    ROUNDS,
    SHARPNESS,
    TOLERANCE,
    BlendedHead,
    CacheHead,
    LinearHead,
    fit_gda,
    fit_linear,
)

CLASSES, WIDTH = 5, 24
Array = NDArray[np.float64]


def clusters(shots: int, seed: int = 0, classes: int = CLASSES, width: int = WIDTH) -> Features:
    """Noisy unit vectors around one direction per class; the directions are always the same."""
    centres = np.random.default_rng(99).standard_normal((classes, width))
    labels = np.arange(classes).repeat(shots)
    noise = np.random.default_rng([seed, 7]).standard_normal((len(labels), width))
    return Features(unit_rows(centres[labels] + 1.5 * noise), labels)


def unit_rows(rows: Array) -> Array:
    scaled: Array = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    return scaled


def arrays(features: Features) -> tuple[Array, NDArray[np.int64]]:
    return features.images.astype(np.float64), features.labels


def centred(logits: Array) -> Array:
    return logits - logits.mean(1, keepdims=True)


def logits_of(head: LinearHead, features: Features) -> Array:
    return head.logits(features.images).astype(np.float64)


@pytest.mark.parametrize("shots", [2, 3, 16])
def test_gda_is_the_formula(shots: int) -> None:
    images, labels = arrays(clusters(shots))
    means = np.stack([images[labels == k].mean(0) for k in range(CLASSES)])
    covariance = np.cov((images - means[labels]).T)
    shrunk = (len(images) - 1) * covariance + np.trace(covariance) * np.eye(WIDTH)
    precision = WIDTH * np.linalg.inv(shrunk)
    test = clusters(4, seed=1)
    x, _ = arrays(test)
    expected = x @ precision @ means.T - 0.5 * np.diag(means @ precision @ means.T)
    found = logits_of(fit_gda(clusters(shots), CLASSES), test)
    np.testing.assert_allclose(found, centred(expected), rtol=0, atol=1e-8)


def test_gda_labels_as_scikit_learns_discriminant_analysis() -> None:
    many, test = clusters(400), clusters(40, seed=1)
    theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(*arrays(many))
    ours = logits_of(fit_gda(many, CLASSES), test).argmax(1)
    assert (ours == theirs.predict(arrays(test)[0])).mean() > 0.98  # its covariance is not shrunk


@pytest.mark.parametrize("penalty", [0.1, 1.0])
def test_linear_is_scikit_learns_logistic_regression(penalty: float) -> None:
    train, test = clusters(16), clusters(20, seed=1)
    theirs = LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=5000).fit(*arrays(train))
    ours = logits_of(fit_linear(train, CLASSES, penalty, tolerance=1e-12), test)
    expected = centred(theirs.decision_function(arrays(test)[0]))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-3)


def test_the_usual_tolerance_of_linear_is_enough() -> None:
    train, test = clusters(16), clusters(20, seed=1)
    usual, exact = (fit_linear(train, CLASSES, 0.1, tolerance=t) for t in (TOLERANCE, 1e-12))
    gap = np.abs(logits_of(usual, test) - logits_of(exact, test))
    assert gap.max() < 0.02 * np.abs(logits_of(exact, test)).max()


def test_fits_are_deterministic() -> None:
    for fit in (lambda: fit_gda(clusters(4), CLASSES), lambda: fit_linear(clusters(4), CLASSES, 1)):
        np.testing.assert_array_equal(fit().weights, fit().weights)


def test_with_one_image_per_class_the_nearest_wins() -> None:
    head, test = fit_gda(clusters(1), CLASSES), clusters(8, seed=1)
    distances = cdist(test.images, clusters(1).images)
    np.testing.assert_array_equal(head.logits(test.images).argmax(1), distances.argmin(1))


def test_equal_images_in_a_class_are_no_trouble() -> None:
    one = clusters(1)
    double = Features(np.tile(one.images, (2, 1)), np.tile(one.labels, 2))
    for head in (fit_gda(double, CLASSES), fit_linear(double, CLASSES, 0.1)):
        assert head.is_finite
        np.testing.assert_array_equal(head.logits(one.images).argmax(1), one.labels)


def test_a_class_without_images_gets_no_opinion() -> None:
    features = clusters(6, classes=CLASSES - 1)
    head = fit_gda(features, CLASSES)
    assert head.is_finite
    scores = head.logits(features.images)
    np.testing.assert_allclose(scores[:, -1], scores[:, :-1].mean(1), rtol=0, atol=50)
    np.testing.assert_array_equal(scores.argmax(1), features.labels)
    assert fit_linear(features, CLASSES, 1.0).is_finite


def test_images_that_are_not_finite_make_a_head_that_is_not() -> None:
    bad = clusters(3)
    bad.images[0, 0] = np.nan
    assert not fit_gda(bad, CLASSES).is_finite
    assert not fit_linear(bad, CLASSES, 1.0).is_finite


def test_the_cache_model_is_the_formula() -> None:
    keys, test = clusters(3), clusters(2, seed=1)
    x, _ = arrays(test)
    k, y = arrays(keys)
    expected = np.exp(-5.5 * (1 - x @ k.T)) @ np.eye(CLASSES)[y]
    cache = CacheHead(keys, CLASSES, 5.5)
    np.testing.assert_allclose(cache.logits(test.images), expected, rtol=1e-5)
    prompt = LinearHead(np.eye(CLASSES, WIDTH, dtype=np.float32), np.ones(CLASSES, np.float32))
    blend = BlendedHead(prompt, 1.0, cache, 2.0).logits(test.images)
    np.testing.assert_allclose(blend, x[:, :CLASSES] + 1 + 2 * expected, rtol=1e-5)


# --- means drawn towards texts


def texts_of(classes: int = CLASSES, noise: float = 0.0) -> NDArray[np.float32]:
    """Text embeddings that are the classes' true directions, elsewhere and in another scale."""
    true = np.random.default_rng(99).standard_normal((classes, WIDTH))
    rows = 3 * unit_rows(true) + 5
    return (rows + noise * np.random.default_rng(7).standard_normal(rows.shape)).astype(np.float32)


def test_informed_means_are_the_formula() -> None:
    features, texts = clusters(3), texts_of(noise=3.0).astype(np.float64)
    found = fit_gda(features, CLASSES, texts)
    images = features.images.astype(np.float64)
    means = np.stack([images[features.labels == c].mean(0) for c in range(CLASSES)])
    spread, centred = texts - texts.mean(0), means - means.mean(0)
    prior = means.mean(0) + (spread * centred).sum() / (spread**2).sum() * spread
    residuals = images - means[features.labels]
    within = (residuals**2).sum() / (len(images) - CLASSES)
    distance = ((means - prior) ** 2).sum() / (CLASSES - 1)
    kappa = within / (distance - within / 3)
    assert 0 < kappa < 100
    informed = (3 * means + kappa * prior) / (3 + kappa)
    scatter = residuals.T @ residuals
    trace = scatter.trace() / (len(images) - 1)
    rows = np.linalg.solve((scatter + trace * np.eye(WIDTH)) / WIDTH, informed.T).T
    expected = LinearHead(rows, -0.5 * (informed * rows).sum(1)).centred()
    np.testing.assert_allclose(found.weights, expected.weights, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.bias, expected.bias, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("shots", [1, 2])
def test_texts_help_where_images_are_few(shots: int) -> None:
    test = clusters(60, seed=3)
    plain, informed = (
        np.mean([_right(fit_gda(clusters(shots, seed=s), CLASSES, t), test) for s in range(10)])
        for t in (None, texts_of())
    )
    assert informed > plain + 0.02


def test_useless_texts_do_little_harm() -> None:
    noise = np.random.default_rng(3).standard_normal((CLASSES, WIDTH))
    test = clusters(60, seed=3)
    plain, misled = (
        np.mean([_right(fit_gda(clusters(4, seed=s), CLASSES, t), test) for s in range(10)])
        for t in (None, noise)
    )
    assert misled > plain - 0.03


def test_equal_texts_change_nothing_but_the_shrinkage() -> None:
    features = clusters(4)
    found = fit_gda(features, CLASSES, np.ones((CLASSES, WIDTH)))
    assert found.is_finite
    assert _right(found, features) == _right(fit_gda(features, CLASSES), features)


def test_a_class_without_images_gets_what_its_text_says() -> None:
    seen = clusters(8)
    train = seen[seen.labels != CLASSES - 1]
    test = clusters(60, seed=3)
    unseen = test[test.labels == CLASSES - 1]
    plain, informed = (_right(fit_gda(train, CLASSES, texts), test) for texts in (None, texts_of()))
    assert informed > plain
    assert _right(fit_gda(train, CLASSES, texts_of()), unseen) > 0.5


def _right(head: LinearHead, features: Features) -> float:
    return float((head.logits(features.images).argmax(1) == features.labels).mean())


# --- images without labels


def test_rounds_of_unlabelled_images_are_the_formula() -> None:
    shots, texts, more = clusters(3), texts_of(noise=3.0), clusters(9, seed=5).images
    found = fit_gda(shots, CLASSES, texts, more)
    images, labels = arrays(shots)
    own = np.stack([images[labels == k].mean(0) for k in range(CLASSES)])
    start = fit_gda(shots, CLASSES, texts)
    count, informed = posterior(shots, texts.astype(np.float64))
    u = more.astype(np.float64)
    weights, bias = start.weights, start.bias
    for _ in range(ROUNDS):
        z = u @ weights.T + bias
        z = z - z.mean(1, keepdims=True)
        raised = np.exp(SHARPNESS * z / np.sqrt((z**2).mean()))
        p = raised / raised.sum(1, keepdims=True)
        sure = p.max(1)
        shares = p * sure[:, None]
        means = (count * informed + shares.T @ u) / (count + shares.sum(0)[:, None])
        scatter = sum(np.outer(x - own[y], x - own[y]) for x, y in zip(images, labels, strict=True))
        for x, k, w in zip(u, p.argmax(1), sure, strict=True):
            scatter = scatter + w * np.outer(x - means[k], x - means[k])
        trace = np.trace(scatter) / (len(images) + sure.sum() - 1)
        weights = np.linalg.solve((scatter + trace * np.eye(WIDTH)) / WIDTH, means.T).T
        bias = -0.5 * (means * weights).sum(1)
    test = clusters(4, seed=1).images
    expected = centred(test @ weights.T + bias)
    np.testing.assert_allclose(found.logits(test), expected, rtol=0, atol=1e-4)


def posterior(features: Features, texts: Array) -> tuple[float, Array]:
    """How many images a class's mean counts as, and the means, from shots and texts."""
    images, labels = arrays(features)
    shots = len(images) // CLASSES
    means = np.stack([images[labels == k].mean(0) for k in range(CLASSES)])
    around, apart = texts - texts.mean(0), means - means.mean(0)
    prior = means.mean(0) + (around * apart).sum() / (around**2).sum() * around
    within = ((images - means[labels]) ** 2).sum() / (len(images) - CLASSES)
    distance = ((means - prior) ** 2).sum() / (CLASSES - 1)
    kappa = within / (distance - within / shots)
    return shots + kappa, (shots * means + kappa * prior) / (shots + kappa)


@pytest.mark.parametrize("texts", [None, texts_of(noise=3.0)])
@pytest.mark.parametrize("frequencies", [(60,) * CLASSES, (60, 47, 33, 20, 6)])
def test_unlabelled_images_help(
    texts: NDArray[np.float32] | None, frequencies: tuple[int, ...]
) -> None:
    test, pool = clusters(60, seed=3), clusters(60, seed=4)
    more = pool[pool.turns() < np.take(frequencies, pool.labels)].images
    alone, helped = (
        np.mean([_right(fit_gda(clusters(2, seed=s), CLASSES, texts, u), test) for s in range(10)])
        for u in (None, more)
    )
    assert helped > alone + 0.02


def test_a_class_without_shots_is_found_among_unlabelled_images() -> None:
    seen, test, more = clusters(8), clusters(60, seed=3), clusters(30, seed=4).images
    train = seen[seen.labels != CLASSES - 1]
    unseen = test[test.labels == CLASSES - 1]
    texts = texts_of(noise=1.0)
    alone, helped = (_right(fit_gda(train, CLASSES, texts, u), unseen) for u in (None, more))
    assert helped >= alone
    assert fit_gda(train, CLASSES, None, more).is_finite


def test_few_unlabelled_images_are_refused() -> None:
    more = clusters(5).images
    assert fit_gda(clusters(4), CLASSES, None, more).is_finite
    with pytest.raises(TooFewImages, match=r"24 unlabelled .* 5 classes \(give 25 or more"):
        fit_gda(clusters(4), CLASSES, None, more[1:])


def test_unlabelled_images_that_are_not_finite_leave_no_head() -> None:
    more = np.full((5 * CLASSES, WIDTH), np.nan)
    assert not fit_gda(clusters(4), CLASSES, None, more).is_finite


def test_equal_unlabelled_images_are_survived() -> None:
    more = np.ones((5 * CLASSES, WIDTH)) / np.sqrt(WIDTH)
    assert fit_gda(clusters(1), CLASSES, texts_of(), more).is_finite
