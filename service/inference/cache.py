"""Prompts that are ready to classify, least recently used out first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Generic, NamedTuple, TypeVar

V = TypeVar("V")


class PromptKey(NamedTuple):
    """What identifies a ready prompt: a changed file or backbone is another key."""

    prompt_id: str
    sha256: str
    fingerprint: str | None


class PromptCache(Generic[V]):
    """A bounded mapping that may be used from any thread."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._items: OrderedDict[PromptKey, V] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._items)

    def get(self, key: PromptKey) -> V | None:
        """The value, now the most recently used, or None."""
        with self._lock:
            if key not in self._items:
                return None
            self._items.move_to_end(key)
            return self._items[key]

    def put(self, key: PromptKey, value: V) -> None:
        """Keep a value; the least recently used one may have to go."""
        with self._lock:
            self._items[key] = value
            self._items.move_to_end(key)
            while len(self._items) > self._capacity:
                self._items.popitem(last=False)

    def discard(self, prompt_id: str) -> None:
        """Forget a prompt that was deleted."""
        with self._lock:
            for key in [key for key in self._items if key.prompt_id == prompt_id]:
                del self._items[key]
