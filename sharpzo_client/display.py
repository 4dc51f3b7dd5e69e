"""How far a run is, on a terminal or in a log: on standard error alone.

It knows neither the network nor the models of the SDK, so that a run on this machine can be shown
in the same way.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from rich.console import Console, RenderableType
    from rich.live import Live

PACE_SECONDS = 10.0  # that passes per second are measured over
LINE_SECONDS = 10.0  # between two lines where nothing can be drawn
REFRESHES = 5  # of the drawing, in a second
BAR_WIDTH = 30  # characters, at most
UNKNOWN_ETA = "-:--"
COMPLETE = frozenset({"succeeded", "done"})  # titles of what ended well
SEARCHING = frozenset({"stage1", "stage2"})  # phases that evaluate points


@dataclass(frozen=True)
class Standing:
    """Where a run is; what is not known is None, or empty."""

    title: str  #: the stage, or the status
    step: int = 0
    total: int | None = None
    unit: str = "step"
    loss: float | None = None
    accuracy: float | None = None  #: on validation images, a fraction
    passes: int = 0  #: forward passes so far
    budget: int | None = None  #: forward passes that may be used
    pace: float | None = None  #: forward passes per second
    eta: float | None = None  #: seconds
    note: str = ""
    searching: bool = False  #: in a stage of the search, where pace and time left are to be told
    over: bool = False

    @property
    def steps(self) -> str:
        """How many of how many."""
        return f"{self.unit} {self.step:,}/{self.total:,}" if self.total else ""

    @property
    def share(self) -> float | None:
        """How much of the work, or of a budget that ends it before, is done; at most 1."""
        if self.title in COMPLETE:
            return 1.0
        shares = [self.step / self.total] if self.total else []
        shares += [self.passes / self.budget] if self.budget else []
        return min(1.0, max(shares)) if shares else None

    @property
    def time_left(self) -> str:
        """The time left; a mark where nobody can know it yet."""
        if self.eta is not None and not self.over:
            return f"ETA {clock(self.eta)}"
        return f"ETA {UNKNOWN_ETA}" if self.searching else ""

    @property
    def figures(self) -> list[str]:
        """Loss, accuracy and passes, as far as they are known."""
        known = [
            "" if self.loss is None else f"loss {self.loss:.3f}",
            "" if self.accuracy is None else f"val {self.accuracy:.1%}",
            "" if self.pace is None else f"{self.pace:,.0f} passes/s",
            f"{self.passes:,} passes" if self.passes else "",
        ]
        return [figure for figure in known if figure]


class Pace:
    """Forward passes per second over the last seconds, from what was counted and nothing else."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._seen: deque[tuple[float, int]] = deque()  # (time, count), where the count changed

    def count(self, passes: int) -> None:
        """Take note of how many passes there were up to now; fewer than before begin anew."""
        now = self._now()
        if self._seen and passes < self._seen[-1][1]:
            self._seen.clear()
        if not self._seen or passes > self._seen[-1][1]:
            self._seen.append((now, passes))
        # Steps that take longer than the window are measured over the last one.
        while len(self._seen) > 2 and now - self._seen[1][0] >= PACE_SECONDS:
            self._seen.popleft()

    def forget(self) -> None:
        """The run stood still: what was before says nothing of what comes."""
        self._seen.clear()

    @property
    def per_second(self) -> float | None:
        """Passes per second; None before two different counts were seen."""
        if len(self._seen) < 2:
            return None
        (began, before), (ended, after) = self._seen[0], self._seen[-1]
        now = self._now()
        if now - ended > max(PACE_SECONDS, ended - began):  # nothing new: it has become slower
            ended = now
        return (after - before) / (ended - began) if ended > began else None


class Display(Protocol):
    """Somewhere to show a run."""

    def show(self, standing: Standing) -> None:
        """Show where the run is now."""

    def say(self, line: str) -> None:
        """Leave a line about something that happened."""


