"""Random views of training images: the crop and flip that is usual when CLIP is fine-tuned."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

MIN_AREA = 0.5  # fraction of the image
ASPECT = (3 / 4, 4 / 3)  # width to height


@dataclass(frozen=True)
class View:
    """One crop, in fractions of the image, and whether it is flipped."""

    area: float
    aspect: float
    x: float
    y: float
    flipped: bool

    @classmethod
    def draw(cls, rng: np.random.Generator) -> View:
        """Draw a crop of at least half the area, with a log-uniform aspect ratio."""
        area, aspect, x, y, flip = rng.uniform(size=5)
        low, high = map(math.log, ASPECT)
        area = MIN_AREA + (1 - MIN_AREA) * area
        return cls(area, math.exp(low + (high - low) * aspect), x, y, flip < 0.5)

    def apply(self, image: Image.Image, size: int) -> Image.Image:
        """The view of `image`, resized to a square of `size` pixels."""
        width = min(image.width, math.sqrt(self.area * image.width * image.height * self.aspect))
        height = min(image.height, math.sqrt(self.area * image.width * image.height / self.aspect))
        left, top = self.x * (image.width - width), self.y * (image.height - height)
        box = (left, top, left + width, top + height)
        view = image.resize((size, size), Image.Resampling.BICUBIC, box)
        return view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.flipped else view
