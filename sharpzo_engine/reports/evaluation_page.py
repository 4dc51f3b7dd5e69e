"""Renders the page of an evaluation from its JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from sharpzo_engine.reports.report_page import (
    EXTREMES,
    INTERVAL,
    MAX_ROWS,
    class_lists,
    confused_pairs,
    confusion_matrix,
    figure_text,
    fill_template,
    interval_text,
    percent,
)
from sharpzo_engine.reports.report_plots import draw_reliability

Data = Mapping[str, Any]

CAPTIONS = {
    "tuned": "Uncalibrated",
    "calibrated": "Calibrated with its temperature",
    "zero_shot": "Zero-shot",
}
#: Rows of the table of figures: name, key, and what writes the value.
FIGURES: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("accuracy", "accuracy", percent),
    ("… 95% interval", "interval", interval_text),
    ("mean accuracy per class", "macro_accuracy", percent),
    ("top-5 accuracy", "top5_accuracy", percent),
    ("expected calibration error", "ece", percent),
    ("… at the prompt's temperature", "calibrated_ece", percent),
    ("negative log-likelihood", "nll", figure_text),
    ("… at the prompt's temperature", "calibrated_nll", figure_text),
)


def render(data: Data) -> str:
    """Render the page of an evaluation's JSON; equal JSON gives equal bytes."""
    figures = draw_reliability(data["calibration"])
    rows = [
        {**row, "tuned": row["accuracy"], "zero_shot": row["zero_shot_accuracy"]}
        for row in data["classes"]
    ]
    return fill_template(
        "evaluation.html.j2",
        **data,
        title=data["labels"].get("prompt") or data["classifier"],
        rows=list(_figures(data)),
        words={"interval": INTERVAL},
        diagrams=[
            (CAPTIONS[name], data["calibration"][name], Markup(svg))  # noqa: S704 - ours
            for name, svg in figures.items()
        ],
        class_lists=list(_class_lists(rows, compared=data["zero_shot"] is not None)),
        matrix=confusion_matrix(data["classes"], data["confusion"]),
        pairs=confused_pairs(data["classes"], data["confusion"]),
        facts=[fact for fact in _facts(data) if fact[1] is not None],
    )


def _figures(data: Data) -> Iterator[dict[str, str]]:
    before, after = (_with_interval(data[name]) for name in ("zero_shot", "figures"))
    for name, key, show in FIGURES:
        if after[key] is not None:
            known = before.get(key) is not None
            prior = show(before[key]) if known else ""
            yield {"name": name, "after": show(after[key]), "before": prior}


def _with_interval(figures: Data | None) -> Data:
    if figures is None:
        return {}
    return {**figures, "interval": (figures["accuracy_low"], figures["accuracy_high"])}


def _class_lists(rows: Sequence[Data], *, compared: bool) -> Iterator[dict[str, Any]]:
    """All classes, or the best and worst of many; by gain if there is a comparison."""
    if compared:
        yield from class_lists(rows)
        return
    known = sorted((row for row in rows if row["tuned"] is not None), key=lambda row: row["tuned"])
    plain = [{**row, "gain": None} for row in known]
    if len(rows) <= MAX_ROWS:
        absent = [{**row, "gain": None} for row in rows if row["tuned"] is None]
        yield {"title": None, "rows": plain[::-1] + absent}
        return
    yield {"title": "Most accurate", "rows": plain[::-1][:EXTREMES]}
    yield {"title": "Least accurate", "rows": plain[:EXTREMES]}


def _facts(data: Data) -> Iterator[tuple[str, Any]]:
    backbone = data["backbone"]
    parts = (backbone.get("name"), backbone.get("pretrained"))
    yield "backbone", ", ".join(part for part in parts if part) or None
    yield "backbone fingerprint", backbone.get("fingerprint")
    for name, value in data["labels"].items():
        yield name.replace("_", " "), value
