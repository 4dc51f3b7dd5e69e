"""From an image to the pixels that a CLIP model takes, with Pillow and numpy alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sharpzo_engine.errors import BackboneError

Interpolation = Literal["bicubic", "bilinear"]
ResizeMode = Literal["shortest", "squash"]
LARGEST = 4096  # pixels along a side
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop the centre and normalise, as open_clip's transform does for evaluation.

    `shortest` resizes the shorter side to `size` and crops; `squash` changes the aspect ratio.
    """

    size: int  #: pixels along a side
    mean: tuple[float, float, float]  #: of red, green and blue in 0..1
    std: tuple[float, float, float]
    interpolation: Interpolation = "bicubic"
    resize_mode: ResizeMode = "shortest"

    def __post_init__(self) -> None:
        """Check values that may come from a file.

        Raises:
            BackboneError: a value is not possible.
        """
        modes: tuple[str, ...] = get_args(ResizeMode)
        possible = (
            str(self.interpolation) in _FILTERS
            and str(self.resize_mode) in modes
            and 1 <= self.size <= LARGEST
            and all(deviation > 0 for deviation in self.std)
        )
        if not possible:
            raise BackboneError(f"this preprocessing is not supported: {self}")

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        """An image -> pixels [3, size, size]."""
        pixels = np.asarray(self.crop(image), np.float32) / np.float32(255)
        normal = (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(normal.transpose(2, 0, 1))

    def crop(self, image: Image.Image) -> Image.Image:
        """An image -> RGB of `size` x `size`."""
        image = image.convert("RGB")
        size, resample = self.size, _FILTERS[self.interpolation]
        if self.resize_mode == "squash":
            return image.resize((size, size), resample)
        width, height = image.size
        short = min(width, height)
        if short != size:
            image = image.resize((size * width // short, size * height // short), resample)
        left = round((image.width - size) / 2)
        top = round((image.height - size) / 2)
        return image.crop((left, top, left + size, top + size))
