"""Heads: classifiers on cached image features; fitting them needs no forward pass.

Fits are convex or in closed form, and deterministic. Symbols: images N, classes C, embedding width
E, features f [N, E] (L2-normalised).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import LBFGS

from sharpzo_engine.clip.features import Features
from sharpzo_engine.clip.parallel import map_chunks

ROWS = 1024  #: images per chunk of work
TOLERANCE = 1e-6  # logistic regression is done when a step lowers the mean loss by less
ITERATIONS = 100  # of L-BFGS, at most
HISTORY = 10  # steps from which L-BFGS estimates the curvature
NO_SPREAD = 1e-12  # a covariance with a smaller trace is rounding error

CPU = torch.device("cpu")


class Head(Protocol):
    """A map from image embeddings to class logits."""

    def logits(self, images: Tensor) -> Tensor:
        """Image embeddings [n, E] -> logits [n, C]."""


@dataclass(frozen=True)
class LinearHead:
    """Logits f W^T + b."""

    weights: Tensor  #: W [C, E]
    bias: Tensor  #: b [C]

    def logits(self, images: Tensor) -> Tensor:
        """Image embeddings [n, E] -> logits [n, C], in the precision of the weights."""
        return images.to(self.weights.dtype) @ self.weights.T + self.bias

    @property
    def is_finite(self) -> bool:
        """Whether all weights and biases are finite."""
        return bool(self.weights.isfinite().all() and self.bias.isfinite().all())

    def centred(self) -> LinearHead:
        """Subtract the mean over classes: equal probabilities, smaller rounding errors."""
        return LinearHead(self.weights - self.weights.mean(0), self.bias - self.bias.mean())


@dataclass(frozen=True)
class CacheHead:
    """Tip-Adapter's cache model (arXiv 2111.03930): training images vote by their similarity."""

    keys: Features
    classes: int
    sharpness: float  #: beta

    def logits(self, images: Tensor) -> Tensor:
        """sum_n exp(-beta (1 - f f_n^T)) onehot(y_n) [n, C] of image embeddings [n, E]."""
        votes = torch.zeros(self.classes, len(images), dtype=images.dtype)
        for rows in _rows(len(self.keys)):
            similarity = self.keys.images[rows] @ images.T  # [rows, n]
            affinity = similarity.sub_(1).mul_(self.sharpness).exp_()
            votes.index_add_(0, self.keys.labels[rows], affinity)
        return votes.T


@dataclass(frozen=True)
class BlendedHead:
    """A weighted sum of the logits of a prompt and of a head that is not linear."""

    prompt: LinearHead
    prompt_weight: float
    head: Head
    alpha: float

    def logits(self, images: Tensor) -> Tensor:
        """Image embeddings [n, E] -> logits [n, C]."""
        return self.prompt_weight * self.prompt.logits(images) + self.alpha * self.head.logits(
            images
        )


def fit_gda(features: Features, classes: int) -> LinearHead:
    """Gaussian discriminant analysis with one shrunk covariance (arXiv 2402.04087).

    All classes have the same prior, which drops out, because few-shot samples are balanced. A class
    without images gets the mean of the other classes' rows.
    """
    images, labels = features.images.double(), features.labels
    means = _class_means(images, labels, classes)  # mu_k
    precision = _shrunk_precision(images - means[labels], means)  # Sigma^-1 mu_k
    bias = -0.5 * (means * precision).sum(1)  # -1/2 mu_k^T Sigma^-1 mu_k
    return LinearHead(precision, bias).centred()


def _class_means(images: Tensor, labels: Tensor, classes: int) -> Tensor:
    counts = torch.bincount(labels, minlength=classes)
    sums = torch.zeros(classes, images.shape[1], dtype=images.dtype)
    means = sums.index_add_(0, labels, images) / counts.clamp(min=1)[:, None]
    means[counts == 0] = means[counts > 0].mean(0)
    return means


