"""What waits for the model thread: calls, and images that go through a backbone together.

Images of all requests and all prompts share one queue, because a tuned prompt only comes in after
the image encoder. A batch is taken as soon as the thread is free and either the batch is full,
nothing else is being decoded that could join it, or its oldest image has waited long enough. So a
lone image never waits, and under load a batch fills itself while the one before is encoded.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Hashable

L = TypeVar("L", bound="Hashable")
T = TypeVar("T")
R = TypeVar("R")

GONE = "gone"  # the client left, or its request failed otherwise
EXPIRED = "expired"  # the request's deadline passed


@dataclass(frozen=True)
class BatchRules(Generic[L]):
    """When a batch is taken."""

    images: Callable[[L], int]  #: lane -> images at most
    delay: float  #: seconds that an image waits for others that are being decoded


@dataclass(eq=False, slots=True)
class Entry(Generic[L, T, R]):
    """One image of a request, and where its result goes."""

    lane: L  #: only entries of one lane share a batch: the backbone
    item: T
    future: asyncio.Future[R]  #: belongs to the event loop; only looked at elsewhere
    deadline: float | None = None  #: by `time.monotonic`
    queued_at: float = 0.0  #: likewise
    request_id: object = None  #: for the log

    def fault(self, now: float) -> str | None:
        """Why nobody wants the result any more, or None."""
        if self.deadline is not None and now >= self.deadline:
            return EXPIRED
        return GONE if self.future.done() else None


@dataclass(frozen=True)
class Batch(Generic[L, T, R]):
    """Entries of one lane, oldest first."""

    lane: L
    entries: list[Entry[L, T, R]]


@dataclass
class ModelQueue(Generic[L, T, R]):
    """Filled from the event loop and others, emptied by the model thread."""

    rules: BatchRules[L]
    on_drop: Callable[[str], object]  #: told why an entry was skipped
    ticks: Callable[[], float] = time.monotonic
    _calls: deque[Callable[[], object]] = field(default_factory=deque)
    _entries: deque[Entry[L, T, R]] = field(default_factory=deque)
    _expected: Counter[L] = field(default_factory=Counter)  #: images that are being decoded
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _called: bool = False  #: whether a call was taken last
    _closed: bool = False

    def __len__(self) -> int:
        """Images that wait."""
        return len(self._entries)

    def call(self, call: Callable[[], object]) -> None:
        """Have something done, in turn with batches."""
        with self._changed:
            self._calls.append(call)
            self._changed.notify()

    def expect(self, lane: L, images: int) -> None:
        """Say that so many images will be put, or dropped by `forgo`."""
        with self._changed:
            self._expected[lane] += images

    def put(self, entry: Entry[L, T, R]) -> None:
        """Add an image that was expected."""
        with self._changed:
            self._expected[entry.lane] -= 1
            entry.queued_at = self.ticks()
            self._entries.append(entry)
            self._changed.notify()

    def cancel_expected(self, lane: L, images: int = 1) -> None:
        """Say that images that were expected will not come."""
        with self._changed:
            self._expected[lane] -= images
            self._changed.notify()

    def close(self) -> None:
        """End `take`; what still waits is left alone."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def take(self) -> Callable[[], object] | Batch[L, T, R] | None:
        """The next call or batch; blocks until there is one. None after `close`."""
        with self._changed:
            while not self._closed:
                self._drop_unwanted()
                wait = self._patience()
                if self._calls and not (wait == 0 and self._called):
                    self._called = True
                    return self._calls.popleft()
                if wait == 0:
                    self._called = False
                    return self._next_batch()
                self._changed.wait(wait)
            return None

    def _drop_unwanted(self) -> None:
        now = self.ticks()
        if any(entry.fault(now) for entry in self._entries):
            entries, self._entries = self._entries, deque()
            for entry in entries:
                if reason := entry.fault(now):
                    self.on_drop(reason)
                else:
                    self._entries.append(entry)

    def _patience(self) -> float | None:
        """Seconds until a batch is due; None for until something changes."""
        if not self._entries:
            return None
        oldest = self._entries[0]
        full = self._in_lane(oldest.lane) >= self.rules.images(oldest.lane)
        if full or self._expected[oldest.lane] <= 0:
            return 0
        return max(0.0, oldest.queued_at + self.rules.delay - self.ticks())

    def _in_lane(self, lane: L) -> int:
        return sum(entry.lane == lane for entry in self._entries)

    def _next_batch(self) -> Batch[L, T, R]:
        """Take the oldest entry and those that may go with it."""
        lane = self._entries[0].lane
        most = self.rules.images(lane)
        taken: list[Entry[L, T, R]] = []
        others: deque[Entry[L, T, R]] = deque()
        for entry in self._entries:
            if entry.lane == lane and len(taken) < most:
                taken.append(entry)
            else:
                others.append(entry)
        self._entries = others
        return Batch(lane, taken)
