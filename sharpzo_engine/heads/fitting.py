"""Heads: classifiers on cached image features; fitting them needs no forward pass.

Fits are convex or in closed form, and deterministic. Symbols: images N, classes C, embedding width
E, features f [N, E] (L2-normalised).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sharpzo_engine.clip.features import Features
from sharpzo_engine.clip.parallel import map_chunks, numpy_on_one_thread
from sharpzo_engine.data.dataset import check_unlabelled
from sharpzo_engine.heads.lbfgs import minimise
from sharpzo_engine.heads.pooling import spread
from sharpzo_engine.softmax import log_sum_exp, softmax

ROWS = 1024  #: images per chunk of work
TOLERANCE = 1e-6  # logistic regression is done when a step lowers the loss by a smaller share
#: Images that a text counts as where there is one image per class, as it does on most datasets at
#: more shots; and at most.
ONE_SHOT_STRENGTH, LARGEST_STRENGTH = 4.0, 100.0
NO_SPREAD = 1e-12  # a covariance with a smaller trace is rounding error
ROUNDS = 10  # of expectation-maximisation; the accuracy no longer changes after them
#: Logits of unlabelled images are scaled to this spread. Chosen on validation images of four
#: datasets, at 1, 4 and 16 shots.
SHARPNESS = 3.0

#: [...] in float32 or float64.
Real = NDArray[np.floating[Any]]
Floats = NDArray[np.float32]
Array = NDArray[np.float64]


class Head(Protocol):
    """A map from image embeddings to class logits."""

    def logits(self, images: Real) -> Real:
        """Image embeddings [n, E] -> logits [n, C]."""


@dataclass(frozen=True)
class LinearHead:
    """Logits f W^T + b."""

    weights: Real  #: W [C, E]
    bias: Real  #: b [C]

    def logits(self, images: Real) -> Real:
        """Image embeddings [n, E] -> logits [n, C], in the precision of the weights."""
        return images.astype(self.weights.dtype, copy=False) @ self.weights.T + self.bias

    @property
    def is_finite(self) -> bool:
        """Whether all weights and biases are finite."""
        return bool(np.isfinite(self.weights).all() and np.isfinite(self.bias).all())

    def centred(self) -> LinearHead:
        """Subtract the mean over classes: equal probabilities, smaller rounding errors."""
        return LinearHead(self.weights - self.weights.mean(0), self.bias - self.bias.mean())

    def in_float32(self) -> tuple[Floats, Floats]:
        """Matrix [C, E] and bias [C] as artifacts hold them."""
        return self.weights.astype(np.float32), self.bias.astype(np.float32)


@dataclass(frozen=True)
class CacheHead:
    """Tip-Adapter's cache model (arXiv 2111.03930): training images vote by their similarity."""

    keys: Features
    classes: int
    sharpness: float  #: beta

    def logits(self, images: Real) -> Real:
        """sum_n exp(-beta (1 - f f_n^T)) onehot(y_n) [n, C] of image embeddings [n, E]."""
        votes = np.zeros((self.classes, len(images)), images.dtype)
        for rows in _rows(len(self.keys)):
            similarity = self.keys.images[rows] @ images.T  # [rows, n]
            affinity = np.exp(np.float32(self.sharpness) * (similarity - 1))
            votes += _one_hot(self.keys.labels[rows], self.classes).T @ affinity
        return votes.T


@dataclass(frozen=True)
class BlendedHead:
    """A weighted sum of the logits of a prompt and of a head that is not linear."""

    prompt: LinearHead
    prompt_weight: float
    head: Head
    alpha: float

    def logits(self, images: Real) -> Real:
        """Image embeddings [n, E] -> logits [n, C]."""
        return self.prompt_weight * self.prompt.logits(images) + self.alpha * self.head.logits(
            images
        )


