"""The text encoder as the engine sees it: arrays in and out, and exact derivatives."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sharpzo_engine.clip.encoder import TextPrecision
from sharpzo_engine.clip.torch.arrays import to_tensor
from sharpzo_engine.clip.torch.text_encoder import ForwardTextEncoder
from sharpzo_engine.clip.torch.text_reverse import TextReverse
from sharpzo_engine.clip.torch.text_tangent import TextTangent

Floats = NDArray[np.float32]
Array = NDArray[np.float64]


class TorchPrompts:
    """The `DifferentiablePrompts` of an encoder on any device."""

    def __init__(
        self,
        forward: ForwardTextEncoder,
        initial_context: Floats,
        in_precision: Callable[[TextPrecision], TorchPrompts],
    ) -> None:
        """`initial_context` [M, W] are the embedded words."""
        self.forward = forward
        self.initial_context = initial_context
        self._in_precision = in_precision

    def in_precision(self, name: TextPrecision) -> TorchPrompts:
        """The same prompts computed in another precision."""
        return self._in_precision(name)

    def encode(self, context: Floats) -> Floats:
        """`context` [n, M, W] -> L2-normalised class embeddings [n, C, E]."""
        found: Floats = self.forward.encode(to_tensor(context, self.forward.device)).cpu().numpy()
        return found

    def tangent(self, context: Floats) -> _Tangent:
        """Forward mode at `context` [M, W]."""
        return _Tangent(self.forward, context)

    def reverse(self, context: Floats) -> _Reverse:
        """Reverse mode at `context` [M, W]."""
        return _Reverse(self.forward, context)


class _Tangent:
    """See `TextTangent`."""

    def __init__(self, forward: ForwardTextEncoder, context: Floats) -> None:
        self._device = forward.device
        self._tangent = TextTangent(forward, to_tensor(context, self._device))

    @property
    def embeddings(self) -> Floats:
        found: Floats = self._tangent.embeddings.cpu().numpy()
        return found

    def products(self, directions: Floats) -> Floats:
        products = self._tangent.products(to_tensor(directions, self._device))
        found: Floats = products.cpu().numpy()
        return found

    def slopes(self, directions: Floats, cotangent: Floats) -> Array:
        pair = (to_tensor(directions, self._device), to_tensor(cotangent, self._device))
        found: Array = self._tangent.slopes(*pair).cpu().double().numpy()
        return found


class _Reverse:
    """See `TextReverse`."""

    def __init__(self, forward: ForwardTextEncoder, context: Floats) -> None:
        self._device = forward.device
        self._reverse = TextReverse(forward, to_tensor(context, self._device))

    @property
    def embeddings(self) -> Floats:
        found: Floats = self._reverse.embeddings.cpu().numpy()
        return found

    def pull_back(self, cotangent: Floats) -> Array:
        pulled = self._reverse.pull_back(to_tensor(cotangent, self._device))
        found: Array = pulled.cpu().double().numpy()
        return found
