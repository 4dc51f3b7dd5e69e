"""CLIP's seven templates, of which the mean text embedding is a stronger zero-shot baseline."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sharpzo_engine import Encoder

#: The seven that its authors chose for ImageNet, in openai/CLIP's notebook on prompts.
TEMPLATES = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)


def template_embeddings(encoder: Encoder, class_names: Sequence[str]) -> NDArray[np.float32]:
    """The normalised mean [C, E] of each class's embeddings over the templates."""
    texts = [template.format(name) for name in class_names for template in TEMPLATES]
    rows = encoder.encode_texts(texts).reshape(len(class_names), len(TEMPLATES), -1).mean(1)
    unit: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit
