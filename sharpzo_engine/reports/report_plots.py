"""The report's figures as inline SVG, without any text from users.

Figures use matplotlib's objects rather than pyplot, which opens windows and has global state. Text
uses the page's colour and font, so that it is readable in light and dark mode.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator
from numpy.typing import NDArray

Array = NDArray[np.float64]
Data = Mapping[str, Any]
Paint = Callable[[Figure], None]

MAX_POINTS = 400  # of a curve; a longer curve is drawn as means and ranges
LEVELS = 14  # of the landscape
LOG_RATIO = 50.0  # a loss with a larger ratio is drawn on a logarithmic axis

SIZE = (5.0, 2.9)  # inches; text is legible at the width of a phone
SQUARE = (5.0, 3.6)
SMALL = (3.4, 3.4)
INK = "#010203"  # stands for the page's text colour, see `_inline`
BLUE, ORANGE, GREY = "#3b82f6", "#f97316", "#8b8f98"  # visible on white and on black
SHADES = {"stage1": ORANGE, "stage2": BLUE}
QUANTITIES = {"sigma": "step size σ", "sharpness": "sharpness ρ‖g‖"}  # noqa: RUF001
STAGE_NAMES = {"stage1": "stage 1", "stage2": "stage 2"}

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # keeps text selectable and in the page's font
    "font.family": "DejaVu Sans",  # included in matplotlib, so no font is searched for
    "font.size": 9.0,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


def draw_figures(data: Data) -> dict[str, str]:
    """Name -> SVG of every figure that the run has data for."""
    history, slice_ = data["history"], data["landscape"]
    figures: dict[str, Paint] = {}
    if history["step"]:
        figures["loss"] = partial(_loss, history=history)
        figures["accuracy"] = partial(_accuracy, data=data)
        for name, label in QUANTITIES.items():
            if _known(history[name]):
                figures[name] = partial(_quantity, history=history, name=name, label=label)
    if _known(value for row in slice_.get("loss", ()) for value in row):
        figures["landscape"] = partial(_landscape, slice_=slice_)
    sizes = {"landscape": SQUARE}
    return {name: _svg(name, paint, sizes.get(name, SIZE)) for name, paint in figures.items()}


def draw_reliability(calibrations: Mapping[str, Data]) -> dict[str, str]:
    """Name -> SVG of the reliability diagram of each calibration."""
    return {
        name: _svg(f"reliability-{name}", partial(_reliability, calibration=calibration), SMALL)
        for name, calibration in calibrations.items()
    }


def _svg(name: str, paint: Paint, size: tuple[float, float]) -> str:
    """Draw a figure, independent of the user's settings; equal input gives equal bytes."""
    with style.context(["default", {**_STYLE, "svg.hashsalt": name}]):
        figure = Figure(figsize=size)
        paint(figure)
        file = io.StringIO()
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=no_metadata)
    return _inline(file.getvalue(), name)


def _inline(svg: str, name: str) -> str:
    """Prepare an SVG for a page with several: unique ids, the page's colour and font."""
    svg = re.sub(r'.*?<svg.*?( viewBox="[^"]*").*?>', r"<svg\1>", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r" font-family: [^;\"]*;?", "", svg)
    svg = re.sub(r'( id="|xlink:href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    return svg.replace("xlink:href", "href").replace(INK, "currentColor")


# Curves are drawn over forward passes, because the cost of a step differs between the stages.


def _loss(figure: Figure, history: Data) -> None:
    axes = _axes(figure, history, "loss (cross-entropy)")
    passes = _array(history["forward_passes"])
    _curve(axes, passes, _array(history["loss"]), BLUE, "training")
    _curve(axes, passes, _array(history["val_loss"]), ORANGE, "validation")
    if _spans_much([*history["loss"], *history["val_loss"]]):
        axes.set_yscale("log")
    _legend(axes)


def _accuracy(figure: Figure, data: Data) -> None:
    history, start = data["history"], data["metrics"].get("zero_shot_val_accuracy")
    axes = _axes(figure, history, "validation accuracy")
    passes, accuracy = _array(history["forward_passes"]), _array(history["val_accuracy"])
    kept = _kept(_array(history["val_loss"]), accuracy, start)
    if start is not None:
        axes.axhline(start, color=GREY, linestyle=(0, (4, 3)), linewidth=1.2, label="zero-shot")
    _curve(axes, passes, accuracy, BLUE, "candidates", alpha=0.55)
    known = np.isfinite(kept)
    passes, kept = _ends_of_steps(passes[known], kept[known])
    axes.step(passes, kept, where="post", color=ORANGE, linewidth=1.8, label="best so far")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))
    _legend(axes)


def _kept(loss: Array, accuracy: Array, start: float | None) -> Array:
    """Accuracy of the prompt with the lowest validation loss so far."""
    kept, best, now = np.full_like(accuracy, np.nan), np.inf, start if start is not None else np.nan
    for row in np.flatnonzero(np.isfinite(loss)):
        if loss[row] < best:
            best, now = loss[row], accuracy[row]
        kept[row] = now
    return kept


def _ends_of_steps(x: Array, y: Array) -> tuple[Array, Array]:
    """Only the points where a step function changes, and its end."""
    keep = np.ones(len(x), dtype=bool)
    keep[1:-1] = y[1:-1] != y[:-2]
    return x[keep], y[keep]


def _quantity(figure: Figure, history: Data, name: str, label: str) -> None:
    axes = _axes(figure, history, label)
    values = _array(history[name])
    _curve(axes, _array(history["forward_passes"]), values, ORANGE, None)
    if _spans_much(history[name]):
        axes.set_yscale("log")
    elif np.nanmin(values) >= 0:
        axes.set_ylim(bottom=0)


def _axes(figure: Figure, history: Data, label: str) -> Axes:
    """Axes over forward passes with shaded stages, and a line between them."""
    axes: Axes = figure.add_subplot()
    axes.set(xlabel="forward passes", ylabel=label)
    axes.grid(visible=True, axis="y")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    end = history["forward_passes"][-1]
    axes.set_xlim(0, end)
    begin = 0
    for stage in history["stages"]:
        _shade(axes, stage, begin, end)
        begin = stage["last_pass"]
    return axes


def _shade(axes: Axes, stage: Data, begin: int, end: int) -> None:
    name, last = stage["name"], stage["last_pass"]
    axes.axvspan(begin, last, color=SHADES.get(name, GREY), alpha=0.09, linewidth=0)
    if begin:
        axes.axvline(begin, color=INK, linewidth=0.8, linestyle=(0, (2, 2)))
    if last - begin < end / 8:  # too narrow for its name
        return
    centre = ((begin + last) / 2, 1.0)
    axes.annotate(
        STAGE_NAMES.get(name, "search"),
        centre,
        (0, 2),
        xycoords=axes.get_xaxis_transform(),
        textcoords="offset points",
        horizontalalignment="center",
        fontsize=8,
    )


def _curve(
    axes: Axes, x: Array, y: Array, color: str, label: str | None, alpha: float = 1.0
) -> None:
    """A line; with many points, the means and ranges of pieces."""
    known = np.isfinite(y)
    x, y = x[known], y[known]
    if len(x) > MAX_POINTS:
        piece = (x - x[0]) // ((x[-1] - x[0]) / MAX_POINTS)
        edges = np.flatnonzero(np.diff(piece, prepend=-1))
        count = np.diff(edges, append=len(x))
        low, high = np.minimum.reduceat(y, edges), np.maximum.reduceat(y, edges)
        x, y = np.add.reduceat(x, edges) / count, np.add.reduceat(y, edges) / count
        axes.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
    marker = "o" if len(x) < 30 else None
    axes.plot(x, y, color=color, alpha=alpha, label=label, lw=1.4, marker=marker, markersize=2.5)


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, handlelength=1.6, borderaxespad=0.2)


