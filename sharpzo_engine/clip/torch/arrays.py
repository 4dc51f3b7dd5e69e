"""Between numpy, in which the engine computes, and torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_tensor(array: NDArray[Any], device: torch.device) -> Tensor:
    """A copy on the device.

    Kernels may round differently for tensors with another alignment, as numpy's memory may have. A
    copy is aligned like every new tensor, so that a resumed run is identical.
    """
    return torch.tensor(np.ascontiguousarray(array), device=device)
