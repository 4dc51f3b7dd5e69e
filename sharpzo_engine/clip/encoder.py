"""`Encoder`: what the engine asks of a CLIP model, independently of what runs it.

Arrays go in and come out; nothing that uses an encoder knows torch.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sharpzo_engine.clip.level import Level
from sharpzo_engine.clip.onnx.preprocessing import Preprocessing
from sharpzo_engine.clip.tokens import PromptTokens
from sharpzo_engine.errors import LevelMissing

Floats = NDArray[np.float32]
Array = NDArray[np.float64]
Preprocess = Callable[[Image.Image], Floats]
TextPrecision = Literal["float32", "bfloat16"]


class Prompts(Protocol):
    """The prompts of some classes: encodes context vectors into class embeddings."""

    @property
    def initial_context(self) -> Floats:
        """The vectors [M, W] of the hand-written words, without positions."""
        ...

    def encode(self, context: Floats) -> Floats:
        """`context` [n, M, W] -> L2-normalised class embeddings [n, C, E]."""
        ...

    def in_precision(self, name: TextPrecision) -> Prompts:
        """The same prompts computed in another precision; unchanged where that is fixed."""
        ...


class Tangent(Protocol):
    """Class embeddings at one context, and the products of their Jacobian."""

    @property
    def embeddings(self) -> Floats:
        """T [C, E]."""
        ...

    def products(self, directions: Floats) -> Floats:
        """Tangents dT_j [q, C, E] for `directions` [q, M, W] of the context."""
        ...

    def slopes(self, directions: Floats, cotangent: Floats) -> Array:
        """<cotangent, dT_j> [q] for `directions` [q, M, W], cotangent [C, E]."""
        ...


class Reverse(Protocol):
    """Class embeddings at one context, and the product of their transposed Jacobian."""

    @property
    def embeddings(self) -> Floats:
        """T [C, E]."""
        ...

    def pull_back(self, cotangent: Floats) -> Array:
        """dL/dT [C, E] -> dL/dctx [M, W]; can be called once."""
        ...


@runtime_checkable
class DifferentiablePrompts(Prompts, Protocol):
    """Prompts of level `tangents`."""

    def tangent(self, context: Floats) -> Tangent:
        """Forward mode at `context` [M, W]."""
        ...

    def reverse(self, context: Floats) -> Reverse:
        """Reverse mode at `context` [M, W]: what CoOp needs, and SharpZO does not."""
        ...


class ImageLoss(Protocol):
    """Mean cross-entropy of N fixed images under class embeddings T.

    L(T) = -(1/N) sum_n log softmax(s F T^T)[n, y_n], with s the logit scale.
    """

    def losses(self, embeddings: Floats) -> Array:
        """Class embeddings [n, C, E] -> losses [n]; NaN if they are not finite."""
        ...

    def gradient(self, embeddings: Floats) -> tuple[float, Floats]:
        """Class embeddings T [C, E] -> loss and dL/dT [C, E].

        dL/dT = (s / N) sum_n (softmax(s f_n T^T) - onehot(y_n)) f_n^T.
        """
        ...

    def curvature(self, embeddings: Floats, jacobian: Floats) -> Array:
        """J (d^2 L/dT^2) J^T [k, k] for T [C, E] and the rows of J [k, C, E].

        With Z_j = s F J_j^T, the change of the logits along row j, and the probabilities p:
        H_jl = (1/N) sum_n cov_{p_n}(Z_j[n], Z_l[n]). Of many images a sample is used.
        """
        ...

    def accuracy(self, embeddings: Floats) -> float:
        """Fraction of images whose nearest class embedding [C, E] is their own."""
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
    def on_cpu(self) -> bool:
        """Whether it computes on this machine's processor, so that calls share its cores."""
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

    def describe(self) -> dict[str, str | None]:
        """Name, weights, fingerprint, runtime and precision, as artifacts record them."""
        ...

    def encode_images(self, batch: Floats) -> Floats:
        """Preprocessed images [B, 3, H, W] -> L2-normalised embeddings [B, E]."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> Floats:
        """Whole texts -> L2-normalised embeddings [n, E].

        Raises:
            LevelMissing: the encoder knows no texts.
            TextError: a text has no tokens, or too many.
        """
        ...

    def prompts(self, words: str, class_names: Sequence[str]) -> Prompts:
        """The prompts "{words} {name}."; at level `tangents` they are `DifferentiablePrompts`.

        Raises:
            LevelMissing: the encoder knows no texts.
            ConfigError: the words are not usable.
            DatasetError: a class name is too long for the text tower.
        """
        ...

    def image_loss(self, images: Floats, labels: NDArray[np.int64]) -> ImageLoss:
        """The loss of L2-normalised image embeddings [N, E] with labels [N]."""
        ...


class Described:
    """How every encoder describes itself."""

    def describe(self: Encoder) -> dict[str, str | None]:
        """Name, weights, fingerprint, runtime and precision, as artifacts record them."""
        return {
            "name": self.name,
            "pretrained": self.pretrained,
            "fingerprint": self.fingerprint,
            "runtime": self.runtime,
            "precision": self.precision,
        }


class TokenEncoder(Encoder, Protocol):
    """An encoder of level `contexts`, as its service needs it to answer for others."""

    @property
    def text_width(self) -> int:
        """Width W of the text tower."""
        ...

    @property
    def positions(self) -> int:
        """Tokens that the text tower takes, first and last included."""
        ...

    def tokenize(self, context: str, class_names: Sequence[str]) -> PromptTokens:
        """Token ids of "{context} {name}." for every class; errors as `tokenize_prompts`."""
        ...

    def token_embeddings(self, ids: Sequence[int]) -> Floats:
        """Embeddings [M, W] of token ids, without positions."""
        ...

    def text_encoder(self, tokens: PromptTokens) -> Prompts:
        """The prompts of these tokens."""
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
