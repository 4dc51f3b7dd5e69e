"""The progress of a run on standard error, drawn on a terminal or as lines in a log.

It uses neither the network nor the SDK's models, so that local runs are shown in the same way.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console, RenderableType
    from rich.live import Live

RATE_SECONDS = 10.0  # window over which passes per second are measured
LINE_SECONDS = 10.0  # between two lines in a log
REFRESHES = 5  # redraws per second
BAR_WIDTH = 30  # characters, at most
UNKNOWN_ETA = "-:--"
COMPLETE = frozenset({"succeeded", "done"})  # titles of successful runs
STAGES = {"stage1": "stage 1", "stage2": "stage 2"}  # phases of the search


@dataclass(frozen=True)
class RunState:
    """The progress of a run; unknown values are None, or empty."""

    title: str  #: the stage, or the status
    step: int = 0
    total: int | None = None
    unit: str = "step"
    loss: float | None = None
    accuracy: float | None = None  #: on validation images, a fraction
    passes: int = 0  #: forward passes so far
    budget: int | None = None  #: forward passes that may be used
    rate: float | None = None  #: forward passes per second
    eta: float | None = None  #: seconds
    note: str = ""
    searching: bool = False  #: in a stage of the search, where rate and time left are shown
    ended: bool = False

    @property
    def steps(self) -> str:
        """Steps done, of all steps."""
        return f"{self.unit} {self.step:,}/{self.total:,}" if self.total else ""

    @property
    def fraction(self) -> float | None:
        """Fraction done of the steps or of the budget, whichever will be used up first."""
        if self.title in COMPLETE:
            return 1.0
        fractions = [self.step / self.total] if self.total else []
        fractions += [self.passes / self.budget] if self.budget else []
        return min(1.0, max(fractions)) if fractions else None

    @property
    def time_left(self) -> str:
        """The time left; `-:--` while it cannot be known."""
        if self.eta is not None and not self.ended:
            return f"ETA {clock(self.eta)}"
        return f"ETA {UNKNOWN_ETA}" if self.searching else ""

    @property
    def figures(self) -> list[str]:
        """Loss, accuracy and passes, if known."""
        figures = [
            "" if self.loss is None else f"loss {self.loss:.3f}",
            "" if self.accuracy is None else f"val {self.accuracy:.1%}",
            "" if self.rate is None else f"{self.rate:,.0f} passes/s",
            f"{self.passes:,} passes" if self.passes else "",
        ]
        return [figure for figure in figures if figure]


class PassRate:
    """Forward passes per second over the last seconds, measured, not estimated."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._seen: deque[tuple[float, int]] = deque()  # (time, count), where the count changed

    def count(self, passes: int) -> None:
        """Take the number of passes so far; a smaller number than before restarts the count."""
        now = self._now()
        if self._seen and passes < self._seen[-1][1]:
            self._seen.clear()
        if not self._seen or passes > self._seen[-1][1]:
            self._seen.append((now, passes))
        # If a step takes longer than the window, measure over the last step.
        while len(self._seen) > 2 and now - self._seen[1][0] >= RATE_SECONDS:
            self._seen.popleft()

    def reset(self) -> None:
        """Start over, because the run was not searching."""
        self._seen.clear()

    @property
    def per_second(self) -> float | None:
        """Passes per second; None before two different counts were seen."""
        if len(self._seen) < 2:
            return None
        (began, before), (ended, after) = self._seen[0], self._seen[-1]
        now = self._now()
        if now - ended > max(RATE_SECONDS, ended - began):  # no new count: it has slowed down
            ended = now
        return (after - before) / (ended - began) if ended > began else None


class Display(Protocol):
    """A place to show a run."""

    def show(self, state: RunState) -> None:
        """Show the current state of the run."""

    def say(self, line: str) -> None:
        """Print a line about something that happened."""


@contextmanager
def display() -> Iterator[Display]:
    """Draw on a terminal while the block runs; in a log, print a line now and then.

    Nothing is written to standard output. NO_COLOR is honoured.
    """
    if not sys.stderr.isatty():
        yield LogLines()
        return
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_dumb_terminal:
        yield LogLines()
        return
    with _drawn_on(console) as drawing:
        yield drawing


class LogLines:
    """Prints lines on standard error, at every new title and every ten seconds."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._title = ""
        self._written = 0.0

    def show(self, state: RunState) -> None:
        """Print a line if the title is new or the last line is old enough."""
        if state.title == self._title and self._now() - self._written < LINE_SECONDS:
            return
        self._title, self._written = state.title, self._now()
        facts = [state.steps, *state.figures, state.time_left, state.note]
        details = ", ".join(fact for fact in facts if fact)
        self.say(f"{state.title}: {details}" if details else state.title)

    def say(self, line: str) -> None:
        """Print a line."""
        sys.stderr.write(f"{escaped(line)}\n")
        sys.stderr.flush()


class _Drawing:
    """Two lines that are redrawn, and the printed lines above them."""

    def __init__(self) -> None:
        self.state = RunState("starting")
        self.live: Live | None = None
        self._began = time.monotonic()
        self._lock = threading.RLock()  # a signal handler may print in the middle of `show`

    def show(self, state: RunState) -> None:
        with self._lock:
            self.state = state

    def say(self, line: str) -> None:
        from rich.text import Text

        if self.live is not None:
            self.live.console.print(Text(escaped(line)), soft_wrap=True)

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        with self._lock:
            state = self.state
        first = Table.grid(padding=(0, 1))
        for _ in range(4):
            first.add_column(no_wrap=True, overflow="ellipsis")
        done, width = state.fraction, self._bar_width(state)
        first.add_row(
            Text(escaped(state.title), "bold"),
            ProgressBar(1, done or 0, width, pulse=done is None and not state.ended),
            state.steps,
            Text(state.time_left, "cyan"),
        )
        facts = [*state.figures, clock(time.monotonic() - self._began), escaped(state.note)]
        second = Text("  " + "  ".join(facts), no_wrap=True, overflow="ellipsis")
        return Group(first, second)

    def _bar_width(self, state: RunState) -> int:
        width = self.live.console.width if self.live else 80
        text = len(state.title) + len(state.steps) + len(state.time_left)
        return max(4, min(BAR_WIDTH, width - text - 4))


@contextmanager
def _drawn_on(console: Console) -> Iterator[_Drawing]:
    from rich.live import Live

    drawing = _Drawing()
    # The drawing would overwrite what others print on the same terminal.
    shared = sys.stdout.isatty()
    with Live(
        drawing, console=console, refresh_per_second=REFRESHES, redirect_stdout=shared
    ) as drawing.live:
        yield drawing


def phase_title(phase: str, label: object) -> str:
    """Name a phase by its label: "stage 2: Gauss-Newton"; other phases are their own names."""
    return f"{STAGES[phase]}: {label}" if label and phase in STAGES else phase


def clock(seconds: float) -> str:
    """Format seconds as 0:07, 12:34 or 1:02:03."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def escaped(text: str) -> str:
    """Escape characters that would move the cursor or change the writing direction."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
