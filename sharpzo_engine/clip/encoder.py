"""`Encoder`: what the engine asks of a CLIP model, independently of what runs it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sharpzo_engine.clip.level import Level
from sharpzo_engine.clip.onnx.preprocessing import Preprocessing
from sharpzo_engine.clip.tokens import PromptTokens
from sharpzo_engine.errors import LevelMissing

Preprocess = Callable[[Image.Image], Tensor]


class TextEncoder(Protocol):
    """Encodes context vectors into class embeddings."""

    def encode(self, context: Tensor) -> Tensor:
        """`context` [n, M, W] -> L2-normalised class embeddings [n, C, E]."""
        ...


class Encoder(Hashable, Protocol):
    """A frozen CLIP model.

    Its `fingerprint` is that of the original weights: prompts move between encoders with the same
    one. `variant` distinguishes their runtimes and precisions, whose embeddings differ by rounding.
    """

    @property
    def name(self) -> str:
        """Its name in artifacts."""
        ...

    @property
    def pretrained(self) -> str | None:
        """The tag of its weights, if it has one."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the original's weights and preprocessing."""
        ...

    @property
    def level(self) -> Level:
        """What it can answer."""
        ...

    @property
    def runtime(self) -> str:
        """`torch`, `onnxruntime` or `remote`."""
        ...

    @property
    def precision(self) -> str:
        """Of the image tower."""
        ...

    @property
    def logit_scale(self) -> float:
        """The factor of cosines in logits."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the tensors are that it takes and returns."""
        ...

    @property
    def preprocess(self) -> Preprocess:
        """The map from an image to pixels [3, H, W]."""
        ...

    @property
    def preprocessing(self) -> Preprocessing:
        """What `preprocess` does, in numbers."""
        ...

    @property
    def variant(self) -> str:
        """Names everything that changes the last bits of embeddings; empty for the original."""
        ...

    @property
    def embed_dim(self) -> int:
        """Width E of the joint embedding."""
        ...

    @property
    def image_size(self) -> int:
        """Pixels along a side of what the image tower takes."""
        ...

    @property
    def text_width(self) -> int:
        """Width W of the text tower; 0 if it takes no context vectors."""
        ...

    @property
    def positions(self) -> int:
        """Tokens that the text tower takes, first and last included; 0 if that is unknown."""
        ...

    def describe(self) -> dict[str, str | None]:
        """Name, weights, fingerprint, runtime and precision, as artifacts record them."""
        ...

    def encode_images(self, batch: Tensor) -> Tensor:
        """Preprocessed images [B, 3, H, W] -> L2-normalised embeddings [B, E]."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Whole texts -> L2-normalised embeddings [n, E].

        Raises:
            TextError: a text has no tokens, or too many.
        """
        ...

    def tokenize(self, context: str, class_names: Sequence[str]) -> PromptTokens:
        """Token ids of "{context} {name}." for every class; errors as `tokenize_prompts`."""
        ...

    def token_embeddings(self, ids: Sequence[int]) -> Tensor:
        """Embeddings [M, W] of token ids, without positions."""
        ...

    def text_encoder(self, tokens: PromptTokens) -> TextEncoder:
        """An encoder of these prompts."""
        ...


@runtime_checkable
class Changeable(Protocol):
    """An encoder whose model may be replaced while it is in use."""

    @property
    def changed(self) -> bool:
        """Whether the model was found to be another one."""
        ...

    def check(self) -> None:
        """Ask for the probes again.

        Raises:
            BackboneMismatch: the model is another one.
            EncoderAway: it does not answer.
        """
        ...


def check_unchanged(encoder: Encoder) -> None:
    """Return if the model is the one that was loaded; raises as `Changeable.check`."""
    if isinstance(encoder, Changeable):
        encoder.check()


def has_changed(encoder: Encoder) -> bool:
    """Whether the encoder was found to have another model than when it was loaded."""
    return isinstance(encoder, Changeable) and encoder.changed


def require(encoder: Encoder, level: Level, purpose: str) -> None:
    """Return if the encoder answers what the level stands for.

    Raises:
        LevelMissing: it does not; names what it can be used for.
    """
    if not encoder.level.includes(level):
        raise LevelMissing(
            f"{purpose} needs an encoder of level {level}, {encoder.name} gives {encoder.level} "
            "(use another backbone)"
        )
