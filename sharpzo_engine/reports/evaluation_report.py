"""`EvaluationReport`: results of a prompt on one split, as JSON and as one self-contained page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sharpzo_engine.errors import ImageError
from sharpzo_engine.prompts.artifact import TunedPrompt
from sharpzo_engine.prompts.evaluation import Assessment, Calibration
from sharpzo_engine.prompts.interval import interval_figures

FORMAT = "sharpzo-evaluation/1"
LISTED_ERRORS = 100  # unreadable images listed in the report, at most


@dataclass(frozen=True)
class EvaluationReport:
    """A prompt, and optionally the hand-written prompt, on the same images.

    The page is rendered from `to_json()` only, so both always contain the same numbers.
    """

    assessment: Assessment
    zero_shot: Assessment | None
    split: str
    prompt: TunedPrompt
    errors: Sequence[tuple[str, ImageError]] = ()  #: unreadable images by file name
    labels: Mapping[str, str | None] = field(default_factory=dict)  #: facts from the caller

    def figures(self) -> dict[str, float | int | None]:
        """The summary figures."""
        zero_shot = self.zero_shot
        plain = None if zero_shot is None else zero_shot.accuracy
        return {
            **self.assessment.figures(),
            "zero_shot_accuracy": plain,
            **interval_figures("zero_shot_accuracy", plain, self.assessment.images),
            "zero_shot_ece": None if zero_shot is None else zero_shot.calibration.ece,
            "errors": len(self.errors),
        }

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        zero_shot = self.zero_shot
        return {
            "format": FORMAT,
            "split": self.split,
            "classifier": self.classifier,
            "images": self.assessment.images,
            "figures": self.assessment.figures(),
            "zero_shot": None if zero_shot is None else zero_shot.figures(),
            "classes": list(self._classes()),
            "confusion": [list(cell) for cell in self.assessment.cells],
            "calibration": {name: asdict(item) for name, item in self._calibrations()},
            "errors": {
                "count": len(self.errors),
                "examples": [
                    {"file": file, "code": error.code, "message": str(error)}
                    for file, error in self.errors[:LISTED_ERRORS]
                ],
            },
            "backbone": dict(self.prompt.metadata["backbone"]),
            "labels": dict(self.labels),
        }

    def to_json_bytes(self) -> bytes:
        """`to_json()` as a file's content."""
        return json.dumps(self.to_json(), allow_nan=False, separators=(",", ":")).encode()

    def to_html(self) -> str:
        """The page, without external references."""
        from sharpzo_engine.reports.evaluation_page import render  # only this needs matplotlib

        return render(self.to_json())

    @property
    def classifier(self) -> str:
        """Name of the evaluated classifier."""
        head = self.prompt.metadata.get("head")
        kind = head.get("kind", "none") if isinstance(head, Mapping) else "none"
        return "tuned prompt" if kind == "none" else f"tuned prompt with head {kind}"

    def _calibrations(self) -> Iterator[tuple[str, Calibration]]:
        yield "tuned", self.assessment.calibration
        if self.assessment.calibrated is not None:
            yield "calibrated", self.assessment.calibrated
        if self.zero_shot is not None:
            yield "zero_shot", self.zero_shot.calibration

    def _classes(self) -> Iterator[dict[str, Any]]:
        for place, figures in enumerate(self.assessment.classes):
            zero_shot = None if self.zero_shot is None else self.zero_shot.classes[place].accuracy
            yield {**asdict(figures), "zero_shot_accuracy": zero_shot}