# The landscape


def _landscape(figure: Figure, slice_: Data) -> None:
    """Filled contours, clipped so that steep corners do not hide the rest."""
    x, y, loss = _array(slice_["x"]), _array(slice_["y"]), np.array(slice_["loss"], dtype=float)
    axes = figure.add_subplot()
    shown = np.ma.masked_invalid(loss)
    low, high = float(shown.min()), float(np.quantile(loss[np.isfinite(loss)], 0.95))
    levels = MaxNLocator(LEVELS).tick_values(low, high)
    filled = axes.contourf(x, y, shown, levels, cmap="viridis_r", extend="max")
    axes.contour(x, y, shown, levels, colors="white", linewidths=0.4, alpha=0.5)
    bar = figure.colorbar(filled, ax=axes, label="training loss", shrink=0.9, format="%.3g")
    bar.outline.set_visible(False)
    axes.set(xlabel="from the hand-written (0) to the tuned prompt (1)", ylabel="random direction")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.plot([0, 1], [0, 0], color="white", linewidth=1, linestyle=(0, (3, 3)))
    for place, marker, name in ((0, "o", "hand-written"), (1, "*", "tuned")):
        size = 7 if marker == "o" else 12
        axes.plot(place, 0, marker, color="white", markeredgecolor="black", markersize=size)
        _name_point(axes, place, name)


def _name_point(axes: Axes, x: float, name: str) -> None:
    box = {"boxstyle": "round,pad=0.25", "facecolor": "white", "alpha": 0.85, "linewidth": 0}
    axes.annotate(
        name,
        (x, 0),
        (0, 9),
        textcoords="offset points",
        horizontalalignment="center",
        fontsize=8,
        color="black",
        bbox=box,
    )


# Reliability: accuracy by confidence


def _reliability(figure: Figure, calibration: Data) -> None:
    """Accuracy by confidence, the gap between them, and the distribution of images."""
    bins = calibration["bins"]
    width = 1 / len(bins)
    filled = [item for item in bins if item["images"]]
    left, accuracy, confidence, images = (
        _array([item[name] for item in filled])
        for name in ("low", "accuracy", "confidence", "images")
    )
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    options: dict[str, Any] = {"width": width, "align": "edge", "linewidth": 0.6}
    upper.bar(left, accuracy, color=BLUE, alpha=0.75, edgecolor=BLUE, label="correct", **options)
    over, under = confidence > accuracy, confidence < accuracy
    for which, label, look in (
        (over, "overconfident", {"color": ORANGE, "alpha": 0.35, "edgecolor": ORANGE}),
        (under, "underconfident", {"facecolor": "none", "edgecolor": "white", "hatch": "////"}),
    ):
        if which.any():
            gap = (confidence - accuracy)[which]
            upper.bar(left[which], gap, bottom=accuracy[which], label=label, **look, **options)
    upper.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    upper.legend(fontsize=8, loc="upper left", handlelength=1.2, borderaxespad=0.2)
    lower.bar(left, images / images.sum(), color=GREY, alpha=0.7, **options)
    lower.set(xlabel="confidence", ylabel="images")
    for axes in (upper, lower):
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))
    upper.yaxis.set_major_locator(MaxNLocator(5))
    lower.yaxis.set_major_locator(MaxNLocator(2))
    lower.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))


# Columns of the JSON


def _array(column: Sequence[float | None]) -> Array:
    return np.array(column, dtype=np.float64)  # None becomes NaN


def _known(column: Iterable[float | None]) -> bool:
    return any(value is not None for value in column)


def _spans_much(column: Sequence[float | None]) -> bool:
    values = [value for value in column if value is not None]
    return bool(values) and min(values) > 0 and max(values) > LOG_RATIO * min(values)
