"""A pool of classifiers: their logits weighted so that unseen labels become most likely.

softmax(sum_k w_k z_k) is a logarithmic opinion pool. Its cross-entropy is convex in w, so Newton's
method finds the weights without a grid. Their ratio is how much to trust one classifier over the
other, their size is an inverse temperature: probabilities come out calibrated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

#: Inverse variance of a normal prior on weights of logits of spread 1. Its effect is negligible
#: compared to ten images, and keeps weights finite if a few images are separated perfectly.
PRIOR = 0.1
NEWTON_STEPS = 50
SHORTEST = 1e-4  # Newton's step is halved down to this
SMALLEST_DECREASE = 1e-9


@dataclass(frozen=True)
class Pool:
    """Weights of some classifiers, and the loss of their weighted sum (infinite without one)."""

    weights: tuple[float, ...]
    loss: float  #: mean cross-entropy


NO_POOL = Pool((), math.inf)


def spread(logits: Tensor) -> float:
    """Root mean square of logits [n, C] about their mean in each row."""
    centred = logits - logits.mean(1, keepdim=True)
    return float(centred.double().square().mean().sqrt())


def fit_pool(members: Sequence[Tensor], labels: Tensor) -> Pool:
    """Fit the weights of the members' logits, each [n, C], by maximum likelihood of labels [n].

    Returns `NO_POOL` if a member has logits that are not finite or all equal, or if a weight would
    not be positive, since the others are then better without that member.
    """
    scales = [spread(member) for member in members]
    if not all(math.isfinite(scale) and scale > 0 for scale in scales):
        return NO_POOL
    logits = torch.stack([m.double() / s for m, s in zip(members, scales, strict=True)])
    weights = _newton(logits, labels)
    if not bool((weights > 0).all()):
        return NO_POOL
    loss = float(functional.cross_entropy(_mix(weights, logits), labels))
    pairs = zip(weights.tolist(), scales, strict=True)
    return Pool(tuple(weight / scale for weight, scale in pairs), loss)


def _newton(logits: Tensor, labels: Tensor) -> Tensor:
    """Minimise the mean cross-entropy plus the prior over weights [K] of logits [K, n, C]."""
    weights = torch.ones(len(logits), dtype=torch.float64)
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


def _newton_step(weights: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    images = len(labels)
    p = _mix(weights, logits).softmax(1)  # [n, C]
    own = logits[:, torch.arange(images), labels]  # z_k[n, y_n]
    mean = (p * logits).sum(2)  # E_p z_k, [K, n]
    second = torch.stack([(p * logits * row).sum((1, 2)) for row in logits])  # sum_n E_p z_k z_l
    gradient = (mean - own).mean(1) + PRIOR / images * weights
    hessian = (second - mean @ mean.T + PRIOR * torch.eye(len(logits)).double()) / images
    step: Tensor = torch.linalg.solve(hessian, gradient)
    return step


def _loss(weights: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    prior = 0.5 * PRIOR / len(labels) * weights.square().sum()
    return functional.cross_entropy(_mix(weights, logits), labels) + prior


def _mix(weights: Tensor, logits: Tensor) -> Tensor:
    return torch.einsum("k,knc->nc", weights, logits)