def _shrunk_precision(residuals: Tensor, means: Tensor) -> Tensor:
    """Rows Sigma^-1 mu_k [C, E] with Sigma^-1 = E ((N - 1) S + tr(S) I)^-1, S the residuals' own.

    One image per class leaves no residuals; then Sigma = I, which is nearest-mean classification.
    """
    count, width = residuals.shape
    scatter = residuals.T @ residuals  # (N - 1) S
    trace = scatter.diagonal().sum() / max(1, count - 1)
    if trace <= NO_SPREAD:
        return means
    identity = torch.eye(width, dtype=torch.float64)
    factor, _ = torch.linalg.cholesky_ex((scatter + trace * identity) / width)
    return torch.cholesky_solve(means.T, factor).T


def fit_linear(
    features: Features, classes: int, penalty: float, tolerance: float = TOLERANCE
) -> LinearHead:
    """Multinomial logistic regression: argmin sum_n CE(f_n W^T + b, y_n) + penalty/2 norm(W)^2.

    L-BFGS in coordinates in which the curvature is about the same in all directions: at equal
    probabilities the Hessian is F^T F / C per class, F the centred features. Products are computed
    in float32, sums and steps in float64.
    """
    images = features.images.double()
    centre = images.mean(0)
    basis = _whitening(images - centre, classes, penalty)  # R [E, E]
    problem = _Regression((images - centre) @ basis, features.labels, classes, penalty, basis)
    rows, bias = problem.minimise(tolerance)
    weights = rows @ basis.T
    return LinearHead(weights, bias - weights @ centre).centred()


def _whitening(centred: Tensor, classes: int, penalty: float) -> Tensor:
    """R with R R^T = (F^T F / C + penalty I)^-1."""
    width = centred.shape[1]
    identity = torch.eye(width, dtype=torch.float64)
    factor, _ = torch.linalg.cholesky_ex(centred.T @ centred / classes + penalty * identity)
    inverse: Tensor = torch.linalg.solve_triangular(factor, identity, upper=False)
    return inverse.T


class _Regression:
    """The loss of logistic regression over its parameters [C, E + 1], the bias being the last."""

    def __init__(
        self, images: Tensor, labels: Tensor, classes: int, penalty: float, basis: Tensor
    ) -> None:
        ones = torch.ones(len(images), 1)
        self._images = torch.cat([images.float(), ones], dim=1)
        self._labels = labels
        self._shape = (classes, images.shape[1] + 1)
        self._penalty = penalty
        self._metric = basis.T @ basis  # norm(W)^2 = tr(U R^T R U^T)

    def minimise(self, tolerance: float) -> tuple[Tensor, Tensor]:
        """Rows U [C, E] and bias [C], in the whitened coordinates."""
        parameters = torch.zeros(self._shape, dtype=torch.float64)
        solver = LBFGS(
            [parameters],
            max_iter=ITERATIONS,
            history_size=HISTORY,
            tolerance_grad=0.0,
            tolerance_change=tolerance,
            line_search_fn="strong_wolfe",
        )

        def mean_loss() -> Tensor:
            loss, gradient = self.loss_and_gradient(parameters)
            parameters.grad = gradient / len(self._labels)
            return loss / len(self._labels)

        solver.step(mean_loss)
        return parameters[:, :-1], parameters[:, -1]

    def loss_and_gradient(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and its gradient [C, E + 1]."""
        low = parameters.float()
        parts = map_chunks(lambda rows: self._part(low, rows), _rows(len(self._labels)), CPU)
        loss, gradient = torch.zeros((), dtype=torch.float64), torch.zeros_like(parameters)
        for part, slope in parts:
            loss += part
            gradient += slope
        pull = self._penalty * parameters[:, :-1] @ self._metric
        loss += 0.5 * (pull * parameters[:, :-1]).sum()
        gradient[:, :-1] += pull
        return loss, gradient

    def _part(self, parameters: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        images, labels = self._images[rows], self._labels[rows]
        logits = images @ parameters.T
        loss = functional.cross_entropy(logits.double(), labels, reduction="sum")
        surprise = logits.softmax(1)  # p - onehot(y)
        surprise[torch.arange(len(labels)), labels] -= 1
        return loss, surprise.T @ images


def _rows(count: int) -> Iterator[slice]:
    for start in range(0, count, ROWS):
        yield slice(start, start + ROWS)
