"""Datasets as image features.

An `.npz` file has `class_names`, and `SPLIT_images` [N, E] and `SPLIT_labels` [N] for the splits
train, val and test.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sharpzo_engine import Features


@dataclass(frozen=True)
class FeatureFile:
    """The features of one dataset, of one backbone."""

    class_names: tuple[str, ...]
    fingerprint: str  #: of the backbone that made them
    train: Features
    validation: Features
    test: Features

    @classmethod
    def read(cls, path: Path) -> FeatureFile:
        """Read a file."""
        with np.load(path) as arrays:
            splits = (
                Features(arrays[f"{split}_images"], arrays[f"{split}_labels"])
                for split in ("train", "val", "test")
            )
            names = tuple(map(str, arrays["class_names"]))
            return cls(names, str(arrays["backbone_fingerprint"]), *splits)

    def few_shot(self, shots: int, seed: int) -> Features:
        """`shots` training images of each class, drawn from `seed`."""
        rng = np.random.default_rng(seed)
        labels = self.train.labels
        classes = range(len(self.class_names))
        rows = np.concatenate(
            [rng.permutation(np.flatnonzero(labels == c))[:shots] for c in classes]
        )
        return self.train[rows]
