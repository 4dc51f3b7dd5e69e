"""The objective of both stages: maps search points to losses, with forward passes only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
from numpy.typing import NDArray

from sharpzo_engine.clip.encoder import (
    DifferentiablePrompts,
    ImageLoss,
    Prompts,
    TextPrecision,
    require,
)
from sharpzo_engine.clip.features import Features
from sharpzo_engine.clip.level import Level
from sharpzo_engine.search.anchored_loss import AnchoredLoss
from sharpzo_engine.search.prompt_space import PromptSpace

Array = NDArray[np.float64]
Floats = NDArray[np.float32]

#: Class embeddings (floats) at a time: 32 MiB, for any numbers of points and classes.
MAX_EMBEDDINGS = 2**23


@dataclass(frozen=True)
class Score:
    """Mean cross-entropy and accuracy (a fraction) on one split."""

    loss: float
    accuracy: float
    halves: tuple[float, ...] = ()  #: mean cross-entropies on `Objective.halves`


class Objective:
    """Mean cross-entropy of search points on a fixed set of image features (METHOD: eq. of L(w)).

    With `anchor` mu > 0, the loss has the term (mu / C) sum_c |T_c(w) - T_c(0)|^2 as well, and so
    have its derivatives; see `AnchoredLoss`.

    `objective(points [n, d] float64) -> losses [n] float64`. `forward_passes` counts the points
    and directions evaluated, `backward_passes` the reverse passes, which only `gradient` uses.
    Results do not depend on the batching of points, except for rounding.
    """

    def __init__(self, space: PromptSpace, features: Features, anchor: float = 0.0) -> None:
        """The loss is computed where the encoder computes."""
        self.space = space
        self.features = features
        self.forward_passes = 0
        self.backward_passes = 0
        self._images: ImageLoss = space.backbone.image_loss(features.images, features.labels)
        if anchor:
            # Not counted: every search begins by scoring this point, and that is counted.
            written = space.class_embeddings(space.origin[None])[0]
            self._images = AnchoredLoss(self._images, written, anchor)

    def __call__(self, points: Array) -> Array:
        """Mean cross-entropy [n] of points [n, d]; NaN if a point overflows the tower."""
        return self._losses(points, self.space.prompts)

    def score(self, point: Array) -> Score:
        """Loss and accuracy of one point [d]; counts as one forward pass."""
        self.forward_passes += 1
        embeddings = self.space.class_embeddings(point[None])
        loss, *halves = (float(part.losses(embeddings)[0]) for part in self._parts)
        return Score(loss, self._images.accuracy(embeddings[0]), tuple(halves))

    @cached_property
    def halves(self) -> tuple[NDArray[np.bool_], ...]:
        """Two masks [N] of every second image of a class; none if no class has two images.

        The best point on one half can be judged on the other, which did not choose it.
        """
        odd = self.features.turns() % 2 == 1
        return (~odd, odd) if odd.any() else ()

    @cached_property
    def _parts(self) -> list[ImageLoss]:
        """The losses of all images, and of the halves."""
        parts = [self.features[half] for half in self.halves]
        return [self._images, *(self.space.backbone.image_loss(p.images, p.labels) for p in parts)]

    def in_precision(self, name: TextPrecision) -> Callable[[Array], Array]:
        """The same objective and pass counter with the text tower in another precision.

        bfloat16 has three digits: enough to rank candidates, too few for finite differences.
        """
        if name == "float32":
            return self
        prompts = self.space.prompts.in_precision(name)
        return lambda points: self._losses(points, prompts)

    def directional_derivatives(self, point: Array, directions: Array) -> tuple[float, Array]:
        """Loss at `point` [d] and exact slopes [q] along `directions` [q, d].

        Forward mode: slope_j = <dL/dT, dT_j>, with dL/dT in closed form and dT_j the tangent of the
        class embeddings. Counts as 1 + q forward passes.
        """
        self.forward_passes += 1 + len(directions)
        tangent = self._differentiable.tangent(self.space.context(point[None])[0])
        loss, gradient = self._images.gradient(tangent.embeddings)
        return loss, tangent.slopes(self.space.context_offsets(directions), gradient)

    def gradient(self, point: Array) -> tuple[float, Array]:
        """Loss and gradient [d] at `point` [d] by reverse mode: the first-order baseline.

        Not forward-only. Counts as one forward and one backward pass.
        """
        self.forward_passes += 1
        self.backward_passes += 1
        reverse = self._differentiable.reverse(self.space.context(point[None])[0])
        loss, gradient = self._images.gradient(reverse.embeddings)
        return loss, reverse.pull_back(gradient).ravel() @ self.space.projection

    @property
    def _differentiable(self) -> DifferentiablePrompts:
        """The text encoder, if it has derivatives.

        Raises:
            LevelMissing: it has none.
        """
        prompts = self.space.prompts
        if not isinstance(prompts, DifferentiablePrompts):
            require(self.space.backbone, Level.TANGENTS, "an exact derivative")
        return cast(DifferentiablePrompts, prompts)

    @property
    def is_exact(self) -> bool:
        """Whether the prompts have exact derivatives."""
        return isinstance(self.space.prompts, DifferentiablePrompts)

    def outputs(self, points: Array) -> Floats:
        """Class embeddings T of points [n, d], flattened to [n, C * E]; n forward passes."""
        self.forward_passes += len(points)
        return _flat(self.space.class_embeddings(points))

    def tangents(self, point: Array, directions: Array) -> Floats:
        """Changes of T at `point` [d] along `directions` [q, d], flattened to [q, C * E].

        Forward mode; counts as 1 + q forward passes.
        """
        self.forward_passes += 1 + len(directions)
        tangent = self._differentiable.tangent(self.space.context(point[None])[0])
        return _flat(tangent.products(self.space.context_offsets(directions)))

    def outer_loss(self, outputs: Floats) -> float:
        """Loss of flattened class embeddings [C * E]; no pass."""
        return float(self._images.losses(self._embeddings(outputs)[None])[0])

    def quadratic_model(self, outputs: Floats, jacobian: Floats) -> tuple[Array, Array]:
        """Gradient [k] and Gauss-Newton curvature [k, k] along a Jacobian's rows [k, C * E]."""
        embeddings, rows = self._embeddings(outputs), self._embeddings(jacobian)
        _, gradient = self._images.gradient(embeddings)
        slopes = (jacobian @ gradient.ravel()).astype(np.float64)
        return slopes, self._images.curvature(embeddings, rows)

    def _embeddings(self, flat: Floats) -> Floats:
        """[..., C * E] -> [..., C, E]."""
        shape = (len(self.space.class_names), self.space.backbone.embed_dim)
        return flat.reshape(*flat.shape[:-1], *shape)

    def _losses(self, points: Array, prompts: Prompts) -> Array:
        points = np.atleast_2d(np.asarray(points, dtype=np.float64))
        self.forward_passes += len(points)
        size = len(self.space.class_names) * self.space.backbone.embed_dim
        step = max(1, MAX_EMBEDDINGS // size)
        parts = [points[start : start + step] for start in range(0, len(points), step)]
        return np.concatenate(
            [self._images.losses(prompts.encode(self.space.context(part))) for part in parts]
        )


def _flat(embeddings: Floats) -> Floats:
    """[n, C, E] -> [n, C * E]."""
    return embeddings.reshape(len(embeddings), -1)
