"""`TorchCrossEntropy`: an `ImageLoss` on the device of the text tower."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from sharpzo_engine.clip.parallel import even_slices, map_chunks
from sharpzo_engine.clip.torch.arrays import to_tensor
from sharpzo_engine.clip.torch.linear import Linear

Array = NDArray[np.float64]
Floats = NDArray[np.float32]

#: Logits (floats) per thread at a time. On a CPU they fit into the cache.
MAX_LOGITS = {"cpu": 2**18, "cuda": 2**26}
#: Logits used for a curvature; more images hardly change it.
MAX_CURVATURE_LOGITS = 2**15
#: Derivatives of logits (floats) at a time: 16 MiB.
MAX_LOGIT_DERIVATIVES = 2**22


class TorchCrossEntropy:
    """See `ImageLoss`."""

    def __init__(
        self, images: Floats, labels: NDArray[np.int64], scale: float, device: torch.device
    ) -> None:
        """L2-normalised `images` [N, E] and `labels` [N]."""
        self.images = to_tensor(images, device)
        self.labels = to_tensor(labels, device)
        self._device = device
        self._on_cpu = device.type == "cpu"
        self._scale = scale
        self.max_logits = MAX_LOGITS.get(device.type, MAX_LOGITS["cpu"])

    def losses(self, embeddings: Floats) -> Array:
        """Class embeddings [n, C, E] -> losses [n]; NaN if they are not finite."""
        found: Array = self._losses(to_tensor(embeddings, self._device)).numpy()
        return found

    def gradient(self, embeddings: Floats) -> tuple[float, Floats]:
        """Class embeddings T [C, E] -> loss and dL/dT [C, E], see `ImageLoss`."""
        loss, gradient = self._gradient(to_tensor(embeddings, self._device))
        return loss, gradient.cpu().numpy()

    def curvature(self, embeddings: Floats, jacobian: Floats) -> Array:
        """J (d^2 L/dT^2) J^T [k, k], see `ImageLoss`."""
        pair = (to_tensor(embeddings, self._device), to_tensor(jacobian, self._device))
        found: Array = self._curvature(*pair).numpy()
        return found

    @torch.inference_mode()
    def accuracy(self, embeddings: Floats) -> float:
        """Fraction of images whose nearest class embedding [C, E] is their own."""
        slices = self._image_slices(max(1, self.max_logits // len(embeddings)))
        matrix = self._matrix(to_tensor(embeddings, self._device)[None])
        best = torch.cat([self._logits(matrix, rows).argmax(-1) for rows in slices])
        return int((best == self.labels).sum()) / len(self.labels)

    def _losses(self, embeddings: Tensor) -> Tensor:
        n, classes, _ = embeddings.shape
        images = min(len(self.images), max(1, self.max_logits // classes))
        parts = even_slices(n, max(1, self.max_logits // (images * classes)), self._on_cpu)
        matrices = [self._matrix(embeddings[part]) for part in parts]
        items = [(j, rows) for j in range(len(parts)) for rows in self._image_slices(images)]

        @torch.inference_mode()
        def total(item: tuple[int, slice]) -> Tensor:
            labels = self.labels[item[1], None, None]
            logits = self._logits(matrices[item[0]], item[1]).unflatten(-1, (-1, classes))
            chances = functional.log_softmax(logits, dim=-1)
            own = chances.gather(-1, labels.expand(-1, logits.shape[1], 1))
            return _sum_in_float64(own[..., 0])

        found = torch.zeros(n, dtype=torch.float64)
        for (j, _), sums in zip(items, map_chunks(total, items, self._on_cpu), strict=True):
            found[parts[j]] -= sums
        return found / len(self.images)

    def _gradient(self, embeddings: Tensor) -> tuple[float, Tensor]:
        matrix = self._matrix(embeddings[None])

        @torch.inference_mode()
        def pull_back(rows: slice) -> tuple[Tensor, Tensor]:
            chances = functional.log_softmax(self._logits(matrix, rows), dim=-1)
            labels = self.labels[rows, None]
            total = _sum_in_float64(chances.gather(-1, labels))
            residuals = chances.exp_().scatter_add_(-1, labels, -torch.ones_like(chances[:, :1]))
            return total, residuals.T @ self.images[rows]

        slices = self._image_slices(max(1, self.max_logits // len(embeddings)))
        loss, gradient = 0.0, torch.zeros_like(embeddings)
        for total, part in map_chunks(pull_back, slices, self._on_cpu):
            loss -= float(total)
            gradient += part
        return loss / len(self.images), gradient * (self._scale / len(self.images))

    @torch.inference_mode()
    def _curvature(self, embeddings: Tensor, jacobian: Tensor) -> Tensor:
        rows, classes = jacobian.shape[:2]
        stride = -(-len(self.images) * classes // MAX_CURVATURE_LOGITS)
        images = self.images[::stride]
        matrix, change = self._matrix(embeddings[None]), Linear(jacobian.flatten(0, 1))

        @torch.inference_mode()
        def products(part: slice) -> Tensor:
            chances = matrix(images[part]).softmax(-1)[:, None]
            logits = change(images[part]).view(-1, rows, classes)
            logits -= (chances * logits).sum(-1, keepdim=True)
            flat = (logits * chances.sqrt()).transpose(0, 1).flatten(1)
            return Linear(flat)(flat).double().cpu()

        largest = max(1, MAX_LOGIT_DERIVATIVES // (rows * classes))
        parts = even_slices(len(images), largest, self._on_cpu)
        total = torch.zeros(rows, rows, dtype=torch.float64)
        for product in map_chunks(products, parts, self._on_cpu):
            total += product
        return total * (self._scale**2 / len(images))

    def _matrix(self, embeddings: Tensor) -> Linear:
        return Linear(self._scale * embeddings.detach().flatten(0, 1))

    def _logits(self, matrix: Linear, rows: slice) -> Tensor:
        return matrix(self.images[rows])

    def _image_slices(self, size: int) -> list[slice]:
        return [slice(i, i + size) for i in range(0, len(self.images), size)]


def _sum_in_float64(x: Tensor) -> Tensor:
    """Sum over the images [rows, n] -> [n], on the CPU, because Apple's GPUs have no float64."""
    return (x.cpu() if x.device.type == "mps" else x).sum(0, dtype=torch.float64).cpu()
