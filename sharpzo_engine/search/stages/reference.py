"""The two stages with the numerical errors of the released code, for comparison only.

The code published with SharpZO (yifanycc/sharpzo) differs from the paper in ways that change
results. These classes reproduce the differences exactly; docs/method.md lists each of them together
with our version. Its crashes, and its use of test images during training, are not reproduced.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sharpzo_engine.config import CmaConfig, ZoConfig
from sharpzo_engine.search.gradients import BlackBox, CentralDifferences, draw_directions
from sharpzo_engine.search.stages.sharp_cma import SharpCma
from sharpzo_engine.search.stages.sparse_zo import SparseZo
from sharpzo_engine.search.stages.stage import StageState, StepOutcome

Array = NDArray[np.float64]


class ReferenceCma(SharpCma):
    """Stage 1 as released: every update is followed by a second, unscored population.

    The mean of that population replaces theta everywhere: as the point of the next sharpness
    gradient, as the point that is evaluated, and as the start of stage 2. Before the first update
    it is the mean of S uniform vectors. CMA-ES's stopping rules are not used.
    """

    def __init__(self, config: CmaConfig, start: Array, rng: np.random.Generator) -> None:
        """Start at `start` [d]; `rng` is used by this run alone."""
        self._stand_in: Array = rng.uniform(size=(config.population_size, start.size)).mean(0)
        self.gradient = np.zeros_like(start)  #: the last sharpness gradient [d]
        super().__init__(config, start, rng)

    @property
    def point(self) -> Array:
        """The mean of the unscored population [d]."""
        return self._stand_in

    @property
    def candidates(self) -> list[Array]:
        """The point that the released code evaluates."""
        return [self.point]

    @property
    def exhausted(self) -> bool:
        """Never."""
        return False

    @property
    def _radius(self) -> float:
        """The norm is taken over S identical rows: rho / sqrt(S)."""
        return self._config.rho / math.sqrt(self._config.population_size)

    def _perturb(self, gradient: Array) -> None:
        super()._perturb(gradient)
        self.gradient = gradient

    def _tell(self, candidates: list[Array], losses: Array) -> None:
        super()._tell(candidates, losses)
        self._stand_in = np.mean(self._strategy.ask(), axis=0)

    def state(self) -> StageState:
        """Everything needed to continue."""
        state = super().state()
        return StageState({**state.arrays, "gradient": self.gradient}, state.scalars)

    def restore(self, state: StageState) -> None:
        """Replay a saved run."""
        super().restore(state)
        self.gradient = state.arrays["gradient"]


class ReferenceZo(SparseZo):
    """Stage 2 as released (its dense trainer): estimates accumulate in a sum that is never reset.

    The sum v [S, d] starts as S copies of stage 1's last sharpness gradient, and broadcasting turns
    w into S rows at the first update; after that directions also have S rows, and the loss uses the
    mean of the rows:

        u_j ~ N(0, I)   [d] in the first step, [S, d] afterwards
        v  <- v + (1/q) sum_j [L(mean(w + mu u_j)) - L(mean(w - mu u_j))] / (2 mu) u_j
        w  <- w - eta v
    """

    def __init__(
        self,
        config: ZoConfig,
        start: Array,
        rng: np.random.Generator,
        horizon: int,
        *,
        gradient: Array,
        rows: int,
    ) -> None:
        """Start at `start` [d]; the sum consists of `rows` (S) copies of `gradient` [d]."""
        super().__init__(config, start, rng, horizon)
        self._rows: Array = start[None]
        self._sum: Array = np.tile(gradient, (rows, 1))

    def step(self, objective: BlackBox) -> StepOutcome:
        """One step: 2q evaluations."""
        config = self._config
        directions = np.stack([self._draw() for _ in range(config.queries)])  # [q, 1 or S, d]
        differences = CentralDifferences(config.rge_step)
        loss, slopes = differences(objective, self._point, directions.mean(1))
        self._sum = self._sum + np.tensordot(slopes, directions, axes=1) / config.queries
        self._rows = self._rows - self.learning_rate * self._sum
        self._point = self._rows.mean(0)
        self._steps += 1
        return StepOutcome(loss=loss)

    def _draw(self) -> Array:
        """Draw one direction with the current shape of w."""
        rows, dim = self._rows.shape
        return draw_directions(rows, dim, self._rng)

    def state(self) -> StageState:
        """Everything needed to continue."""
        state = super().state()
        return StageState({**state.arrays, "rows": self._rows, "sum": self._sum}, state.scalars)

    def restore(self, state: StageState) -> None:
        """Set a fresh run to a saved state."""
        super().restore(state)
        self._rows, self._sum = state.arrays["rows"], state.arrays["sum"]
