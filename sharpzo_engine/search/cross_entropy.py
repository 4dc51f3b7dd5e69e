"""`CrossEntropy`: the image side of the objective, and its closed-form derivative."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from sharpzo_engine.clip.linear import Linear
from sharpzo_engine.clip.parallel import even_slices, map_chunks

#: Logits (floats) per thread at a time. On a CPU they fit into the cache.
MAX_LOGITS = {"cpu": 2**18, "cuda": 2**26}


#: Logits used for a curvature; more images hardly change it.
MAX_CURVATURE_LOGITS = 2**15
#: Derivatives of logits (floats) at a time: 16 MiB.
MAX_LOGIT_DERIVATIVES = 2**22


class CrossEntropy:
    """Mean cross-entropy of N fixed images under class embeddings T.

    L(T) = -(1/N) sum_n log softmax(s F T^T)[n, y_n], with s the logit scale.
    """

    def __init__(self, images: Tensor, labels: Tensor, scale: float) -> None:
        """L2-normalised `images` [N, E] and `labels` [N] on one device."""
        self.images = images
        self.labels = labels
        self._scale = scale
        self.max_logits = MAX_LOGITS.get(images.device.type, MAX_LOGITS["cpu"])

    def losses(self, embeddings: Tensor) -> Tensor:
        """Class embeddings [n, C, E] -> losses [n] in float64; NaN if they are not finite."""
        n, classes, _ = embeddings.shape
        images = min(len(self.images), max(1, self.max_logits // classes))
        parts = even_slices(n, max(1, self.max_logits // (images * classes)), self.images.device)
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
        for (j, _), sums in zip(items, map_chunks(total, items, self.images.device), strict=True):
            found[parts[j]] -= sums
        return found / len(self.images)

    def gradient(self, embeddings: Tensor) -> tuple[float, Tensor]:
        """Class embeddings T [C, E] -> loss and dL/dT [C, E].

        dL/dT = (s / N) sum_n (softmax(s f_n T^T) - onehot(y_n)) f_n^T.
        """
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
        for total, part in map_chunks(pull_back, slices, self.images.device):
            loss -= float(total)
            gradient += part
        return loss / len(self.images), gradient * (self._scale / len(self.images))

    @torch.inference_mode()
    def curvature(self, embeddings: Tensor, jacobian: Tensor) -> Tensor:
        """J (d^2 L/dT^2) J^T [k, k] in float64, for T [C, E] and the rows of J [k, C, E].

        With Z_j = s F J_j^T, the change of the logits along row j, and the probabilities p:
        H_jl = (1/N) sum_n cov_{p_n}(Z_j[n], Z_l[n]). Of many images a sample is used.
        """
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
        parts = even_slices(len(images), largest, images.device)
        total = torch.zeros(rows, rows, dtype=torch.float64)
        for product in map_chunks(products, parts, images.device):
            total += product
        return total * (self._scale**2 / len(images))

    @torch.inference_mode()
    def accuracy(self, embeddings: Tensor) -> float:
        """Fraction of images whose nearest class embedding [C, E] is their own."""
        slices = self._image_slices(max(1, self.max_logits // len(embeddings)))
        matrix = self._matrix(embeddings[None])
        best = torch.cat([self._logits(matrix, rows).argmax(-1) for rows in slices])
        return int((best == self.labels).sum()) / len(self.labels)

    def _matrix(self, embeddings: Tensor) -> Linear:
        return Linear(self._scale * embeddings.detach().flatten(0, 1))

    def _logits(self, matrix: Linear, rows: slice) -> Tensor:
        return matrix(self.images[rows])

    def _image_slices(self, size: int) -> list[slice]:
        return [slice(i, i + size) for i in range(0, len(self.images), size)]


def _sum_in_float64(x: Tensor) -> Tensor:
    """Sum over the images [rows, n] -> [n], on the CPU, because Apple's GPUs have no float64."""
    return (x.cpu() if x.device.type == "mps" else x).sum(0, dtype=torch.float64).cpu()
