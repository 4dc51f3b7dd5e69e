"""The common interface of the stages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from sharpzo_engine.search.gradients import BlackBox

Array = NDArray[np.float64]
StageName = Literal["stage1", "stage2"]


@dataclass(frozen=True)
class StepOutcome:
    """The result of one step."""

    loss: float  #: stage 1: the generation's lowest; stage 2: the mean of the step's evaluations
    sigma: float | None = None  #: step size of the search distribution
    sharpness: float | None = None  #: rho * ||g||, the first-order rise within the radius


@dataclass(frozen=True)
class StageState:
    """The complete state of a stage: arrays, and scalars that JSON represents exactly."""

    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    scalars: dict[str, Any] = field(default_factory=dict)


class Stage(Protocol):
    """An optimiser that is driven step by step."""

    name: StageName

    @property
    def point(self) -> Array:
        """The current solution [d]."""
        ...

    @property
    def candidates(self) -> list[Array]:
        """Points worth validating now."""
        ...

    @property
    def steps(self) -> int:
        """Steps done."""
        ...

    @property
    def exhausted(self) -> bool:
        """Whether further steps are pointless."""
        ...

    @property
    def passes_per_step(self) -> int:
        """Evaluations that the next step will take."""
        ...

    def step(self, objective: BlackBox) -> StepOutcome:
        """Do one step."""
        ...

    def state(self) -> StageState:
        """Everything needed to continue."""
        ...

    def restore(self, state: StageState) -> None:
        """Set a fresh stage to a saved state."""
        ...


class Descent:
    """Base of the stages that move a single point."""

    name: StageName = "stage2"

    def __init__(self, start: Array, horizon: int) -> None:
        """Start at `start` [d] and end after `horizon` steps."""
        self._point = start.copy()
        self._horizon = max(1, horizon)
        self._steps = 0

    @property
    def horizon(self) -> int:
        """Steps after which it ends."""
        return self._horizon

    @property
    def point(self) -> Array:
        """The current w [d]."""
        return self._point.copy()

    @property
    def candidates(self) -> list[Array]:
        """Points worth validating: w."""
        return [self.point]

    @property
    def steps(self) -> int:
        """Steps done."""
        return self._steps

    @property
    def is_done(self) -> bool:
        """Whether the horizon is reached."""
        return self._steps >= self._horizon

    @property
    def exhausted(self) -> bool:
        """Whether further steps are pointless."""
        return self.is_done

    def extend(self, horizon: int) -> None:
        """End after `horizon` steps in all; the schedule is stretched."""
        self._horizon = max(1, horizon)
