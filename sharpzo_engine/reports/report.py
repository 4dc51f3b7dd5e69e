"""`RunReport`: the result of one run as data, as JSON and as one self-contained HTML page."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sharpzo_engine.files import write_atomically
from sharpzo_engine.prompts.interval import interval_figures, wilson_interval
from sharpzo_engine.search.landscape import Landscape, NoLandscape

if TYPE_CHECKING:
    from sharpzo_engine.prompts.evaluation import Evaluation
    from sharpzo_engine.search.history import StepRecord

FORMAT = "sharpzo-report/1"
MAX_STEPS = 20_000  # rows of the history; a longer history is subsampled
DIGITS = 7  # significant digits of curves: more than a plot or a float32 loss has
_PROVENANCE = (
    "backbone",
    "validation_source",
    "projection_sha256",
    "engine_version",
    "created_at",
)
_CURVES = ("loss", "val_loss", "val_accuracy", "sigma", "sharpness", "seconds")


@dataclass(frozen=True)
class RunReport:
    """One run from the hand-written prompt to the tuned one.

    `before` and `after` score the two on the same split. `after` includes the served head if there
    are test images; the head may have been fitted to all other images. The page is rendered from
    `to_json()` only, so both always contain the same numbers.
    """

    class_names: tuple[str, ...]
    metadata: Mapping[str, Any]  #: of the prompt file: dataset, metrics, config, backbone, ...
    history: tuple[StepRecord, ...]
    before: Evaluation
    after: Evaluation
    landscape: Landscape | NoLandscape
    #: More rows of the comparison: name of a classifier -> its accuracy on the same images.
    comparison: Mapping[str, float | None] = field(default_factory=dict)
    labels: Mapping[str, str | None] = field(default_factory=dict)  #: see `labelled`
    stage_labels: Mapping[str, str] = field(default_factory=dict)  #: stage -> its optimiser

    @property
    def split(self) -> str:
        """Images of `before` and `after`: "test"; if there are none, "validation" or "training"."""
        if self._metrics.get("test_images"):
            return "test"
        return "training" if self.metadata["validation_source"] == "training" else "validation"

    @property
    def landscape_passes(self) -> int:
        """Forward passes of the loss landscape, which are not counted for the search."""
        return self.landscape.forward_passes

    def labelled(self, **labels: str | None) -> RunReport:
        """Add facts that only the caller knows: job, preset, dataset hash."""
        return replace(self, labels={**self.labels, **labels})

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; numbers that are not finite are None."""
        return {
            "format": FORMAT,
            "dataset": {**self.metadata["dataset"], "classes": len(self.class_names)},
            "headline": self._headline(),
            "comparison": self._comparison(),
            "intervals": self._intervals(),
            "choice": dict(self.metadata["choice"]),
            "metrics": self._metrics,
            "history": _history(self.history, self.stage_labels),
            "classes": self._classes(),
            "confusion": list(_cells(self.after.confusion)),
            "landscape": self._landscape(),
            "config": dict(self.metadata["config"]),
            "provenance": {name: self.metadata.get(name) for name in _PROVENANCE},
            "labels": dict(self.labels),
        }

    def to_html(self) -> str:
        """The page, without external references."""
        from sharpzo_engine.reports.report_page import render  # only this needs matplotlib

        return render(self.to_json())

    def save(self, path: str | Path) -> tuple[Path, Path]:
        """Write the page to `path` and the JSON next to it; returns both paths."""
        page = Path(path)
        data = page.with_suffix(".json")
        write_atomically(page, self.to_html().encode())
        write_atomically(data, self.to_json_bytes())
        return page, data

    def to_json_bytes(self) -> bytes:
        """`to_json()` as a file's content."""
        return json.dumps(self.to_json(), allow_nan=False, separators=(",", ":")).encode()

    @property
    def _metrics(self) -> dict[str, Any]:
        return {name: _finite(value) for name, value in self.metadata["metrics"].items()}

    def _headline(self) -> dict[str, Any]:
        metrics, images = self._metrics, self.after.images
        before, after = self.before.accuracy, self.after.accuracy
        tested = self.split == "test"
        return {
            "zero_shot_accuracy": before,
            **interval_figures("zero_shot_accuracy", before if tested else None, images),
            "tuned_accuracy": after,
            **interval_figures("tuned_accuracy", after if tested else None, images),
            "classifier": self._classifier(),
            "split": self.split,
            "images": images,
            **{name: metrics.get(name) for name in ("forward_passes", "seconds", "steps")},
            "stopped_by": self.metadata["stopped_by"],
            "landscape_passes": self.landscape_passes,
        }

    def _classifier(self) -> str:
        """The classifier of `after`: the served one, or the prompt if there are no test images."""
        if self.split != "test":
            return "tuned prompt"
        name: str = self.metadata["head"]["name"]
        return name

    def _comparison(self) -> dict[str, float | None]:
        own = {"zero-shot": self.before.accuracy, "tuned prompt": self.after.accuracy}
        rows = own if "tuned prompt" not in self.comparison else {}
        return {name: _finite(value) for name, value in {**rows, **self.comparison}.items()}

    def _intervals(self) -> dict[str, list[float]]:
        """The comparison's intervals; only on test images, as the others chose the prompt."""
        if self.split != "test":
            return {}
        images = self.after.images
        return {
            name: list(wilson_interval(value, images))
            for name, value in self._comparison().items()
            if value is not None
        }

    def _classes(self) -> list[dict[str, Any]]:
        return [
            {
                "name": name,
                "images": sum(self.after.confusion[index]),
                "zero_shot": self.before.per_class[name],
                "tuned": self.after.per_class[name],
            }
            for index, name in enumerate(self.class_names)
        ]

    def _landscape(self) -> dict[str, Any]:
        if isinstance(self.landscape, NoLandscape):
            return {"skipped": self.landscape.reason}
        return {
            "x": self.landscape.x.tolist(),
            "y": self.landscape.y.tolist(),
            "loss": [[_short(value) for value in row] for row in self.landscape.loss.tolist()],
        }


def _history(history: Sequence[StepRecord], labels: Mapping[str, str]) -> dict[str, Any]:
    """The columns (every n-th row of a very long run), and the stages as ranges of steps."""
    every = -(-len(history) // MAX_STEPS) or 1
    rows = [record for record in history if record.step % every == 0 or record is history[-1]]
    return {
        "stages": list(_stages(history, labels)),
        "step": [record.step for record in rows],
        "forward_passes": [record.forward_passes for record in rows],
        **{name: [_short(getattr(record, name)) for record in rows] for name in _CURVES},
    }


def _stages(history: Sequence[StepRecord], labels: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    for phase, group in groupby(history, lambda record: record.phase):
        first, *rest = group
        last = rest[-1] if rest else first
        yield {
            "name": phase,
            "label": labels.get(phase),
            "first_step": first.step,
            "last_step": last.step,
            "last_pass": last.forward_passes,
        }


def _cells(confusion: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """The non-zero cells as `[true, predicted, images]`: most of a large matrix is zero."""
    for true, row in enumerate(confusion):
        for predicted, images in enumerate(row):
            if images:
                yield [true, predicted, images]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _short(value: float | None) -> float | None:
    value = _finite(value)
    return None if value is None else float(f"{value:.{DIGITS}g}")