def fit_gda(
    features: Features, classes: int, texts: Real | None = None, unlabelled: Real | None = None
) -> LinearHead:
    """Gaussian discriminant analysis with one shrunk covariance (arXiv 2402.04087).

    All classes have the same prior, which drops out, because few-shot samples are balanced. With
    `texts` [C, E], the classes' text embeddings, means are drawn towards them; see `_prior`. A
    class without images gets what its text says, or else the mean of the other classes' rows.
    `unlabelled` [U, E] are L2-normalised embeddings of more images of these classes, which refine
    means and covariance by expectation-maximisation; see `_refined`.

    Raises:
        TooFewImages: there are unlabelled images, but fewer than five per class.
    """
    if unlabelled is not None:
        check_unlabelled(len(unlabelled), classes)
    known = features.images if unlabelled is None else unlabelled
    if not (np.isfinite(features.images).all() and np.isfinite(known).all()):
        return _undefined(features, classes)
    images, labels = features.images.astype(np.float64), features.labels
    means = _class_means(images, labels, classes)  # m_k
    residuals = images - means[labels]
    counts = np.bincount(labels, minlength=classes)
    strength = 0.0
    if texts is not None:
        prior, strength = _prior(means, counts, residuals, texts)
        means = (counts[:, None] * means + strength * prior) / (counts + strength)[:, None]
    if unlabelled is None:
        return _discriminant(residuals, means)
    pseudo = np.maximum(counts + strength, NO_SPREAD)  # images that each mean counts as
    return _refined(residuals, means, pseudo, unlabelled.astype(np.float64))


def _discriminant(residuals: Array, means: Array, count: float | None = None) -> LinearHead:
    """The head of means [C, E] and of residuals [N, E] that count as `count` images."""
    precision = _shrunk_precision(residuals, means, count)  # Sigma^-1 mu_k
    bias = -0.5 * (means * precision).sum(1)  # -1/2 mu_k^T Sigma^-1 mu_k
    return LinearHead(precision, bias).centred()


def _refined(residuals: Array, means: Array, counts: Array, unlabelled: Array) -> LinearHead:
    """Expectation-maximisation over the unlabelled images u [U, E], from means [C, E].

    P = softmax(s z / spread(z)) [U, C] are the head's guesses, and c = max P its confidence. Mean k
    becomes that of its counts[k] images and of all u, weighted by c P. The covariance is that of
    the shots' residuals and of each u about the mean of its likeliest class, weighted by c. Without
    c in the means, frequent classes pull at rare ones. Nothing forces classes to be equally
    frequent.
    """
    anchor = counts[:, None] * means
    head = _discriminant(residuals, means)
    for _ in range(ROUNDS):
        logits = head.logits(unlabelled)
        guesses = softmax(SHARPNESS / max(spread(logits), NO_SPREAD) * logits)
        likeliest, confidence = guesses.argmax(1), guesses.max(1)
        shares = confidence[:, None] * guesses
        means = (anchor + shares.T @ unlabelled) / (counts + shares.sum(0))[:, None]
        apart = np.sqrt(confidence)[:, None] * (unlabelled - means[likeliest])
        count = len(residuals) + float(confidence.sum())
        head = _discriminant(np.concatenate([residuals, apart]), means, count)
    return head


def _prior(
    means: Array, counts: NDArray[np.int64], residuals: Array, texts: Real
) -> tuple[Array, float]:
    """Prior means q_k [C, E], and how many images kappa each is worth.

    The posterior means are mu_k = (n_k m_k + kappa q_k) / (n_k + kappa). q_k is the text embedding
    t_k, moved and scaled to where the images are: q_k = m + g (t_k - t), with g by least squares
    over the classes that have images (and m, t their means).
    """
    seen = counts > 0
    spread_of_texts = texts - texts[seen].mean(0)
    centred = means[seen] - means[seen].mean(0)
    size = float(np.square(spread_of_texts[seen]).sum())
    gain = float((spread_of_texts[seen] * centred).sum()) / size if size > NO_SPREAD else 0.0
    prior = means[seen].mean(0) + gain * spread_of_texts
    return prior, _strength(means[seen] - prior[seen], counts[seen], residuals)


def _strength(misses: Array, counts: NDArray[np.int64], residuals: Array) -> float:
    """kappa, how many images the text is worth, by empirical Bayes.

    The squared distance of the classes' means from their priors is, in expectation, that of the
    true means plus what n images leave uncertain: tr S / n, S the covariance within classes. So
    kappa = tr S / (distance - tr S / n). One image per class leaves S unknown.
    """
    classes, images = len(counts), int(counts.sum())
    if images == classes or classes == 1:
        return ONE_SHOT_STRENGTH
    within = float(np.square(residuals).sum()) / (images - classes)
    distance = float(np.square(misses).sum()) / (classes - 1)
    excess = distance - within * float(np.mean(1 / counts))
    return min(within / excess, LARGEST_STRENGTH) if excess > 0 else LARGEST_STRENGTH


def _undefined(features: Features, classes: int) -> LinearHead:
    """The head of images that are not finite."""
    width = features.images.shape[1]
    return LinearHead(np.full((classes, width), np.nan), np.full(classes, np.nan))


