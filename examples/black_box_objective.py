"""Both stages on your own objective: `python black_box_objective.py PHOTOS`.

The stages only see a callable, points [n, d] -> losses [n]. Here it calls a text encoder that
returns embeddings rounded to eight bits, like a remote server or a small chip, and computes its own
loss (cross-entropy with smoothed labels). Nothing can be differentiated, and nothing needs to be.
"""

import sys

import numpy as np
from numpy.typing import NDArray

from sharpzo_engine import (
    CmaConfig,
    Features,
    PromptConfig,
    PromptSpace,
    SharpCma,
    SparseZo,
    ZoConfig,
    extract_features,
    load_backbone,
    load_dataset,
)

Array = NDArray[np.float64]
SMOOTHING = 0.1
GENERATIONS, STEPS = 15, 60

dataset = load_dataset(sys.argv[1], shots=4)
backbone = load_backbone("tiny")  # with a network: load_backbone("ViT-B-16", pretrained="openai")
space = PromptSpace(backbone, dataset.class_names, PromptConfig(intrinsic_dim=64), seed=1)


def encoder(points: Array) -> Array:
    """Stands for a remote encoder: points [n, d] -> class embeddings [n, C, E] in 8 bits."""
    exact = space.class_embeddings(points).astype(np.float64)
    return np.round(exact * 127) / 127


class Smoothed:
    """The objective on one split; counts its evaluations."""

    def __init__(self, features: Features) -> None:
        self.images = features.images.astype(np.float64)
        self.labels = features.labels
        self.evaluations = 0

    def logits(self, points: Array) -> Array:
        """Logits [n, images, C]."""
        self.evaluations += len(points)
        return backbone.logit_scale * self.images @ encoder(points).transpose(0, 2, 1)

    def __call__(self, points: Array) -> Array:
        """Points [n, d] -> losses [n]."""
        logits = self.logits(points)
        logits -= logits.max(axis=-1, keepdims=True)
        logs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        wanted = np.full(logs.shape[1:], SMOOTHING / logs.shape[-1])
        wanted[np.arange(len(self.labels)), self.labels] += 1 - SMOOTHING
        return -(wanted * logs).sum(axis=-1).mean(axis=-1)

    def accuracy(self, point: Array) -> float:
        """Fraction of images that are classified correctly."""
        return float((self.logits(point[None])[0].argmax(-1) == self.labels).mean())


train = Smoothed(extract_features(dataset.train, backbone))
test = Smoothed(extract_features(dataset.test, backbone))
rng = np.random.default_rng(1)

first = SharpCma(CmaConfig(population_size=20), space.origin, rng)
while first.steps < GENERATIONS:
    first.step(train)
print(f"stage 1: loss {train(space.origin[None])[0]:.3f} -> {train(first.point[None])[0]:.3f}")

# The steps of the differences must be larger than the rounding.
config = ZoConfig(optimizer="adam", queries=4, rge_step=0.3, learning_rate=0.05)
second = SparseZo(config, first.point, rng, horizon=STEPS)
while second.steps < STEPS:
    second.step(train)
print(f"stage 2: loss {train(second.point[None])[0]:.3f} after {train.evaluations} evaluations")
print(f"accuracy {test.accuracy(space.origin):.1%} -> {test.accuracy(second.point):.1%}")
