"""Classifying with a tuned prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sharpzo_engine.artifact import TunedPrompt
from sharpzo_engine.backbone import Backbone
from sharpzo_engine.errors import BackboneMismatch, ImageError
from sharpzo_engine.features import BATCH_SIZE
from sharpzo_engine.images import decode_image

ImageInput = str | Path | bytes | Image.Image


@dataclass(frozen=True)
class Prediction:
    """One class with its probability."""

    label: str
    index: int
    score: float


class PromptClassifier:
    """A tuned prompt on the backbone it was tuned on."""

    def __init__(self, prompt: TunedPrompt, backbone: Backbone) -> None:
        """Raises BackboneMismatch where fingerprints differ: answers would be nonsense."""
        if prompt.fingerprint != backbone.fingerprint:
            tuned_on = prompt.metadata["backbone"].get("name", "another backbone")
            raise BackboneMismatch(
                f"the prompt was tuned on {tuned_on} with weights {prompt.fingerprint[:12]}, this "
                f"is {backbone.name} with weights {backbone.fingerprint[:12]} (load that one)"
            )
        self.prompt = prompt
        self.backbone = backbone
        self._weights = torch.tensor(prompt.weights, device=backbone.device)
        self._bias = torch.tensor(prompt.bias, device=backbone.device)

    def embed(self, images: Sequence[ImageInput]) -> Tensor:
        """Images -> L2-normalised embeddings [B, E].

        Raises:
            ImageError: an image cannot be decoded, naming it.
        """
        batches = [images[i : i + BATCH_SIZE] for i in range(0, len(images), BATCH_SIZE)]
        embedded = [self.backbone.encode_images(self._preprocess(batch)) for batch in batches]
        empty = torch.empty(0, self.backbone.embed_dim, device=self.backbone.device)
        return torch.cat([empty, *embedded])

    def _preprocess(self, images: Sequence[ImageInput]) -> Tensor:
        return torch.stack([self.backbone.preprocess(to_image(image)) for image in images])

    @torch.inference_mode()
    def logits(self, embeddings: Tensor | NDArray[np.float32]) -> Tensor:
        """Image embeddings [B, E] -> logits [B, C]."""
        images = torch.as_tensor(embeddings, device=self._weights.device)
        return torch.addmm(self._bias, images, self._weights.T)

    @torch.inference_mode()
    def probabilities(
        self, embeddings: Tensor | NDArray[np.float32], temperature: float = 1.0
    ) -> NDArray[np.float32]:
        """Image embeddings [B, E] -> class probabilities [B, C], each row summing to 1.

        The logits are divided by `temperature`; the prompt's own calibrates them.
        """
        result: NDArray[np.float32] = (
            (self.logits(embeddings) / temperature).softmax(-1).cpu().numpy()
        )
        return result

    def predict(self, images: Sequence[ImageInput], top_k: int = 5) -> list[list[Prediction]]:
        """The `top_k` most probable classes of each image, best first.

        Raises:
            ImageError: an image cannot be decoded, naming it.
        """
        rows = self.probabilities(self.embed(images))
        return [top_predictions(row, self.prompt.class_names, top_k) for row in rows]


def top_predictions(
    probabilities: NDArray[np.float32], class_names: Sequence[str], top_k: int
) -> list[Prediction]:
    """The best `top_k` of one row [C], best first."""
    order = np.argsort(-probabilities, kind="stable")[: max(1, top_k)]
    return [Prediction(class_names[i], int(i), float(probabilities[i])) for i in order]


def zero_shot_weights(
    backbone: Backbone, context: str, class_names: Sequence[str]
) -> NDArray[np.float32]:
    """What the hand-written prompt "{context} {class}." multiplies image embeddings by [C, E].

    Raises:
        ConfigError: the context is unusable.
        DatasetError: a class name is too long for the text tower.
    """
    tokens = backbone.tokenize(context, class_names)
    words = backbone.token_embeddings(tokens.context)  # [M, W]
    embeddings = backbone.text_encoder(tokens).encode(words[None])[0]
    result: NDArray[np.float32] = (backbone.logit_scale * embeddings).cpu().numpy()
    return result


def hand_written(tuned: PromptClassifier) -> PromptClassifier:
    """The prompt that tuning began with, without a head: the zero-shot classifier.

    Raises:
        ConfigError: its context is unusable.
        DatasetError: a class name is too long for the text tower.
    """
    prompt, backbone = tuned.prompt, tuned.backbone
    weights = zero_shot_weights(backbone, prompt.hand_written_context, prompt.class_names)
    scale = backbone.logit_scale
    embeddings = weights / np.float32(scale)
    return PromptClassifier(
        replace(prompt, class_embeddings=embeddings, logit_scale=scale, stacked=None), backbone
    )


def to_image(source: ImageInput) -> Image.Image:
    """Decode a path or bytes; an image is taken as it is.

    Raises:
        ImageError: naming the file, where there is one.
    """
    if isinstance(source, Image.Image):
        return source.convert("RGB")
    if isinstance(source, bytes):
        return decode_image(source)
    try:
        return decode_image(Path(source).read_bytes())
    except OSError as error:
        raise ImageError(f"{source}: cannot be read ({error.strerror})") from error
    except ImageError as error:
        raise ImageError(f"{source}: {error}", error.code) from error
