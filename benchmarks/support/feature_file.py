"""Datasets as image features, and searches on them.

An `.npz` file has `class_names`, and `SPLIT_images` [N, E] and `SPLIT_labels` [N] for the splits
train, val and test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sharpzo_engine import Encoder, Features, Objective, PromptSpace, TuningConfig
from sharpzo_engine.search.loop import Search


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
        return self.train[np.concatenate([rows[:shots] for rows in self._shuffled(seed)])]

    def beyond(self, shots: int, seed: int, rarest: float = 1.0) -> Features:
        """The training images that `few_shot` leaves.

        Of these, the first class keeps all, the last one the share `rarest`, and those between
        them keep shares that fall linearly.
        """
        left = [rows[shots:] for rows in self._shuffled(seed)]
        shares = np.linspace(1, rarest, len(left))
        kept = [rows[: round(len(rows) * share)] for rows, share in zip(left, shares, strict=True)]
        return self.train[np.concatenate(kept)]

    def _shuffled(self, seed: int) -> list[NDArray[np.int64]]:
        """The rows of each class's training images, in the order in which they are drawn."""
        rng = np.random.default_rng(seed)
        labels = self.train.labels
        classes = range(len(self.class_names))
        return [rng.permutation(np.flatnonzero(labels == c)) for c in classes]

    def judges(self, shots: int) -> Features:
        """The validation images of a run: the first `shots` of each class at most."""
        return self.validation[self.validation.turns() < shots]


def search(
    encoder: Encoder,
    class_names: Sequence[str],
    train: Features,
    validation: Features,
    config: TuningConfig,
) -> Search:
    """A finished search for a prompt of these classes."""
    space = PromptSpace(encoder, class_names, config.prompt, config.seed)
    training = Objective(space, train, config.zo.anchor)
    finished = Search(config, training, Objective(space, validation))
    finished.run()
    return finished


def prompt_accuracy(finished: Search, test: Features) -> float:
    """Test accuracy (a fraction) of the prompt that a search found."""
    return Objective(finished.space, test).score(finished.best.point).accuracy
