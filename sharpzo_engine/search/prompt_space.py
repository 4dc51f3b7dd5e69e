"""`PromptSpace`: from a search point w to context vectors to class embeddings."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sharpzo_engine.clip.encoder import Encoder, Floats, Prompts
from sharpzo_engine.config import PromptConfig
from sharpzo_engine.errors import ConfigError
from sharpzo_engine.randomness import Purpose, generator

Array = NDArray[np.float64]

#: In place of the root mean square of a context that starts at 0, as residuals do. Of 1/64, 1/8 and
#: 1, this gave the best prompts.
ZERO_RMS = 1 / 64


class PromptSpace:
    """The map `ctx(w) = p0 + reshape(A w, M x W)`, shared by all classes (METHOD: section 3.1).

    A is fixed and random; p0 are the token embeddings of the context words. The origin w = 0 is
    the hand-written prompt itself.
    """

    def __init__(
        self,
        backbone: Encoder,
        class_names: Sequence[str],
        config: PromptConfig | None = None,
        seed: int = 1,
        projection: NDArray[np.floating] | None = None,
        *,
        prompts: Prompts | None = None,
    ) -> None:
        """Tokenise the prompts and draw A [M * W, d] from `seed`, unless `projection` is given.

        `prompts` take the place of the backbone's own.

        Raises:
            ConfigError: the context is not usable, or `projection` has the wrong shape.
            DatasetError: a class name is too long for the text tower.
        """
        config = config or PromptConfig()
        self.backbone = backbone
        self.class_names = tuple(class_names)
        self.prompts = prompts or backbone.prompts(config.context, class_names)
        self.initial_context = self.prompts.initial_context  # [M, W]
        size = self.initial_context.size
        if projection is None:
            std = self._projection_std(config)
            rng = generator(seed, Purpose.PROJECTION)
            projection = draw_projection(size, config.intrinsic_dim, config.projection, std, rng)
        elif projection.ndim != 2 or projection.shape[0] != size:
            raise ConfigError(f"projection: has shape {projection.shape} (use [{size}, d])")
        self.projection: Array = np.ascontiguousarray(projection, dtype=np.float64)

    def _projection_std(self, config: PromptConfig) -> float:
        if config.projection_std != "auto":
            return config.projection_std
        rms = math.sqrt(np.square(self.initial_context, dtype=np.float64).mean()) or ZERO_RMS
        return config.projection_scale * rms / math.sqrt(config.intrinsic_dim)

    @property
    def dim(self) -> int:
        """Dimension d of the search space."""
        return int(self.projection.shape[1])

    @property
    def origin(self) -> Array:
        """The point w = 0 [d], which is the hand-written prompt."""
        return np.zeros(self.dim)

    @property
    def projection_sha256(self) -> str:
        """Hash of A, which shows whether a stored w belongs to this projection."""
        return hashlib.sha256(self.projection.data).hexdigest()

    def context(self, points: Array) -> Floats:
        """Points [n, d] -> context vectors [n, M, W] in float32.

        The product is computed in float64, so that finite differences keep their precision.
        """
        found: Floats = self.initial_context + self.context_offsets(points)
        return found

    def context_offsets(self, directions: Array) -> Floats:
        """Directions [q, d] -> the changes A u of the context vectors [q, M, W] in float32."""
        offsets = (directions @ self.projection.T).astype(np.float32)
        return offsets.reshape(-1, *self.initial_context.shape)

    def class_embeddings(self, points: Array) -> Floats:
        """Points [n, d] -> L2-normalised class embeddings [n, C, E]."""
        return self.prompts.encode(self.context(points))


def draw_projection(
    rows: int, columns: int, law: str, std: float, rng: np.random.Generator
) -> Array:
    """Draw A [rows, columns] whose entries have standard deviation `std`.

    `orthogonal` takes the Q factor of a normal matrix: every column has norm std * sqrt(rows), or,
    if there are more columns than rows, every row has norm std * sqrt(columns).
    """
    normal = rng.standard_normal((rows, columns))
    if law == "gaussian":
        return std * normal
    tall = rows >= columns
    frame, triangle = np.linalg.qr(normal if tall else normal.T)
    frame *= np.sign(np.diag(triangle))  # makes the factor independent of the LAPACK library
    return std * math.sqrt(max(rows, columns)) * (frame if tall else frame.T)
