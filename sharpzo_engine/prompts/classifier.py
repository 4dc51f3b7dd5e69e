"""Classifying with a tuned prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sharpzo_engine.clip.encoder import Encoder, Floats, Prompts, require
from sharpzo_engine.clip.features import BATCH_SIZE
from sharpzo_engine.clip.level import Level
from sharpzo_engine.data.images import decode_image
from sharpzo_engine.errors import ArtifactError, BackboneMismatch, ImageError
from sharpzo_engine.prompts.artifact import TunedPrompt
from sharpzo_engine.softmax import softmax

ImageInput = str | Path | bytes | Image.Image


@dataclass(frozen=True)
class Prediction:
    """One class with its probability."""

    label: str
    index: int
    score: float


class PromptClassifier:
    """A tuned prompt on the backbone it was tuned on."""

    def __init__(self, prompt: TunedPrompt, backbone: Encoder) -> None:
        """Raises BackboneMismatch if the fingerprints differ, as predictions would be wrong."""
        check_backbone(prompt, backbone)
        self.prompt = prompt
        self.backbone = backbone
        self._weights, self._bias = prompt.weights, prompt.bias

    def embed(self, images: Sequence[ImageInput]) -> Floats:
        """Images -> L2-normalised embeddings [B, E].

        Raises:
            ImageError: an image cannot be decoded; names the image.
        """
        batches = [images[i : i + BATCH_SIZE] for i in range(0, len(images), BATCH_SIZE)]
        embedded = [self.backbone.encode_images(self._preprocess(batch)) for batch in batches]
        return np.concatenate([np.empty((0, self.backbone.embed_dim), np.float32), *embedded])

    def _preprocess(self, images: Sequence[ImageInput]) -> Floats:
        return np.stack([self.backbone.preprocess(to_image(image)) for image in images])

    def logits(self, embeddings: Floats) -> Floats:
        """Image embeddings [B, E] -> logits [B, C]."""
        return embeddings @ self._weights.T + self._bias

    def probabilities(self, embeddings: Floats, temperature: float = 1.0) -> Floats:
        """Image embeddings [B, E] -> class probabilities [B, C], each row summing to 1.

        The logits are divided by `temperature`; the prompt's own calibrates them.
        """
        return softmax(self.logits(embeddings) / np.float32(temperature))

    def rank(
        self,
        embeddings: Floats,
        top_k: int = 5,
        *,
        calibrated: bool = False,
    ) -> list[list[Prediction]]:
        """The `top_k` most probable classes of each image embedding [B, E], best first.

        Raises:
            NotCalibrated: `calibrated` is set, but the prompt has no temperature.
        """
        temperature = self.prompt.require_temperature() if calibrated else 1.0
        rows = self.probabilities(embeddings, temperature)
        return [top_predictions(row, self.prompt.class_names, top_k) for row in rows]

    def predict(
        self, images: Sequence[ImageInput], top_k: int = 5, *, calibrated: bool = False
    ) -> list[list[Prediction]]:
        """The `top_k` most probable classes of each image, best first.

        Raises:
            ImageError: an image cannot be decoded; names the image.
            NotCalibrated: `calibrated` is set, but the prompt has no temperature.
        """
        if calibrated:
            self.prompt.require_temperature()  # fail before the images are encoded
        return self.rank(self.embed(images), top_k, calibrated=calibrated)

    @property
    def has_zero_shot(self) -> bool:
        """Whether there is a `zero_shot`: the backbone knows texts."""
        return self.backbone.level.includes(Level.TEXTS)

    def zero_shot(self) -> PromptClassifier:
        """The hand-written prompt that the search started from, without head and temperature.

        Raises:
            LevelMissing: the backbone knows no texts.
            ConfigError: the artifact's words are not usable.
            DatasetError: a class name is too long for the text tower.
        """
        words, names = self.prompt.hand_written_context, self.prompt.class_names
        prompts = self.backbone.prompts(words, names)
        return self._with_context(prompts, prompts.initial_context, names, {})

    def among(self, class_names: Sequence[str]) -> PromptClassifier:
        """Restrict the classifier to some of its classes; new classes use `with_classes`.

        Raises:
            ArtifactError, ConfigError, DatasetError: see `with_classes`.
        """
        if not set(class_names) <= set(self.prompt.class_names):
            return self.with_classes(class_names)
        return PromptClassifier(self.prompt.among(class_names), self.backbone)

    def with_classes(self, class_names: Sequence[str]) -> PromptClassifier:
        """Use the tuned context with other class names, which may be new.

        Head and temperature are dropped, because they were fitted to the prompt's own classes.

        Raises:
            ArtifactError: the artifact's words and vectors are inconsistent.
            ConfigError: the words are not usable.
            DatasetError: a class name is too long for the text tower.
        """
        require(self.backbone, Level.CONTEXTS, "a tuned context with other class names")
        metadata = {**self.prompt.metadata, "head": {"kind": "none"}}
        prompts = self.backbone.prompts(self.prompt.hand_written_context, class_names)
        if prompts.initial_context.shape != self.prompt.context.shape:
            raise ArtifactError("the prompt file is inconsistent: its words and vectors differ")
        return self._with_context(prompts, self.prompt.context, class_names, metadata)

    def _with_context(
        self, prompts: Prompts, context: Floats, names: Sequence[str], metadata: Mapping[str, Any]
    ) -> PromptClassifier:
        """A classifier from context vectors [M, W] and class names."""
        own = self.prompt.metadata
        prompt = TunedPrompt(
            class_names=tuple(names),
            class_embeddings=prompts.encode(context[None])[0],
            context=context,
            logit_scale=self.backbone.logit_scale,
            metadata={"backbone": own["backbone"], "config": own.get("config"), **metadata},
        )
        return PromptClassifier(prompt, self.backbone)


def check_backbone(prompt: TunedPrompt, backbone: Encoder) -> None:
    """Return if the prompt was tuned on this backbone.

    Raises:
        BackboneMismatch: on another one.
    """
    if prompt.fingerprint != backbone.fingerprint:
        tuned_on = prompt.metadata["backbone"].get("name", "another backbone")
        raise BackboneMismatch(
            f"the prompt was tuned on {tuned_on} with weights {prompt.fingerprint[:12]}, this "
            f"is {backbone.name} with weights {backbone.fingerprint[:12]} (load that one)"
        )

    width = prompt.weights.shape[1]
    if width != backbone.embed_dim:
        raise BackboneMismatch(
            f"the prompt has embeddings of {width} numbers, {backbone.name} of "
            f"{backbone.embed_dim} (the file's fingerprint is wrong; tune the prompt again)"
        )


def other_precision(prompt: TunedPrompt, backbone: Encoder) -> str | None:
    """What differs from the encoder that the prompt was tuned on, in words; None if nothing.

    Both have the same weights, but round differently, so accuracies may differ a little.
    """
    tuned = prompt.metadata["backbone"]
    its = (tuned.get("runtime") or "torch", tuned.get("precision") or "float32")
    own = (backbone.runtime, backbone.precision)
    if its == own:
        return None
    return f"tuned with {its[0]} in {its[1]}, answered by {own[0]} in {own[1]}"


def top_predictions(
    probabilities: NDArray[np.float32], class_names: Sequence[str], top_k: int
) -> list[Prediction]:
    """The best `top_k` of one row [C], best first."""
    order = np.argsort(-probabilities, kind="stable")[: max(1, top_k)]
    return [Prediction(class_names[i], int(i), float(probabilities[i])) for i in order]


def zero_shot_weights(
    backbone: Encoder, context: str, class_names: Sequence[str]
) -> NDArray[np.float32]:
    """Class weights [C, E] of the hand-written prompt "{context} {class}.".

    Raises:
        ConfigError: the context is not usable.
        DatasetError: a class name is too long for the text tower.
    """
    prompts = backbone.prompts(context, class_names)
    embeddings = prompts.encode(prompts.initial_context[None])[0]
    result: Floats = np.float32(backbone.logit_scale) * embeddings
    return result


def to_image(source: ImageInput) -> Image.Image:
    """Decode a path or bytes; an image is converted to RGB.

    Raises:
        ImageError: names the file, if there is one.
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
