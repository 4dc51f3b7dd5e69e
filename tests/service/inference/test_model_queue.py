"""When a batch is taken, of what, and what is skipped; without threads where none are needed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from service.inference.model_queue import Batch, BatchRules, Entry, ModelQueue

DELAY = 0.5


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def dropped() -> list[str]:
    return []


@pytest.fixture
def queue(clock: Clock, dropped: list[str]) -> ModelQueue[str, int, int]:
    rules: BatchRules[str] = BatchRules(lambda lane: 2 if lane == "small" else 4, DELAY)
    return ModelQueue(rules, dropped.append, clock)


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


Make = Any


@pytest.fixture
def put(queue: ModelQueue[str, int, int], loop: asyncio.AbstractEventLoop) -> Make:
    def put(*items: int, lane: str = "a", **options: Any) -> list[Entry[str, int, int]]:
        entries = [Entry(lane, item, loop.create_future(), **options) for item in items]
        queue.expect(lane, len(entries))
        for entry in entries:
            queue.put(entry)
        return entries

    return put


def take(queue: ModelQueue[str, int, int]) -> list[int]:
    batch = queue.take()
    assert isinstance(batch, Batch)
    return [entry.item for entry in batch.entries]


def test_calls_and_batches_take_turns(queue: ModelQueue[str, int, int], put: Make) -> None:
    calls = [lambda n=n: n for n in range(4)]
    for call in calls:
        queue.call(call)
    put(*range(6))
    assert queue.take() is calls[0]
    assert take(queue) == [0, 1, 2, 3]
    assert queue.take() is calls[1]
    assert take(queue) == [4, 5]
    assert queue.take() is calls[2]
    assert queue.take() is calls[3]


def waits(queue: ModelQueue[str, int, int]) -> bool:
    """Whether `take` blocks; the taker is let go by `close`."""
    taken: list[Any] = []
    thread = threading.Thread(target=lambda: taken.append(queue.take()))
    thread.start()
    thread.join(0.1)
    blocked = thread.is_alive()
    queue.close()
    thread.join(5)
    return blocked


def test_a_lone_image_does_not_wait(queue: ModelQueue[str, int, int], put: Make) -> None:
    put(1)
    assert take(queue) == [1]


def test_images_wait_for_others_that_are_being_decoded(
    queue: ModelQueue[str, int, int], put: Make
) -> None:
    queue.expect("a", 1)
    put(1)
    assert waits(queue)


def test_nobody_waits_longer_than_the_delay(
    queue: ModelQueue[str, int, int], put: Make, clock: Clock
) -> None:
    queue.expect("a", 1)
    put(1)
    clock.now += DELAY
    assert take(queue) == [1]


def test_a_full_batch_is_taken_although_more_will_come(
    queue: ModelQueue[str, int, int], put: Make
) -> None:
    queue.expect("a", 9)
    put(1, 2, 3, 4, 5)
    assert take(queue) == [1, 2, 3, 4]
    assert len(queue) == 1


def test_images_that_will_not_come_are_not_waited_for(
    queue: ModelQueue[str, int, int], put: Make
) -> None:
    queue.expect("a", 2)
    put(1)
    queue.cancel_expected("a", 2)
    assert take(queue) == [1]


def test_lanes_do_not_mix_and_the_oldest_is_first(
    queue: ModelQueue[str, int, int], put: Make
) -> None:
    put(1, lane="small")
    put(2, lane="b")
    put(3, 4, lane="small")
    assert [take(queue), take(queue), take(queue)] == [[1, 3], [2], [4]]


def test_what_nobody_waits_for_is_skipped_and_told(
    queue: ModelQueue[str, int, int], put: Make, clock: Clock, dropped: list[str]
) -> None:
    gone, kept = put(1, 2)
    put(3, deadline=clock.now + 1)
    gone.future.cancel()
    clock.now += 1
    assert take(queue) == [2]
    assert sorted(dropped) == ["expired", "gone"]
    assert not kept.future.done()


def test_calls_come_before_batches(queue: ModelQueue[str, int, int], put: Make) -> None:
    put(1)
    queue.call(lambda: "called")
    call = queue.take()
    assert callable(call)
    assert call() == "called"
    assert take(queue) == [1]


def test_an_empty_queue_blocks_until_it_is_closed(queue: ModelQueue[str, int, int]) -> None:
    assert waits(queue)
    assert queue.take() is None
