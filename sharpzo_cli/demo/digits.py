"""A dataset folder of scikit-learn's handwritten digits: 1,797 real scans of 8 x 8 pixels."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
#: Images per digit and split; the others are the test split.
PER_DIGIT = {"train": 40, "val": 20, "unseen": 10}
GREY_LEVELS = 16  # a scan's values are 0..16, ink is high
SIDE = 64  # pixels of the written images


@dataclass(frozen=True)
class HeldOut:
    path: Path
    label: str


def write_digits(folder: Path) -> list[HeldOut]:
    """Write `train`, `val` and `test` with one folder per digit, and return the held-out images.

    The split is always the same: images are taken in the collection's order.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    (folder / "dataset").mkdir(parents=True)
    names = {str(digit): name for digit, name in enumerate(NAMES)}
    (folder / "dataset" / "classnames.json").write_text(json.dumps(names))
    held_out: list[HeldOut] = []
    seen = [0] * len(NAMES)
    for index, (scan, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        split = _split(seen[digit])
        seen[digit] += 1
        root = folder if split == "unseen" else folder / "dataset"
        path = root / split / str(digit) / f"{index:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        to_image(scan).save(path)
        if split == "unseen":
            held_out.append(HeldOut(path, NAMES[digit]))
    return held_out


def to_image(scan: NDArray[np.float64]) -> Image.Image:
    """Convert a scan [8, 8] to a grey image of SIDE x SIDE pixels, light ink on black."""
    grey = (scan * (255 / GREY_LEVELS)).round().astype("uint8")
    return Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def _split(rank: int) -> str:
    for name, count in PER_DIGIT.items():
        if rank < count:
            return name
        rank -= count
    return "test"
