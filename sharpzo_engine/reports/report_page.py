"""Renders the report's page from its JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sharpzo_engine.config import TuningConfig
from sharpzo_engine.reports.report_plots import draw_figures

Data = Mapping[str, Any]

MAX_ROWS = 40  # with more classes only the best and worst are listed
MAX_MATRIX = 20  # with more classes only the most confused pairs are listed
EXTREMES = 12  # classes in a list of the best or worst
MAX_PAIRS = 15
DASH = "–"  # noqa: RUF001 - a dash

STOPPED_BY = {
    "completed": "search completed",
    "max_forward_passes": "budget of forward passes used up",
    "max_seconds": "time budget used up",
    "enough": "more passes would hardly change the result",
    "finished": "finished early, as asked",
}
SPLITS = {
    "test": "test images",
    "validation": "validation images (the dataset has no test split)",
    "training": "the training images (the dataset has no test or validation split)",
}
#: What the intervals on a page are, and what they are not.
INTERVAL = (
    "The 95% intervals (Wilson's score) cover which images happened to be drawn for the test, not "
    "another seed or other shots; they do not test whether two classifiers differ."
)
NO_INTERVAL = (
    "The prompt was chosen by these images and is likely to do worse on new ones, so no intervals "
    "are given."
)
VALIDATION = {
    "official": "the dataset's own validation split",
    "holdout": "held out of the shots",
    "training": "the training images (too few shots to hold any out)",
}


def render(data: Data) -> str:
    """Render the page of a report's JSON; equal JSON gives equal bytes."""
    return fill_template(
        "report.html.j2",
        **data,
        figures={name: Markup(svg) for name, svg in draw_figures(data).items()},  # noqa: S704 - ours
        gains=_gains(data["comparison"], data["intervals"]),
        class_lists=list(class_lists(data["classes"])),
        matrix=confusion_matrix(data["classes"], data["confusion"]),
        pairs=confused_pairs(data["classes"], data["confusion"]),
        settings=list(_settings(data["config"])),
        facts=[fact for fact in _facts(data) if fact[1] is not None],
        words={
            "stopped_by": STOPPED_BY,
            "split": SPLITS,
            "interval": INTERVAL,
            "no_interval": NO_INTERVAL,
        },
    )


