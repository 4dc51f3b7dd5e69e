"""Fixed questions to a remote encoder, whose answers show whether its model was replaced."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sharpzo_engine.errors import BackboneMismatch

Floats = NDArray[np.float32]

TEXTS = (
    "a photo of a cat.",
    "a drawing of a house at night.",
    "seven red circles on a white wall",
    "satellite image of a forest",
)
SECONDS = 3600.0  # between two checks while the encoder is in use
AGAIN_SECONDS = 60.0  # after the model was found to be another one
#: Answers to one probe are closer than this, also in half precision and in other batches.
MIN_COSINE = 0.999
#: Cosines are rounded to this before they are hashed.
GRID = 0.05

logger = logging.getLogger(__name__)


def images(size: int) -> list[Image.Image]:
    """Two pictures of `size` x `size`: a slope of colours, and stripes."""
    y, x = np.mgrid[:size, :size]
    slope = np.stack([x * 255 // size, y * 255 // size, 255 - x * 255 // size], -1)
    stripes = np.where(((x + y) * 8 // size % 2)[..., None], (230, 40, 40), (20, 30, 90))
    return [Image.fromarray(pixels.astype(np.uint8)) for pixels in (slope, stripes)]


def fingerprint(answers: Floats, about: str) -> str:
    """A hash of normalised answers [n, E] that small differences of rounding leave as it is."""
    cosines = np.rint(np.triu(answers @ answers.T, 1) / GRID).astype(np.int64)
    described = f"{about} {answers.shape[1]} {cosines.tolist()}"
    return hashlib.sha256(described.encode()).hexdigest()


class Watch:
    """Asks for the probes now and then, and compares the answers [n, E] with the first ones."""

    def __init__(self, url: str, ask: Callable[[], Floats]) -> None:
        """Ask for the first time."""
        self._url = url
        self._ask = ask
        self.first = ask()
        self.changed = False
        self._due = time.monotonic() + SECONDS

    def check(self) -> None:
        """Ask again.

        Raises:
            BackboneMismatch: the answers are others.
            EncoderAway, BackboneError: there are none.
        """
        answers = self._ask()
        same = answers.shape == self.first.shape and bool(
            ((answers * self.first).sum(-1) > MIN_COSINE).all()
        )
        self._due = time.monotonic() + (SECONDS if same else AGAIN_SECONDS)
        self.settle(same=same)

    def check_if_due(self) -> None:
        """Ask again if the last time was long ago; raises as `check`."""
        if time.monotonic() >= self._due:
            self.check()
        elif self.changed:
            self.settle(same=False)

    def settle(self, *, same: bool) -> None:
        """Record whether the model is the first one.

        Raises:
            BackboneMismatch: it is not.
        """
        if not same and not self.changed:
            logger.warning("the encoder at %s has another model now", self._url)
            self._due = time.monotonic() + AGAIN_SECONDS
        self.changed = not same
        if not same:
            raise BackboneMismatch(
                f"the encoder at {self._url} answers with another model than before"
            )