def _class_means(images: Array, labels: NDArray[np.int64], classes: int) -> Array:
    counts = np.bincount(labels, minlength=classes)
    means: Array = _one_hot(labels, classes).T @ images / counts.clip(min=1)[:, None]
    means[counts == 0] = means[counts > 0].mean(0)
    return means


def _shrunk_precision(residuals: Array, means: Array, images: float | None = None) -> Array:
    """Rows Sigma^-1 mu_k [C, E] with Sigma^-1 = E ((N - 1) S + tr(S) I)^-1, S the residuals' own.

    N is `images`, or else the number of residuals. One image per class leaves no residuals; then
    Sigma = I, which is nearest-mean classification.
    """
    count, width = residuals.shape
    scatter = residuals.T @ residuals  # (N - 1) S
    trace = scatter.trace() / max(1, (images or count) - 1)
    if trace <= NO_SPREAD:
        return means
    return np.linalg.solve((scatter + trace * np.eye(width)) / width, means.T).T


def fit_linear(
    features: Features, classes: int, penalty: float, tolerance: float = TOLERANCE
) -> LinearHead:
    """Multinomial logistic regression: argmin sum_n CE(f_n W^T + b, y_n) + penalty/2 norm(W)^2.

    L-BFGS in coordinates in which the curvature is about the same in all directions: at equal
    probabilities the Hessian is F^T F / C per class, F the centred features. Products are computed
    in float32, sums and steps in float64.
    """
    if not np.isfinite(features.images).all():
        return _undefined(features, classes)
    images = features.images.astype(np.float64)
    centre = images.mean(0)
    basis = _whitening(images - centre, classes, penalty)  # R [E, E]
    problem = _Regression((images - centre) @ basis, features.labels, classes, penalty, basis)
    rows, bias = problem.minimise(tolerance)
    weights = rows @ basis.T
    return LinearHead(weights, bias - weights @ centre).centred()


def _whitening(centred: Array, classes: int, penalty: float) -> Array:
    """R with R R^T = (F^T F / C + penalty I)^-1."""
    width = centred.shape[1]
    factor = np.linalg.cholesky(centred.T @ centred / classes + penalty * np.eye(width))
    return np.linalg.inv(factor).T


class _Regression:
    """The loss of logistic regression over its parameters [C, E + 1], the bias being the last."""

    def __init__(
        self, images: Array, labels: NDArray[np.int64], classes: int, penalty: float, basis: Array
    ) -> None:
        self._images = np.column_stack([images, np.ones(len(images))]).astype(np.float32)
        self._labels = labels
        self._shape = (classes, images.shape[1] + 1)
        self._penalty = penalty
        self._metric = basis.T @ basis  # norm(W)^2 = tr(U R^T R U^T)

    def minimise(self, tolerance: float) -> tuple[Array, Array]:
        """Rows U [C, E] and bias [C], in the whitened coordinates."""
        with numpy_on_one_thread():
            parameters = minimise(self.loss_and_gradient, np.zeros(self._shape), tolerance)
        return parameters[:, :-1], parameters[:, -1]

    def loss_and_gradient(self, parameters: Array) -> tuple[float, Array]:
        """The loss and its gradient [C, E + 1]."""
        low = parameters.astype(np.float32)
        pull = self._penalty * parameters[:, :-1] @ self._metric
        loss = 0.5 * float((pull * parameters[:, :-1]).sum())
        gradient = np.zeros_like(parameters)
        gradient[:, :-1] = pull
        for part, slope in map_chunks(lambda rows: self._part(low, rows), _rows(len(self._labels))):
            loss += part
            gradient += slope
        return loss, gradient

    def _part(self, parameters: Floats, rows: slice) -> tuple[float, Floats]:
        images, labels = self._images[rows], self._labels[rows]
        logits = images @ parameters.T
        own = (np.arange(len(labels)), labels)
        totals = log_sum_exp(logits)
        loss = float((totals - logits[own]).sum(dtype=np.float64))
        surprise = np.exp(logits - totals[:, None])  # p - onehot(y)
        surprise[own] -= 1
        return loss, surprise.T @ images


def _one_hot(labels: NDArray[np.int64], classes: int) -> Floats:
    """[N] -> [N, C]."""
    return np.eye(classes, dtype=np.float32)[labels]


def _rows(count: int) -> Iterator[slice]:
    for start in range(0, count, ROWS):
        yield slice(start, start + ROWS)
