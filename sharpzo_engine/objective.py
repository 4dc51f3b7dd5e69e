"""The black box that both stages minimise: points in, losses out, forward passes only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sharpzo_engine.features import Features
from sharpzo_engine.parallel import map_chunks
from sharpzo_engine.prompt import PromptSpace

Array = NDArray[np.float64]

#: Logits held at once (floats): 16 MiB, whatever the numbers of classes and images.
MAX_LOGITS = 4 * 2**20


@dataclass(frozen=True)
class Score:
    """Mean cross-entropy and accuracy (a fraction) on one split."""

    loss: float
    accuracy: float


class Objective:
    """Mean cross-entropy of search points on a fixed set of image features (METHOD: eq. of L(w)).

    `objective(points [n, d] float64) -> losses [n] float64`. `forward_passes` counts the points
    evaluated. Results do not depend on how points are batched, beyond rounding.
    """

    def __init__(self, space: PromptSpace, features: Features) -> None:
        """Keep the features on the backbone's device."""
        self.space = space
        self.features = features.to(space.backbone.device)
        self.forward_passes = 0
        self._scale = space.backbone.logit_scale
        # The true class's logits enter the loss through their sum alone, and that sum is linear in
        # the class embeddings: sum_n f_n . t_{y_n} = sum_c (sum_{n in c} f_n) . t_c.
        classes = len(space.class_names)
        sums = torch.zeros(classes, space.backbone.embed_dim, device=self.features.images.device)
        self._class_sums = sums.index_add_(0, self.features.labels, self.features.images)

    def __call__(self, points: Array) -> Array:
        """Mean cross-entropy [n] of points [n, d]; NaN where a point overflows the tower."""
        points = np.atleast_2d(np.asarray(points, dtype=np.float64))
        self.forward_passes += len(points)
        size = self.space.encoder.candidates_per_chunk
        chunks = (points[start : start + size] for start in range(0, len(points), size))
        losses = map_chunks(self._chunk_losses, chunks, self.space.backbone.device)
        return np.concatenate(list(losses))

    def _chunk_losses(self, points: Array) -> Array:
        losses: Array = self._losses(self.space.class_embeddings(points)).cpu().numpy()
        return losses

    @torch.inference_mode()
    def score(self, point: Array) -> Score:
        """Loss and accuracy of one point [d]; counts as one forward pass."""
        self.forward_passes += 1
        embeddings = self.space.class_embeddings(point[None])
        loss = float(self._losses(embeddings)[0])
        predicted = (self.features.images @ embeddings[0].T).argmax(-1)
        return Score(loss, float((predicted == self.features.labels).float().mean()))

    @torch.inference_mode()
    def _losses(self, embeddings: Tensor) -> Tensor:
        """Class embeddings [n, C, E] -> mean cross-entropies [n], summed in float64."""
        n, classes, _ = embeddings.shape
        images = self.features.images
        own = torch.einsum("nce,ce->nc", embeddings, self._class_sums).double().sum(-1)
        total = torch.zeros(n, dtype=torch.float64, device=images.device)
        rows = max(1, MAX_LOGITS // (n * classes))
        for chunk in images.split(rows):
            logits = self._scale * (chunk @ embeddings.flatten(0, 1).T)
            total += logits.unflatten(-1, (n, classes)).logsumexp(-1).double().sum(0)
        return (total - self._scale * own) / len(images)
