"""Damaged bytes and odd JSON: reproducible from a seed, made from whole examples."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

#: Numbers that lengths, offsets and counts go wrong at.
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
MAX_BLOCK = 4096
MAX_GROWTH = 4  # a mutant is at most so many times as long as its example
_ODD: tuple[object, ...] = (
    None,
    True,
    0,
    -1,
    2**63,
    1e308,
    float("inf"),
    float("nan"),
    "",
    "x" * 5000,
    "\ud800",
    "a\0b",
    "\u202e",
    [],
    {},
    [[[]]],
    {"": {"": None}},
)


def mutate(random_: random.Random, examples: Sequence[bytes]) -> bytes:
    """One of the examples, damaged in one to eight places."""
    example = random_.choice(examples)
    data = bytearray(example)
    for _ in range(random_.choice((1, 1, 1, 2, 4, 8))):
        random_.choice(_DAMAGES)(random_, data, examples)
    return bytes(data[: MAX_GROWTH * len(example) + MAX_BLOCK])


def _place(random_: random.Random, data: bytearray) -> int:
    """Anywhere, and often near the ends, where headers and indexes are."""
    last = max(0, len(data) - 1)
    near = min(last, 64)
    return random_.choice(
        (random_.randint(0, last), random_.randint(0, near), last - random_.randint(0, near))
    )


def _block(random_: random.Random, data: bytearray) -> slice:
    start = _place(random_, data)
    return slice(start, start + random_.choice((1, 2, 4, 16, 256, MAX_BLOCK)))


Others = Sequence[bytes]


def _flip(random_: random.Random, data: bytearray, _: Others) -> None:
    if data:
        data[_place(random_, data)] ^= 1 << random_.randrange(8)


def _number(random_: random.Random, data: bytearray, _: Others) -> None:
    width, order = random_.choice((1, 2, 4, 8)), random_.choice(("little", "big"))
    number = random_.choice(NUMBERS) & (1 << 8 * width) - 1
    start = _place(random_, data)
    data[start : start + width] = number.to_bytes(width, order)  # type: ignore[arg-type]


def _remove(random_: random.Random, data: bytearray, _: Others) -> None:
    del data[_block(random_, data)]


def _repeat(random_: random.Random, data: bytearray, _: Others) -> None:
    place, block = _place(random_, data), bytes(data[_block(random_, data)])
    data[place:place] = block * random_.choice((1, 1, 2, 16))


def _insert(random_: random.Random, data: bytearray, _: Others) -> None:
    place = _place(random_, data)
    data[place:place] = random_.randbytes(random_.choice((1, 4, 64)))


def _cut(random_: random.Random, data: bytearray, _: Others) -> None:
    del data[_place(random_, data) :]


def _splice(random_: random.Random, data: bytearray, others: Others) -> None:
    other = random_.choice(others)
    start = random_.randint(0, len(other))
    data[_block(random_, data)] = other[start : start + random_.choice((4, 64, MAX_BLOCK))]


_DAMAGES: tuple[Callable[[random.Random, bytearray, Others], None], ...] = (
    _flip,
    _flip,
    _number,
    _number,
    _remove,
    _repeat,
    _insert,
    _cut,
    _splice,
)


def mutate_json(random_: random.Random, value: Any) -> Any:
    """A copy in which one member is odd, missing or one too many."""
    if not isinstance(value, dict | list) or not value or random_.random() < 0.2:
        return random_.choice(_ODD)
    if isinstance(value, list):
        items = list(value)
        index = random_.randrange(len(items))
        items[index] = mutate_json(random_, items[index])
        return items
    members = dict(value)
    key = random_.choice(list(members))
    change = random_.random()
    if change < 0.2:
        del members[key]
    elif change < 0.3:
        members[random_.choice(("", "x", "__class__", "\ud800"))] = members[key]
    else:
        members[key] = mutate_json(random_, members[key])
    return members
