"""The queue of the model thread: calls, and images that are encoded in batches.

Images of all requests and prompts share one queue, because a tuned prompt is only applied after
the image encoder. A batch is taken as soon as the thread is free and the batch is full, or no image
that could join it is being decoded, or its oldest image has waited long enough. So a single image
never waits, and under load a batch fills up while the previous one is encoded.
"""

import asyncio
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

L = TypeVar("L", bound="Hashable")
T = TypeVar("T")
R = TypeVar("R")

GONE = "gone"  # the client disconnected, or its request failed otherwise
EXPIRED = "expired"  # the request's deadline passed


@dataclass(frozen=True)
class BatchRules(Generic[L]):
    """The size of a batch, and how long it may wait."""

    images: Callable[[L], int]  #: lane -> maximum number of images
    delay: float  #: seconds that an image waits for others in decoding


@dataclass(eq=False, slots=True)
class Entry(Generic[L, T, R]):
    lane: L  #: the backbone; a batch has entries of one lane
    item: T
    future: asyncio.Future[R]  #: set on the event loop only
    deadline: float | None = None  #: by `time.monotonic`
    queued_at: float = 0.0  #: by `time.monotonic`
    request_id: object = None  #: for the log

    def drop_reason(self, now: float) -> str | None:
        """Why the result is no longer wanted, or None."""
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
    """Filled from any thread, emptied by the model thread."""

    rules: BatchRules[L]
    on_drop: Callable[[str], object]  #: receives the reason of each dropped entry
    ticks: Callable[[], float] = time.monotonic
    _calls: deque[Callable[[], object]] = field(default_factory=deque)
    _entries: deque[Entry[L, T, R]] = field(default_factory=deque)
    _expected: Counter[L] = field(default_factory=Counter)  #: images in decoding
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _called: bool = False  #: whether `take` returned a call last
    _closed: bool = False

    def __len__(self) -> int:
        return len(self._entries)

    def call(self, call: Callable[[], object]) -> None:
        with self._changed:
            self._calls.append(call)
            self._changed.notify()

    def expect(self, lane: L, images: int) -> None:
        """Announce images; each is then `put` or given up by `cancel_expected`."""
        with self._changed:
            self._expected[lane] += images

    def put(self, entry: Entry[L, T, R]) -> None:
        with self._changed:
            self._expected[entry.lane] -= 1
            entry.queued_at = self.ticks()
            self._entries.append(entry)
            self._changed.notify()

    def cancel_expected(self, lane: L, images: int = 1) -> None:
        with self._changed:
            self._expected[lane] -= images
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    def take(self) -> Callable[[], object] | Batch[L, T, R] | None:
        """The next call or batch; blocks until there is one. None after `close`."""
        with self._changed:
            while not self._closed:
                self._drop_unwanted()
                wait = self._seconds_to_batch()
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
        if any(entry.drop_reason(now) for entry in self._entries):
            entries, self._entries = self._entries, deque()
            for entry in entries:
                if reason := entry.drop_reason(now):
                    self.on_drop(reason)
                else:
                    self._entries.append(entry)

    def _seconds_to_batch(self) -> float | None:
        """Seconds until a batch is due; None if the queue is empty."""
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
