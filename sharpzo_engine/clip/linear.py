"""`Linear`: a frozen affine map, in the memory layout that multiplies fastest."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

#: Weights smaller than this (floats) gain less from oneDNN than its calls cost.
MIN_BLOCKED_WEIGHT = 128 * 128


@dataclass(frozen=True)
class Linear:
    """x W^T + b with W [out, in] and b [out] or none.

    Torch's own float32 products on a processor go to MKL, which on AMD's stays at half the width of
    the AVX-512 registers; oneDNN, behind tensors in its own layout, uses all of it, and on Intel's
    the two are alike. So with AVX-512, activations are handed over in that layout. The weight stays
    as it is, and shared with the model.
    """

    weight: Tensor
    bias: Tensor | None = None

    @cached_property
    def blocked(self) -> bool:
        """Whether activations go through oneDNN's layout."""
        weight = self.weight
        return (
            weight.device.type == "cpu"
            and weight.dtype == torch.float32
            and weight.numel() >= MIN_BLOCKED_WEIGHT
            and torch.backends.mkldnn.is_available()
            and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
        )

    def __call__(self, x: Tensor) -> Tensor:
        """[..., in] in either layout -> dense [..., out]."""
        return leave(functional.linear(self.enter(x), self.weight, self.bias))

    def differential(self, dx: Tensor) -> Tensor:
        """The same without the bias, which no tangent sees."""
        return leave(functional.linear(self.enter(dx), self.weight))

    def stay(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out], both in the layout that `enter` makes."""
        return functional.linear(x, self.weight, self.bias)

    def enter(self, x: Tensor) -> Tensor:
        """Bring activations into the layout that multiplies fastest."""
        return x.to_mkldnn() if self.blocked and not x.is_mkldnn else x


def leave(x: Tensor) -> Tensor:
    """Bring activations of either layout back to a dense tensor."""
    return x.to_dense() if x.is_mkldnn else x
