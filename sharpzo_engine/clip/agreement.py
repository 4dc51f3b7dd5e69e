"""How closely one encoder's answers agree with another's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sharpzo_engine.clip.encoder import Encoder, Floats

BATCH = 16
GENERATED = 64  # pictures, where no photos are at hand
#: Compared by zero-shot where the photos have no classes.
COMMON_THINGS = (
    "person", "dog", "cat", "bird", "horse", "cow", "car", "bicycle", "bus", "train", "boat",
    "airplane", "tree", "flower", "house", "street", "mountain", "beach", "food", "fruit", "cup",
    "bottle", "chair", "table", "bed", "computer", "phone", "book", "clock", "shoe",
)  # fmt: skip


@dataclass(frozen=True)
class Photos:
    """Images to calibrate and compare on, with the names of their classes."""

    images: Sequence[Image.Image]
    class_names: Sequence[str] = COMMON_THINGS


@dataclass(frozen=True)
class Agreement:
    """How close an encoder's answers are to the original's."""

    photos: int
    top1: float | None  #: share of photos with the same zero-shot label; None without photos
    image_cosine: float | None  #: smallest cosine of an image's two embeddings
    text_cosine: float  #: smallest cosine of a class's two embeddings

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Answers:
    """An encoder's embeddings of classes [C, E] and of photos [N, E], None without photos."""

    classes: Floats
    photos: Floats | None

    @classmethod
    def of(cls, encoder: Encoder, photos: Photos | None) -> Answers:
        """Ask an encoder; without photos, for the classes alone."""
        classes = _class_embeddings(encoder, photos.class_names if photos else COMMON_THINGS)
        if photos is None or not photos.images:
            return cls(classes, None)
        parts = [encoder.encode_images(pixels(encoder, part)) for part in batches(photos.images)]
        return cls(classes, np.concatenate(parts))

    def agreement(self, original: Answers) -> Agreement:
        """Compare with another encoder's answers to the same questions."""
        text_cosine = float((self.classes * original.classes).sum(-1).min())
        if self.photos is None or original.photos is None:
            return Agreement(0, None, None, text_cosine)
        same = _labels(self.photos, self.classes) == _labels(original.photos, original.classes)
        return Agreement(
            photos=len(self.photos),
            top1=float(same.mean()),
            image_cosine=float((self.photos * original.photos).sum(-1).min()),
            text_cosine=text_cosine,
        )


def _labels(photos: Floats, classes: Floats) -> NDArray[np.int64]:
    labels: NDArray[np.int64] = (photos @ classes.T).argmax(-1)
    return labels


def pixels(encoder: Encoder, images: Sequence[Image.Image]) -> Floats:
    """Preprocess images into one batch [B, 3, H, W]."""
    return np.stack([encoder.preprocess(image) for image in images])


def batches(images: Sequence[Image.Image]) -> list[Sequence[Image.Image]]:
    """Cut images into batches."""
    return [images[start : start + BATCH] for start in range(0, len(images), BATCH)]


def _class_embeddings(encoder: Encoder, names: Sequence[str]) -> Floats:
    prompts = encoder.prompts("a photo of a", names)
    found: Floats = prompts.encode(prompts.initial_context[None])[0]
    return found


def agreement_through(encoder: Encoder, change: Callable[[], object]) -> Agreement:
    """Change an encoder, and compare its answers on generated pictures with those before."""
    photos = generated_photos()
    before = Answers.of(encoder, photos)
    change()
    return Answers.of(encoder, photos).agreement(before)


def generated_photos(count: int = GENERATED, side: int = 256) -> Photos:
    """Pictures with coarse and fine detail, the same ones each time.

    Their labels are closer calls than those of photos, so that photos agree more often.
    """
    rng = np.random.default_rng(0)
    return Photos([_picture(rng, side) for _ in range(count)])


def _picture(rng: np.random.Generator, side: int) -> Image.Image:
    cells = int(rng.integers(2, 17))
    coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), dtype=np.int64)
    grain = rng.integers(-20, 21, smooth.shape)
    return Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))
