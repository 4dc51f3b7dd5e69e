"""What a soak test concludes from its samples and faults; plain numbers, no processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.support.output import Comparison, Row, Table, comparison_table

WARM_UP = 0.25  # share of the time in which caches fill and libraries allocate
MEMORY_GROWTH = 0.05  # allowed, of the first quarter after the warm-up
#: Allowed too: what is open at a moment depends on the requests that are under way.
MORE_DESCRIPTORS, MORE_THREADS = 5, 2
FEWEST = 8  # samples after the warm-up
QUARTERS = 4

Summary = Callable[[Sequence[float]], float]


@dataclass(frozen=True)
class Sample:
    """A process at a moment."""

    seconds: float  #: since the load began
    rss_mib: float
    descriptors: int
    threads: int


@dataclass(frozen=True)
class Trend:
    """A figure in the first and in the last quarter of the time after the warm-up."""

    first: float
    last: float

    @property
    def growth(self) -> float:
        """By how much it is more."""
        return self.last - self.first

    @property
    def share(self) -> float:
        """The growth, of the first."""
        return self.growth / self.first


@dataclass(frozen=True)
class Verdict:
    """All that was judged."""

    comparisons: tuple[Comparison, ...]
    trends: Mapping[str, Trend]

    @property
    def passed(self) -> bool:
        """Whether nothing was found."""
        return all(comparison.verdict == "met" for comparison in self.comparisons)

    def rows(self) -> list[Row]:
        """For programs."""
        return [
            {"name": item.name, "value": item.value, "target": item.target, "verdict": item.verdict}
            for item in self.comparisons
        ]

    def tables(self) -> list[Table]:
        """For people."""
        cells = [
            (name, f"{trend.first:,.1f}", f"{trend.last:,.1f}")
            for name, trend in self.trends.items()
        ]
        header = ("after the warm-up", "first quarter", "last quarter")
        return [
            Table("The server process", header, cells),
            comparison_table("Verdict", self.comparisons),
        ]


def judge(samples: Sequence[Sample], faults: Mapping[str, int]) -> Verdict:
    """Weigh the samples, by time, and the faults, none of which is allowed.

    Memory is compared by medians. Descriptors and threads come and go with requests, but a leak
    lifts the least that is ever open; so these are compared by minima.

    Raises:
        ValueError: too few samples.
    """
    memory = trend(samples, lambda sample: sample.rss_mib, median)
    descriptors = trend(samples, lambda sample: sample.descriptors, min)
    threads = trend(samples, lambda sample: sample.threads, min)
    comparisons = [
        Comparison("memory", memory.share, MEMORY_GROWTH, at_most=True, form="{:+.1%}"),
        _count("more descriptors", descriptors.growth, MORE_DESCRIPTORS),
        _count("more threads", threads.growth, MORE_THREADS),
        *(_count(name, number, 0) for name, number in faults.items()),
    ]
    trends = {
        "resident memory, MiB (median)": memory,
        "descriptors (least)": descriptors,
        "threads (least)": threads,
    }
    return Verdict(tuple(comparisons), trends)


def trend(samples: Sequence[Sample], figure: Callable[[Sample], float], summary: Summary) -> Trend:
    """A figure's summary over the first and the last quarter after the warm-up.

    Raises:
        ValueError: too few samples.
    """
    end = samples[-1].seconds if samples else 0.0
    values = [figure(sample) for sample in samples if sample.seconds >= WARM_UP * end]
    if len(values) < FEWEST:
        raise ValueError(f"{len(values)} samples are too few to judge by (lower --interval)")
    quarter = len(values) // QUARTERS
    return Trend(summary(values[:quarter]), summary(values[-quarter:]))


def _count(name: str, value: float, allowed: int) -> Comparison:
    return Comparison(name, value, allowed, at_most=True, form="{:.0f}")
