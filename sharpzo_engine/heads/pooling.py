"""A pool of classifiers: their logits weighted so that unseen labels become most likely.

softmax(sum_k w_k z_k) is a logarithmic opinion pool. Its cross-entropy is convex in w, so Newton's
method finds the weights without a grid. Their ratio is how much to trust one classifier over the
other, their size is an inverse temperature: probabilities come out calibrated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharpzo_engine.softmax import log_sum_exp, softmax

Array = NDArray[np.float64]
Real = NDArray[np.floating[Any]]
Labels = NDArray[np.int64]

#: Inverse variance of a normal prior on weights of logits of spread 1. Its effect is negligible
#: compared to ten images, and keeps weights finite if a few images are separated perfectly.
PRIOR = 0.1
NEWTON_STEPS = 50
SHORTEST = 1e-4  # Newton's step is halved down to this
SMALLEST_DECREASE = 1e-9


@dataclass(frozen=True)
class Pool:
    """Weights of some classifiers, and the cross-entropies of their weighted sum."""

    weights: tuple[float, ...]
    losses: Array  #: of each image [n]; empty if there is no sum
    right: NDArray[np.bool_]  #: whether the largest logit is the image's own class [n]

    @property
    def loss(self) -> float:
        """Mean cross-entropy; infinite if there is no sum."""
        return float(self.losses.mean()) if self.losses.size else math.inf


NO_POOL = Pool((), np.empty(0), np.empty(0, np.bool_))


def spread(logits: Real) -> float:
    """Root mean square of logits [n, C] about their mean in each row."""
    centred = (logits - logits.mean(1, keepdims=True)).astype(np.float64)
    return math.sqrt(np.square(centred).mean())


def fit_pool(members: Sequence[Real], labels: Labels) -> Pool:
    """Fit the weights of the members' logits, each [n, C], by maximum likelihood of labels [n].

    Returns `NO_POOL` if a member has logits that are not finite or all equal, or if a weight would
    not be positive, since the others are then better without that member.
    """
    scales = [spread(member) for member in members]
    if not all(math.isfinite(scale) and scale > 0 for scale in scales):
        return NO_POOL
    pairs = zip(members, scales, strict=True)
    logits = np.stack([member.astype(np.float64) / scale for member, scale in pairs])
    weights = _newton(logits, labels)
    if not (weights > 0).all():
        return NO_POOL
    losses = _cross_entropies(weights, logits, labels)
    right = _mix(weights, logits).argmax(1) == labels
    return Pool(tuple((weights / scales).tolist()), losses, right)


def _newton(logits: Array, labels: Labels) -> Array:
    """Minimise the mean cross-entropy plus the prior over weights [K] of logits [K, n, C]."""
    weights = np.ones(len(logits))
    loss = _loss(weights, logits, labels)
    for _ in range(NEWTON_STEPS):
        step, length = _newton_step(weights, logits, labels), 1.0
        while not (lower := _loss(weights - length * step, logits, labels)) < loss:
            length /= 2
            if length < SHORTEST:
                return weights
        weights, decrease, loss = weights - length * step, loss - lower, lower
        if decrease < SMALLEST_DECREASE:
            break
    return weights


def _newton_step(weights: Array, logits: Array, labels: Labels) -> Array:
    images = len(labels)
    p = softmax(_mix(weights, logits))  # [n, C]
    own = logits[:, np.arange(images), labels]  # z_k[n, y_n]
    mean = (p * logits).sum(2)  # E_p z_k, [K, n]
    second = np.stack([(p * logits * row).sum((1, 2)) for row in logits])  # sum_n E_p z_k z_l
    gradient = (mean - own).mean(1) + PRIOR / images * weights
    hessian = (second - mean @ mean.T + PRIOR * np.eye(len(logits))) / images
    step: Array = np.linalg.solve(hessian, gradient)
    return step


def _loss(weights: Array, logits: Array, labels: Labels) -> float:
    prior = 0.5 * PRIOR / len(labels) * float(weights @ weights)
    return float(_cross_entropies(weights, logits, labels).mean()) + prior


def _cross_entropies(weights: Array, logits: Array, labels: Labels) -> Array:
    mixed = _mix(weights, logits)
    own: Array = log_sum_exp(mixed) - mixed[np.arange(len(labels)), labels]
    return own


def _mix(weights: Array, logits: Array) -> Array:
    return np.tensordot(weights, logits, 1)