@contextmanager
def display() -> Iterator[Display]:
    """A drawing that stays while the block runs; lines now and then if it cannot be drawn.

    Nothing is written to standard output. NO_COLOR is honoured.
    """
    if not sys.stderr.isatty():
        yield Lines()
        return
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_dumb_terminal:
        yield Lines()
        return
    with _drawn_on(console) as drawing:
        yield drawing


class Lines:
    """Lines on standard error: at every new title, and once in a while."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._title = ""
        self._written = 0.0

    def show(self, standing: Standing) -> None:
        """Write a line, if there is something new or it is time."""
        if standing.title == self._title and self._now() - self._written < LINE_SECONDS:
            return
        self._title, self._written = standing.title, self._now()
        facts = [standing.steps, *standing.figures, standing.time_left, standing.note]
        told = ", ".join(fact for fact in facts if fact)
        self.say(f"{standing.title}: {told}" if told else standing.title)

    def say(self, line: str) -> None:
        """Write a line."""
        sys.stderr.write(f"{harmless(line)}\n")
        sys.stderr.flush()


class _Drawing:
    """Two lines that are drawn again and again, and the lines above them."""

    def __init__(self) -> None:
        self.standing = Standing("starting")
        self.live: Live | None = None
        self._began = time.monotonic()
        self._lock = threading.Lock()

    def show(self, standing: Standing) -> None:
        with self._lock:
            self.standing = standing

    def say(self, line: str) -> None:
        from rich.text import Text

        if self.live is not None:
            self.live.console.print(Text(harmless(line)), soft_wrap=True)

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        with self._lock:
            now = self.standing
        first = Table.grid(padding=(0, 1))
        for _ in range(4):
            first.add_column(no_wrap=True, overflow="ellipsis")
        share = now.share
        first.add_row(
            Text(harmless(now.title), "bold"),
            ProgressBar(1, share or 0, self._bar(now), pulse=share is None and not now.over),
            now.steps,
            Text(now.time_left, "cyan"),
        )
        facts = [*now.figures, clock(time.monotonic() - self._began), harmless(now.note)]
        second = Text("  " + "  ".join(facts), no_wrap=True, overflow="ellipsis")
        return Group(first, second)

    def _bar(self, now: Standing) -> int:
        width = self.live.console.width if self.live else 80
        text = len(now.title) + len(now.steps) + len(now.time_left)
        return max(4, min(BAR_WIDTH, width - text - 4))


@contextmanager
def _drawn_on(console: Console) -> Iterator[_Drawing]:
    from rich.live import Live

    drawing = _Drawing()
    # What others print would be torn by the drawing, unless it goes elsewhere anyway.
    both = sys.stdout.isatty()
    with Live(
        drawing, console=console, refresh_per_second=REFRESHES, redirect_stdout=both
    ) as drawing.live:
        yield drawing


def stage_title(phase: str, config: Mapping[str, Any]) -> str:
    """What a phase of the search is, by the configuration of the run (as `TuningConfig` dumps)."""
    if phase == "stage1":
        return f"stage 1: {_first_stage(config.get('cma') or {})}"
    if phase == "stage2":
        return f"stage 2: {_second_stage(config)}"
    return phase


def _first_stage(cma: Mapping[str, Any]) -> str:
    plain = cma.get("sharpness_estimator", "none") == "none" or not cma.get("rho")
    return "CMA-ES" if plain else "sharpness-aware CMA-ES"


def _second_stage(config: Mapping[str, Any]) -> str:
    zo = config.get("zo") or {}
    optimizer, dense = zo.get("optimizer", "auto"), zo.get("mask", "none") == "none"
    if config.get("method") == "first-order":
        return "first-order"
    automatic = optimizer == "auto" and dense and config.get("numerics") != "reference"
    if optimizer == "gauss-newton" or automatic:
        return "Gauss-Newton"
    return "ZO" if dense else "sparse ZO"


def clock(seconds: float) -> str:
    """Seconds as 0:07, 12:34 or 1:02:03."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def harmless(text: str) -> str:
    """The text without characters that move the cursor or turn the direction: those as escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
