"""Evaluation of a classifier: accuracy, and calibration of its probabilities."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sharpzo_engine.clip.features import Features
from sharpzo_engine.errors import DatasetError
from sharpzo_engine.prompts.interval import interval_figures

BINS = 15  # in a reliability diagram, as in Guo et al. 2017
TOP = 5

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Evaluation:
    """Accuracy of a prompt on one split."""

    images: int
    accuracy: float
    per_class: dict[str, float | None]  #: None for a class without images
    confusion: list[list[int]]  #: [true][predicted] counts


def evaluate(
    weights: ArrayLike, features: Features, class_names: Sequence[str], bias: ArrayLike = 0.0
) -> Evaluation:
    """Score a class matrix [C, E] and an optional bias [C] on embedded images.

    Raises:
        DatasetError: there are no images.
    """
    if not len(features):
        raise DatasetError("the split has no images (add images, or choose another split)")
    logits = features.images @ np.asarray(weights, np.float32).T + np.asarray(bias, np.float32)
    predicted = logits.argmax(-1)
    classes = len(class_names)
    cells = np.bincount(features.labels * classes + predicted, minlength=classes**2)
    confusion = cells.reshape(classes, classes)
    right, totals = confusion.diagonal(), confusion.sum(1)
    per_class = {
        name: float(right[i] / totals[i]) if totals[i] else None
        for i, name in enumerate(class_names)
    }
    return Evaluation(
        len(features), int(right.sum()) / len(features), per_class, confusion.tolist()
    )


@dataclass(frozen=True)
class ReliabilityBin:
    """The images whose most probable class has a probability in (low, low + 1 / BINS]."""

    low: float
    images: int
    confidence: float | None  #: mean probability of that class; None without images
    accuracy: float | None  #: how often that class is the true one


@dataclass(frozen=True)
class Calibration:
    """Calibration of the probabilities when the logits are divided by `temperature`.

    `ece` is the expected calibration error of the most probable class over bins of equal width
    (Guo et al. 2017, On Calibration of Modern Neural Networks, eq. 3).
    """

    temperature: float
    nll: float  #: mean negative log-likelihood of the true class
    ece: float
    bins: tuple[ReliabilityBin, ...]


@dataclass(frozen=True)
class ClassFigures:
    """Counts and rates of one class."""

    name: str
    images: int  #: images of this class
    predicted: int  #: images classified as this class
    accuracy: float | None  #: recall; None without images
    precision: float | None  #: None if nothing was classified as this class


@dataclass(frozen=True)
class Assessment:
    """Accuracy and calibration of a classifier on labelled images."""

    images: int
    accuracy: float
    macro_accuracy: float  #: mean over the classes that have images
    top5_accuracy: float
    classes: tuple[ClassFigures, ...]
    cells: tuple[tuple[int, int, int], ...]  #: (true, predicted, images), without zeros
    calibration: Calibration
    calibrated: Calibration | None = None  #: at the prompt's own temperature

    @property
    def confusion(self) -> list[list[int]]:
        """[true][predicted] counts."""
        rows = [[0] * len(self.classes) for _ in self.classes]
        for true, predicted, images in self.cells:
            rows[true][predicted] = images
        return rows

    def figures(self) -> dict[str, float | int | None]:
        """The summary figures."""
        calibrated = self.calibrated
        return {
            "images": self.images,
            "accuracy": self.accuracy,
            **interval_figures("accuracy", self.accuracy, self.images),
            "macro_accuracy": self.macro_accuracy,
            "top5_accuracy": self.top5_accuracy,
            "nll": self.calibration.nll,
            "ece": self.calibration.ece,
            "calibrated_nll": None if calibrated is None else calibrated.nll,
            "calibrated_ece": None if calibrated is None else calibrated.ece,
        }


class Tally:
    """Accumulates batches of logits into an `Assessment`."""

    def __init__(self, class_names: Sequence[str], temperature: float | None = None) -> None:
        """`temperature` adds the calibration at that temperature to the one at 1."""
        self._names = tuple(class_names)
        self._images = 0
        self._top = 0
        self._cells: Counter[int] = Counter()  # true * classes + predicted -> images
        self._plain = _Reliability(1.0)
        self._calibrated = None if temperature is None else _Reliability(temperature)

    def add(self, logits: NDArray[Any], labels: NDArray[np.int64]) -> None:
        """Add logits [B, C] and true classes [B]."""
        if not len(labels):
            return
        logits = logits.astype(np.float64)
        predicted = logits.argmax(1)
        true = logits[np.arange(len(labels)), labels]
        self._images += len(labels)
        self._top += int(((logits > true[:, None]).sum(1) < TOP).sum())
        cells, counts = np.unique(labels * len(self._names) + predicted, return_counts=True)
        self._cells.update(dict(zip(cells.tolist(), counts.tolist(), strict=True)))
        for reliability in filter(None, (self._plain, self._calibrated)):
            reliability.add(logits, predicted, labels)

    def result(self) -> Assessment:
        """The result for everything added so far.

        Raises:
            DatasetError: there were no images.
        """
        if not self._images:
            raise DatasetError("there are no images to evaluate on (add images)")
        cells = tuple(
            (*divmod(cell, len(self._names)), images)
            for cell, images in sorted(self._cells.items())
        )
        classes = _class_figures(self._names, cells)
        measured = [figures.accuracy for figures in classes if figures.accuracy is not None]
        return Assessment(
            images=self._images,
            accuracy=sum(n for true, predicted, n in cells if true == predicted) / self._images,
            macro_accuracy=sum(measured) / len(measured),
            top5_accuracy=self._top / self._images,
            classes=classes,
            cells=cells,
            calibration=self._plain.result(),
            calibrated=None if self._calibrated is None else self._calibrated.result(),
        )


def _class_figures(
    names: Sequence[str], cells: Sequence[tuple[int, int, int]]
) -> tuple[ClassFigures, ...]:
    images, predicted, right = ([0] * len(names) for _ in range(3))
    for true, answer, count in cells:
        images[true] += count
        predicted[answer] += count
        right[true] += count if true == answer else 0
    return tuple(
        ClassFigures(
            name,
            images[i],
            predicted[i],
            right[i] / images[i] if images[i] else None,
            right[i] / predicted[i] if predicted[i] else None,
        )
        for i, name in enumerate(names)
    )


class _Reliability:
    """Sums per bin of confidence."""

    def __init__(self, temperature: float) -> None:
        self._temperature = temperature
        self._surprise = 0.0
        self._images, self._confidence, self._right = np.zeros((3, BINS))

    def add(self, logits: Array, predicted: NDArray[np.int64], labels: NDArray[np.int64]) -> None:
        scaled = logits / self._temperature
        scaled -= scaled.max(1, keepdims=True)
        log_probabilities = scaled - np.log(np.exp(scaled).sum(1, keepdims=True))
        rows = np.arange(len(labels))
        confidence = np.exp(log_probabilities[rows, predicted])
        self._surprise -= float(log_probabilities[rows, labels].sum())
        bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
        np.add.at(self._images, bins, 1)
        np.add.at(self._confidence, bins, confidence)
        np.add.at(self._right, bins, predicted == labels)

    def result(self) -> Calibration:
        total = self._images.sum()
        gaps = np.abs(self._right - self._confidence)  # |B_m| |acc(B_m) - conf(B_m)|
        return Calibration(
            temperature=self._temperature,
            nll=self._surprise / total,
            ece=float(gaps.sum() / total),
            bins=tuple(self._bin(index) for index in range(BINS)),
        )

    def _bin(self, index: int) -> ReliabilityBin:
        images = int(self._images[index])
        if not images:
            return ReliabilityBin(index / BINS, 0, None, None)
        confidence, right = self._confidence[index] / images, self._right[index] / images
        return ReliabilityBin(index / BINS, images, float(confidence), float(right))
