"""The history of a run: one record per step, and its form in a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class StepRecord:
    """One row of the history."""

    step: int  #: counted over both stages, from 1
    phase: str  #: "stage1" or "stage2"
    loss: float  #: stage 1: the generation's lowest; stage 2: the mean of the step's evaluations
    val_loss: float | None  #: None if the step was not validated
    val_accuracy: float | None  #: a fraction
    sigma: float | None  #: stage 1: step size of the search distribution
    sharpness: float | None  #: stage 1: rho * ||g||
    forward_passes: int  #: evaluations so far, including those on validation images
    seconds: float  #: time of tuning so far, over all attempts


_COLUMNS = ("loss", "val_loss", "val_accuracy", "sigma", "sharpness", "forward_passes", "seconds")


def history_arrays(history: Sequence[StepRecord]) -> dict[str, NDArray[np.float64]]:
    """Columns [steps], each with a mask of the steps that have a value (NaN is not stored)."""
    arrays = {"history.stage2": np.array([r.phase == "stage2" for r in history], dtype=np.float64)}
    for name in _COLUMNS:
        values = [getattr(record, name) for record in history]
        known = [value is not None and np.isfinite(value) for value in values]
        arrays[f"history.{name}"] = np.array(
            [v if k else 0.0 for v, k in zip(values, known, strict=True)], dtype=np.float64
        )
        arrays[f"history.{name}.known"] = np.array(known, dtype=np.float64)
    return arrays


def history_records(arrays: Mapping[str, NDArray[np.float64]]) -> list[StepRecord]:
    """Rows from the columns of `history_arrays`."""

    def value(name: str, row: int) -> float | None:
        known = arrays[f"history.{name}.known"][row]
        return float(arrays[f"history.{name}"][row]) if known else None

    return [
        StepRecord(
            step=row + 1,
            phase="stage2" if stage_2 else "stage1",
            loss=_or_nan(value("loss", row)),
            val_loss=value("val_loss", row),
            val_accuracy=value("val_accuracy", row),
            sigma=value("sigma", row),
            sharpness=value("sharpness", row),
            forward_passes=int(value("forward_passes", row) or 0),
            seconds=value("seconds", row) or 0.0,
        )
        for row, stage_2 in enumerate(arrays["history.stage2"])
    ]


def _or_nan(loss: float | None) -> float:
    return math.nan if loss is None else loss
