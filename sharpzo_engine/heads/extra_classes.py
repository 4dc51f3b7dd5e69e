"""Classes without images beside classes with images, in one classifier.

A head knows the former by their texts alone (`fitting.fit_gda`), which puts them at a disadvantage:
images of theirs are taken for one of the classes that the head has seen. So an offset is added to
their bias. It is found by leaving classes out: halves of the classes are treated as if they had no
images, and the offset is the one at which images of the classes left out are recognised as often as
images of the others that the head was not fitted to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sharpzo_engine.clip.features import Features
from sharpzo_engine.heads.fitting import LinearHead, Real, fit_gda
from sharpzo_engine.heads.pooling import fit_pool, spread

#: Times that the classes are shuffled and either half is left out.
SHUFFLES = 10
#: Logits of each turn that the scale of the head is fitted to.
LOGITS = 2**17

Array = NDArray[np.float64]
Labels = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Calibration:
    """What leaving classes out says; accuracies are fractions of the judged images."""

    #: Added to the bias of classes without images, in units of the head's spread: the root mean
    #: square of its logits of the other classes, on the images that it was fitted to.
    offset: float
    seen_accuracy: float  #: on images of classes that the head was fitted to, not the same images
    left_out_accuracy: float  #: on images of classes that were left out
    seen_accuracy_without: float  #: the same two without an offset
    left_out_accuracy_without: float


class _Turn(NamedTuple):
    """What one turn says: offsets at which answers change, and the logits of some images [n]."""

    seen: Array  #: an image of a class that was not left out is right below its offset
    rest: Array  #: an image of a class that was left out is right above it
    logits: Real  #: [n, K] of the classes with images, in units of the head's spread
    labels: Labels
    left_out: Bools  #: whether a class was left out [K]

    @classmethod
    def judge(cls, logits: Real, labels: Labels, left_out: Bools) -> _Turn:
        """From the logits [n, K] of all images that the head was not fitted to."""
        seen = np.where(left_out, -np.inf, logits)
        rest = np.where(left_out, logits, -np.inf)
        apart = (seen.max(1) - rest.max(1)).astype(np.float64)
        is_rest = left_out[labels]
        below = np.where(seen.argmax(1) == labels, apart, -np.inf)[~is_rest]
        above = np.where(rest.argmax(1) == labels, apart, np.inf)[is_rest]
        some = slice(None, None, -(-logits.size // LOGITS))  # evenly spaced
        return cls(below, above, logits[some].copy(), labels[some], left_out)


def calibrate(
    features: Features, fitted: Bools, classes: int, texts: Real
) -> tuple[Calibration, float]:
    """The offset for classes without images, and what makes the probabilities calibrated.

    Every turn leaves out half of the classes, and one image of each other class, if they have two
    or more. What the head of the turn was not fitted to is judged.

    Args:
        features: images [N] with labels below `classes`.
        fitted: which of them the head will be fitted to [N]; the others only judge.
        classes: how many classes have images, K.
        texts: text embeddings of these classes [K, E].

    Returns:
        The calibration, and the weight of logits in units of their spread.
    """
    turns = list(_turns(features, fitted, classes, texts))
    seen = np.concatenate([turn.seen for turn in turns])
    rest = np.concatenate([turn.rest for turn in turns])
    offset = _balance(seen, rest)
    calibration = Calibration(
        offset, *_accuracies(seen, rest, offset), *_accuracies(seen, rest, 0.0)
    )
    logits = np.concatenate([turn.logits + offset * turn.left_out for turn in turns])
    labels = np.concatenate([turn.labels for turn in turns])
    return calibration, next(iter(fit_pool([logits], labels).weights), 1.0)


def add_offset(head: LinearHead, classes: int, offset: float) -> LinearHead:
    """Add to the bias of all classes after the first `classes`."""
    bias = head.bias.copy()
    bias[classes:] += offset
    return LinearHead(head.weights, bias).centred()


def _turns(features: Features, fitted: Bools, classes: int, texts: Real) -> Iterator[_Turn]:
    shot = np.full(len(features), -1)  # of images that only judge
    shot[fitted] = features[np.flatnonzero(fitted)].turns()
    shots = int(shot.max()) + 1
    for turn, left_out in enumerate(_halves(classes)):
        used = fitted & ~left_out[features.labels]
        if shots > 1:
            used &= shot != turn % shots
        own, judged = features[np.flatnonzero(used)], features[np.flatnonzero(~used)]
        head = fit_gda(own, classes, texts)
        unit = spread(head.logits(own.images)[:, ~left_out]) or 1.0
        yield _Turn.judge(head.logits(judged.images) / unit, judged.labels, left_out)


def _halves(classes: int) -> Iterator[Bools]:
    """Masks [K] of half of the classes, rounded down."""
    rng, size = np.random.default_rng(0), classes // 2
    for _ in range(SHUFFLES):
        order = rng.permutation(classes)
        for half in (order[:size], order[-size:]):
            yield np.isin(np.arange(classes), half)


def _balance(seen: Array, rest: Array) -> float:
    """The offset at which both accuracies are closest, halfway to the next that changes one."""
    known = np.unique(np.concatenate([seen, rest]))
    known = known[np.isfinite(known)]
    if not len(known):
        return 0.0
    between = np.concatenate([known[:1], (known[1:] + known[:-1]) / 2, known[-1:]])
    right = 1 - np.searchsorted(np.sort(seen), between, "right") / len(seen)
    also = np.searchsorted(np.sort(rest), between, "left") / len(rest)
    return float(between[int(np.abs(right - also).argmin())])


def _accuracies(seen: Array, rest: Array, offset: float) -> tuple[float, float]:
    return float((seen > offset).mean()), float((rest < offset).mean())
