"""How often an encoder in another precision gives the label that the original gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from sharpzo_engine.clip.backbone import Backbone, ImagePrecision

#: Compared by zero-shot where pictures have no classes.
COMMON_THINGS = (
    "person", "dog", "cat", "bird", "horse", "cow", "car", "bicycle", "bus", "train", "boat",
    "airplane", "tree", "flower", "house", "street", "mountain", "beach", "food", "fruit", "cup",
    "bottle", "chair", "table", "bed", "computer", "phone", "book", "clock", "shoe",
)  # fmt: skip
PICTURES = 64
_BATCH = 16


def change_precision(backbone: Backbone, precision: ImagePrecision) -> float:
    """Change the image tower's precision permanently; see `Backbone.encode_images_in`.

    Returns the share of generated pictures whose zero-shot label stays the same. Their labels are
    closer calls than those of photos, so that photos agree more often.
    """
    pictures = generated_pictures(PICTURES)
    before = _labels(backbone, pictures)
    backbone.encode_images_in(precision)
    return float(np.mean(before == _labels(backbone, pictures)))


def generated_pictures(count: int, side: int = 256) -> list[Image.Image]:
    """Pictures with coarse and fine detail, the same ones each time."""
    rng = np.random.default_rng(0)
    return [_picture(rng, side) for _ in range(count)]


def _picture(rng: np.random.Generator, side: int) -> Image.Image:
    cells = int(rng.integers(2, 17))
    coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), dtype=np.int64)
    grain = rng.integers(-20, 21, smooth.shape)
    return Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))


def _labels(backbone: Backbone, pictures: Sequence[Image.Image]) -> np.ndarray:
    """Positions in `COMMON_THINGS` [N]."""
    tokens = backbone.tokenize("a photo of a", COMMON_THINGS)
    context = torch.as_tensor(backbone.token_embeddings(tokens.context))
    classes = torch.as_tensor(backbone.text_encoder(tokens).encode(context[None]))[0]
    rows = torch.cat([_embed(backbone, part) for part in _batches(pictures)])
    return (rows @ classes.T).argmax(-1).cpu().numpy()


def _embed(backbone: Backbone, pictures: Sequence[Image.Image]) -> Tensor:
    pixels = [torch.as_tensor(backbone.preprocess(picture)) for picture in pictures]
    return torch.as_tensor(backbone.encode_images(torch.stack(pixels)))


def _batches(pictures: Sequence[Image.Image]) -> list[Sequence[Image.Image]]:
    return [pictures[start : start + _BATCH] for start in range(0, len(pictures), _BATCH)]
