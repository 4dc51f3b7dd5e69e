"""`Encoder`: what the engine asks of a CLIP model, independently of what runs it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from sharpzo_engine.clip.level import Level
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
        """`torch` or `onnxruntime`."""
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

    def describe(self) -> dict[str, str | None]:
        """Name, weights, fingerprint, runtime and precision, as artifacts record them."""
        ...

    def encode_images(self, batch: Tensor) -> Tensor:
        """Preprocessed images [B, 3, H, W] -> L2-normalised embeddings [B, E]."""
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
