"""`CrossEntropy`: the image side of the objective in numpy, and its closed-form derivatives.

Classes come before images in every array, so that sums over few classes run along many images.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sharpzo_engine.clip.parallel import even_slices, map_chunks

Floats = NDArray[np.float32]
Array = NDArray[np.float64]

#: Logits per thread at a time; they fit into a processor's cache.
MAX_LOGITS = 2**17
#: Logits used for a curvature; more images hardly change it.
MAX_CURVATURE_LOGITS = 2**15
#: Derivatives of logits (floats) at a time: 16 MiB.
MAX_LOGIT_DERIVATIVES = 2**22


class CrossEntropy:
    """An `ImageLoss` for encoders without torch."""

    def __init__(self, images: Floats, labels: NDArray[np.int64], scale: float) -> None:
        """L2-normalised `images` [N, E], `labels` [N] and the logit scale s."""
        self._images = np.ascontiguousarray(images, np.float32)
        self._labels = labels
        self._scale = np.float32(scale)

    def losses(self, embeddings: Floats) -> Array:
        """Class embeddings [n, C, E] -> losses [n]; NaN if they are not finite."""
        n, classes, _ = embeddings.shape
        images = min(len(self._images), max(1, MAX_LOGITS // classes))
        parts = even_slices(n, max(1, MAX_LOGITS // (images * classes)))
        items = [(part, rows) for part in parts for rows in self._image_slices(images)]

        def total(item: tuple[slice, slice]) -> Array:
            part, rows = item
            own, sums = self._exponentials(embeddings[part], rows)[1:]
            summed: Array = (np.log(sums) - own).sum(1, dtype=np.float64)
            return summed

        found = np.zeros(n)
        for (part, _), summed in zip(items, map_chunks(total, items), strict=True):
            found[part] += summed
        return found / len(self._images)

    def gradient(self, embeddings: Floats) -> tuple[float, Floats]:
        """Class embeddings T [C, E] -> loss and dL/dT [C, E], see `ImageLoss`."""
        classes = len(embeddings)

        def pull_back(rows: slice) -> tuple[float, Floats]:
            chances, own, sums = self._exponentials(embeddings[None], rows)
            residuals = chances[0] / sums
            labels = self._labels[rows]
            residuals[labels, np.arange(len(labels))] -= 1
            loss = float((np.log(sums) - own).sum(dtype=np.float64))
            return loss, residuals @ self._images[rows]

        slices = self._image_slices(max(1, MAX_LOGITS // classes))
        loss, gradient = 0.0, np.zeros_like(embeddings)
        for total, part in map_chunks(pull_back, slices):
            loss += total
            gradient += part
        return loss / len(self._images), gradient * (self._scale / np.float32(len(self._images)))

    def curvature(self, embeddings: Floats, jacobian: Floats) -> Array:
        """J (d^2 L/dT^2) J^T [k, k], see `ImageLoss`."""
        rows, classes = jacobian.shape[:2]
        stride = -(-len(self._images) * classes // MAX_CURVATURE_LOGITS)
        images = self._images[::stride]

        def products(part: slice) -> Array:
            chances = _softmax(self._scale * (embeddings @ images[part].T))  # [C, n]
            logits = jacobian @ images[part].T  # [k, C, n]
            logits -= (chances * logits).sum(1, keepdims=True)
            flat = (logits * np.sqrt(chances)).reshape(rows, -1)
            product: Array = (flat @ flat.T).astype(np.float64)
            return product

        parts = even_slices(len(images), max(1, MAX_LOGIT_DERIVATIVES // (rows * classes)))
        total = sum(map_chunks(products, parts), np.zeros((rows, rows)))
        return total * (float(self._scale) ** 2 / len(images))

    def accuracy(self, embeddings: Floats) -> float:
        """Fraction of images whose nearest class embedding [C, E] is their own."""
        slices = self._image_slices(max(1, MAX_LOGITS // len(embeddings)))
        best = [(embeddings @ self._images[rows].T).argmax(0) for rows in slices]
        return int((np.concatenate(best) == self._labels).sum()) / len(self._labels)

    @np.errstate(all="ignore")  # embeddings that are not finite have the loss NaN
    def _exponentials(self, embeddings: Floats, rows: slice) -> tuple[Floats, Floats, Floats]:
        """For T [n, C, E]: exp(z - max z) [n, C, N'], own logits and sums [n, N']."""
        n, classes, width = embeddings.shape
        matrix: Floats = self._scale * embeddings.reshape(n * classes, width)
        logits = (matrix @ self._images[rows].T).reshape(n, classes, -1)
        logits -= logits.max(1, keepdims=True)
        labels = self._labels[rows]
        own: Floats = logits[:, labels, np.arange(len(labels))]
        chances: Floats = np.exp(logits)
        sums: Floats = chances.sum(1)
        return chances, own, sums

    def _image_slices(self, size: int) -> list[slice]:
        return [slice(i, i + size) for i in range(0, len(self._images), size)]


def _softmax(logits: Floats) -> Floats:
    """Over the first axis."""
    chances = np.exp(logits - logits.max(0))
    result: Floats = chances / chances.sum(0)
    return result
