"""Loaded prompts: class matrices in memory, with least-recently-used eviction."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from service.errors import NotCalibrated, NoZeroShot
from sharpzo_engine.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from prometheus_client import Metric

    from sharpzo_core.records.prompts import PromptRecord
    from sharpzo_engine import Encoder, TunedPrompt

    Floats = NDArray[np.float32]


class PromptKey(NamedTuple):
    """Identifies a loaded prompt; a changed file or backbone is another key."""

    tenant: str
    prompt_id: str
    sha256: str
    fingerprint: str | None

    @classmethod
    def from_record(cls, prompt: PromptRecord) -> PromptKey:
        return cls(prompt.tenant, prompt.id, prompt.sha256, prompt.backbone.get("fingerprint"))


@dataclass(frozen=True)
class LinearClassifier:
    """Classifies image embeddings f: logits = (f weights^T + bias) / temperature."""

    weights: Floats  #: [C, E]
    bias: Floats  #: [C]

    def probabilities(self, embeddings: Floats, temperature: float = 1.0) -> Floats:
        """Image embeddings [B, E] -> class probabilities [B, C], each row summing to 1."""
        logits = embeddings @ self.weights.T
        logits += self.bias
        if temperature != 1.0:
            logits /= temperature
        logits -= logits.max(axis=1, keepdims=True)
        np.exp(logits, out=logits)
        logits /= logits.sum(axis=1, keepdims=True)
        return logits


@dataclass(frozen=True)
class ReadyPrompt:
    """A loaded prompt and its backbone, without the parts of the file that scoring does not use."""

    backbone: Encoder
    class_names: tuple[str, ...]
    tuned: LinearClassifier
    own_temperature: float | None
    hand_written_context: str
    label: str  #: name:version
    tenant: str

    @classmethod
    def build(cls, record: PromptRecord, prompt: TunedPrompt, backbone: Encoder) -> ReadyPrompt:
        return cls(
            backbone=backbone,
            class_names=prompt.class_names,
            tuned=LinearClassifier(prompt.weights, prompt.bias),
            own_temperature=prompt.temperature,
            hand_written_context=prompt.hand_written_context,
            label=f"{record.name}:{record.version}",
            tenant=record.tenant,
        )

    def encode_zero_shot(self, start: int, end: int) -> Floats:
        """Encode the zero-shot weights of some classes; runs on the model thread.

        Raises:
            NoZeroShot: its context or a class name cannot be encoded.
        """
        from sharpzo_engine.prompts.classifier import zero_shot_weights

        names = self.class_names[start:end]
        try:
            return zero_shot_weights(self.backbone, self.hand_written_context, names)
        except EngineError as error:
            raise NoZeroShot(f"{self.label}: {error}") from error

    def set_zero_shot(self, weights: Floats) -> None:
        self.__dict__["zero_shot"] = LinearClassifier(weights, np.zeros(len(weights), np.float32))

    @property
    def zero_shot(self) -> LinearClassifier:
        """The zero-shot classifier; `set_zero_shot` comes first."""
        classifier: LinearClassifier = self.__dict__["zero_shot"]
        return classifier

    @property
    def has_zero_shot(self) -> bool:
        return "zero_shot" in self.__dict__

    def temperature(self, calibrated: bool) -> float:
        """The divisor of the logits.

        Raises:
            NotCalibrated: the artifact has no temperature.
        """
        if not calibrated:
            return 1.0
        if self.own_temperature is None:
            raise NotCalibrated(
                f"{self.label} has no temperature (leave out `calibrated`, or tune it again)"
            )
        return self.own_temperature

    @property
    def size(self) -> int:
        """Bytes of its matrices, including those of a later zero-shot request."""
        return 2 * self.tuned.weights.nbytes + self.tuned.bias.nbytes


@dataclass(frozen=True)
class Residency:
    prompts: int
    bytes: int
    pinned: int


@dataclass
class _Entry:
    ready: ReadyPrompt
    used_at: float


@dataclass
class PromptCache:
    """A thread-safe cache bounded in bytes; pinned prompts are not evicted."""

    capacity: int  #: bytes
    ticks: Callable[[], float] = time.time
    hits: int = 0
    misses: int = 0
    evictions: int = 0
    _items: OrderedDict[PromptKey, _Entry] = field(default_factory=OrderedDict)
    _pinned: frozenset[str] = frozenset()
    _bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, key: PromptKey) -> ReadyPrompt | None:
        with self._lock:
            item = self._items.get(key)
            if item is None:
                self.misses += 1
                return None
            self.hits += 1
            item.used_at = self.ticks()
            self._items.move_to_end(key)
            return item.ready

    def put(self, key: PromptKey, ready: ReadyPrompt) -> None:
        with self._lock:
            self._drop(key)
            self._items[key] = _Entry(ready, self.ticks())
            self._bytes += ready.size
            self._make_room()

    def pin(self, prompt_ids: frozenset[str]) -> None:
        """Pin exactly these prompts, loaded or not; all others may be evicted."""
        with self._lock:
            self._pinned = prompt_ids
            self._make_room()

    def discard(self, prompt_id: str) -> None:
        with self._lock:
            for key in [key for key in self._items if key.prompt_id == prompt_id]:
                self._drop(key)

    def used_at(self, key: PromptKey) -> float | None:
        """When the prompt was last used, in seconds since the epoch; None if it is not loaded."""
        with self._lock:
            item = self._items.get(key)
            return None if item is None else item.used_at

    def residency(self) -> Residency:
        with self._lock:
            pinned = sum(key.prompt_id in self._pinned for key in self._items)
            return Residency(len(self._items), self._bytes, pinned)

    def _make_room(self) -> None:
        """Evict the least recently used; the newest stays even if it alone exceeds the capacity."""
        newest = next(reversed(self._items), None)
        for key in list(self._items):
            if self._bytes <= self.capacity:
                return
            if key != newest and key.prompt_id not in self._pinned:
                self._drop(key)
                self.evictions += 1

    def _drop(self, key: PromptKey) -> None:
        item = self._items.pop(key, None)
        if item is not None:
            self._bytes -= item.ready.size


class PromptCacheMetrics(Collector):
    """Metrics of the cache and of the queue in front of it, read at each scrape."""

    def __init__(self, cache: PromptCache, waiting: Callable[[], int]) -> None:
        self._cache = cache
        self._waiting = waiting

    def collect(self) -> Iterator[Metric]:
        now = self._cache.residency()
        for name, text, value in (
            ("prompts_resident", "Prompts in memory, ready to classify.", now.prompts),
            ("prompts_pinned", "Pinned prompts in memory.", now.pinned),
            ("prompt_bytes_resident", "Bytes of the matrices of prompts in memory.", now.bytes),
            ("images_waiting", "Images admitted and not classified yet.", self._waiting()),
        ):
            yield GaugeMetricFamily(f"sharpzo_{name}", text, value=value)
        lookups = CounterMetricFamily(
            "sharpzo_prompt_lookups",
            "Prompt lookups, by whether the prompt was in memory.",
            labels=["found"],
        )
        lookups.add_metric(["yes"], self._cache.hits)
        lookups.add_metric(["no"], self._cache.misses)
        yield lookups
        yield CounterMetricFamily(
            "sharpzo_prompt_evictions",
            "Prompts evicted from memory to make room.",
            value=self._cache.evictions,
        )
