"""`Linear`: a frozen affine map, in the memory layout with the fastest products."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

#: Smaller weights (in floats) gain less from oneDNN than its calls cost.
MIN_BLOCKED_WEIGHT = 128 * 128


@dataclass(frozen=True)
class Linear:
    """x W^T + b with W [out, in] and b [out] or none.

    On CPUs torch computes float32 products with MKL, which uses only half the width of the AVX-512
    registers of AMD processors. oneDNN, which torch uses for tensors in oneDNN's layout, uses the
    full width, and is equally fast on Intel processors. So with AVX-512, activations are converted
    to that layout. The weight is not converted and is shared with the model.
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
        """The product without the bias: the derivative of the map."""
        return leave(functional.linear(self.enter(dx), self.weight))

    def stay(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out], both in the layout of `enter`."""
        return functional.linear(x, self.weight, self.bias)

    def enter(self, x: Tensor) -> Tensor:
        """Convert activations to the layout with the fastest products."""
        return x.to_mkldnn() if self.blocked and not x.is_mkldnn else x


def leave(x: Tensor) -> Tensor:
    """Convert activations of either layout to a dense tensor."""
    return x.to_dense() if x.is_mkldnn else x
