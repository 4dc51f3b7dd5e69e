"""Progress reports of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sharpzo_engine.search.history import StepRecord

Phase = Literal["preparing", "stage1", "stage2", "evaluating"]


@dataclass(frozen=True)
class Progress:
    """The progress of a run; passed to `on_step` after every step and during preparation."""

    phase: Phase
    step: int
    total_steps: int
    forward_passes: int
    eta_seconds: float | None = None  #: None if it cannot be estimated
    record: StepRecord | None = None  #: the last step
    message: str | None = None  #: current activity outside the search
    stage_label: str | None = None  #: `methods.stage_label` of stages 1 and 2

    @property
    def phase_label(self) -> str:
        """The phase in words for people: "Preparing", "Gauss-Newton"."""
        return self.stage_label or self.phase.capitalize()


#: May raise `FinishSearch` to end the search well, or `TuningInterrupted` to stop the run.
OnStep = Callable[[Progress], None]