def fill_template(name: str, **values: object) -> str:
    """Render one of this package's templates."""
    environment = Environment(
        loader=PackageLoader("sharpzo_engine.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "points": points,
        "figure": figure_text,
        "interval": interval_text,
    }
    page = environment.get_template(name).render(**values)
    # Folder names may contain lone surrogates, but the file must be valid UTF-8.
    return page.encode("utf-8", "replace").decode("utf-8")


# Numbers as text


def percent(fraction: float | None) -> str:
    """`0.8542` as `85.4%`."""
    return DASH if fraction is None else f"{fraction:.1%}"


def points(difference: float | None) -> str:
    """A difference of two fractions, in percentage points with a sign."""
    if difference is None:
        return DASH
    return f"{100 * difference:+.1f}".replace("-", "−")  # noqa: RUF001 - a minus


def interval_text(bounds: Sequence[float | None]) -> str:
    """`(0.7961, 1.0)` as a range, 79.6 to 100.0%; a dash if there is no interval."""
    low, high = bounds
    return DASH if low is None or high is None else f"{100 * low:.1f}{DASH}{high:.1%}"


def figure_text(value: float | None) -> str:
    """A count with thousands separators, or a number with three digits."""
    if value is None:
        return DASH
    return f"{value:,}" if isinstance(value, int) or value >= 1000 else f"{value:.3g}"


# Parts of the page


def _gains(comparison: Mapping[str, float | None], intervals: Data) -> list[dict[str, Any]]:
    """Rows of the comparison, with their gains over the first row, and intervals if any."""
    base = next(iter(comparison.values()), None)
    return [
        {
            "name": name,
            "accuracy": value,
            "interval": intervals.get(name),
            "gain": _minus(value, base) if index else None,
        }
        for index, (name, value) in enumerate(comparison.items())
    ]


def class_lists(classes: Sequence[Data]) -> Iterator[dict[str, Any]]:
    """All classes by gain; if there are many, the most improved, most worsened and hardest."""
    rows = [{**row, "gain": _minus(row["tuned"], row["zero_shot"])} for row in classes]
    scored = [row for row in rows if row["gain"] is not None]
    by_gain = sorted(scored, key=lambda row: -row["gain"])
    if len(classes) <= MAX_ROWS:
        yield {"title": None, "rows": by_gain + [row for row in rows if row["gain"] is None]}
        return
    hardest = sorted(scored, key=lambda row: row["tuned"])
    improved = [row for row in by_gain if row["gain"] > 0]
    worsened = [row for row in reversed(by_gain) if row["gain"] < 0]
    for title, chosen in (
        (f"Most improved, of {len(improved):,}", improved),
        (f"Most worsened, of {len(worsened):,}", worsened),
        ("Least accurate after tuning", hardest),
    ):
        if chosen:
            yield {"title": title, "rows": chosen[:EXTREMES]}


def confusion_matrix(
    classes: Sequence[Data], cells: Sequence[Sequence[int]]
) -> list[dict[str, Any]] | None:
    """Rows of a small confusion matrix; None if it is too large."""
    if len(classes) > MAX_MATRIX:
        return None
    rows: list[list[dict[str, Any] | None]] = [[None] * len(classes) for _ in classes]
    for true, predicted, images in cells:
        rows[true][predicted] = {
            "images": images,
            "share": images / classes[true]["images"],  # of the true class's images
            "kind": "right" if true == predicted else "wrong",
        }
    return [{"name": row["name"], "cells": cells} for row, cells in zip(classes, rows, strict=True)]


def confused_pairs(classes: Sequence[Data], cells: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    """The most frequent mistakes."""
    mistakes = sorted((c for c in cells if c[0] != c[1]), key=lambda cell: -cell[2])
    return [
        {
            "true": classes[true]["name"],
            "predicted": classes[predicted]["name"],
            "images": images,
            "share": images / classes[true]["images"],
        }
        for true, predicted, images in mistakes[:MAX_PAIRS]
    ]


def _settings(config: Data) -> Iterator[dict[str, Any]]:
    """`section.key`, value, and whether it differs from the default."""
    defaults = dict(_flat(TuningConfig().model_dump(mode="json")))
    for name, value in _flat(config):
        changed = name in defaults and defaults[name] != value
        yield {"name": name, "value": DASH if value is None else str(value), "changed": changed}


def _flat(config: Data, prefix: str = "") -> Iterator[tuple[str, Any]]:
    sections: list[tuple[str, Any]] = []
    for key, value in config.items():
        if isinstance(value, Mapping):
            sections.append((f"{prefix}{key}.", value))
        else:
            yield f"{prefix}{key}", value
    for name, section in sections:
        yield from _flat(section, name)


def _facts(data: Data) -> Iterator[tuple[str, Any]]:
    """The origin of the result; unknown facts are None."""
    known = data["provenance"]
    backbone: Mapping[str, Any] = known.get("backbone") or {}
    yield "backbone", _joined(backbone.get("name"), backbone.get("pretrained"))
    yield "backbone fingerprint", backbone.get("fingerprint")
    source = known.get("validation_source")
    yield "validation images", VALIDATION.get(str(source), source)
    yield "seed", data["config"].get("seed")
    yield "projection SHA-256", known.get("projection_sha256")
    yield "engine version", known.get("engine_version")
    yield "created", known.get("created_at")
    for name, value in data["labels"].items():
        yield name.replace("_", " "), value
    yield "forward passes of the loss landscape", data["headline"]["landscape_passes"]


def _joined(*parts: str | None) -> str | None:
    return ", ".join(part for part in parts if part) or None


def _minus(value: float | None, base: float | None) -> float | None:
    return None if value is None or base is None else value - base
