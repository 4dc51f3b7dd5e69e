"""Prompts that are ready to classify: class matrices in memory, least recently used out first."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from service.errors import NotCalibrated, NoZeroShot
from sharpzo_engine.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from sharpzo_core.records.prompts import PromptRecord
    from sharpzo_engine import Backbone, TunedPrompt

    Floats = NDArray[np.float32]


class PromptKey(NamedTuple):
    """What identifies a ready prompt: a changed file or backbone is another key.

    An id is given once, to one version of one tenant's prompt.
    """

    tenant: str
    prompt_id: str
    sha256: str
    fingerprint: str | None

    @classmethod
    def from_record(cls, prompt: PromptRecord) -> PromptKey:
        """The key of a published prompt."""
        return cls(prompt.tenant, prompt.id, prompt.sha256, prompt.backbone.get("fingerprint"))


@dataclass(frozen=True)
class Answers:
    """A linear classifier on image embeddings: logits = f weights^T + bias, over temperature."""

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
    """A prompt with the backbone it needs; the context and what else its file holds is let go."""

    backbone: Backbone
    class_names: tuple[str, ...]
    tuned: Answers
    own_temperature: float | None
    hand_written_context: str
    label: str  #: name:version, for people
    tenant: str

    @classmethod
    def build(cls, record: PromptRecord, prompt: TunedPrompt, backbone: Backbone) -> ReadyPrompt:
        """Keep what answering takes."""
        return cls(
            backbone=backbone,
            class_names=prompt.class_names,
            tuned=Answers(prompt.weights, prompt.bias),
            own_temperature=prompt.temperature,
            hand_written_context=prompt.hand_written_context,
            label=f"{record.name}:{record.version}",
            tenant=record.tenant,
        )

    def encode_zero_shot(self, start: int, end: int) -> Floats:
        """What the hand-written prompt multiplies by for some classes; on the model thread.

        Raises:
            NoZeroShot: its words or a class name cannot be encoded.
        """
        from sharpzo_engine.prompts.classifier import zero_shot_weights

        names = self.class_names[start:end]
        try:
            return zero_shot_weights(self.backbone, self.hand_written_context, names)
        except EngineError as error:
            raise NoZeroShot(f"{self.label}: {error}") from error

    def keep_zero_shot(self, weights: Floats) -> None:
        """Remember those of all classes."""
        self.__dict__["zero_shot"] = Answers(weights, np.zeros(len(weights), np.float32))

    @property
    def zero_shot(self) -> Answers:
        """The hand-written prompt's classifier, once it is at hand."""
        answers: Answers = self.__dict__["zero_shot"]
        return answers

    @property
    def knows_zero_shot(self) -> bool:
        """Whether `zero_shot` is at hand."""
        return "zero_shot" in self.__dict__

    def temperature(self, calibrated: bool) -> float:
        """What the logits are divided by.

        Raises:
            NotCalibrated: the artifact holds no temperature.
        """
        if not calibrated:
            return 1.0
        if self.own_temperature is None:
            raise NotCalibrated(f"{self.label} was published without a temperature")
        return self.own_temperature

    @property
    def size(self) -> int:
        """Bytes of its matrices, those included that may still come."""
        return 2 * self.tuned.weights.nbytes + self.tuned.bias.nbytes


@dataclass(frozen=True)
class Residency:
    """What is in memory."""

    prompts: int
    bytes: int
    pinned: int


@dataclass
class _Resident:
    ready: ReadyPrompt
    used_at: float


@dataclass
class PromptCache:
    """A mapping bounded in bytes that may be used from any thread; pinned prompts stay."""

    capacity: int  #: bytes
    ticks: Callable[[], float] = time.time
    hits: int = 0
    misses: int = 0
    evictions: int = 0
    _items: OrderedDict[PromptKey, _Resident] = field(default_factory=OrderedDict)
    _pinned: frozenset[str] = frozenset()
    _bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, key: PromptKey) -> ReadyPrompt | None:
        """The prompt, now the most recently used, or None."""
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
        """Keep a prompt; those that were not used for longest may have to go."""
        with self._lock:
            self._drop(key)
            self._items[key] = _Resident(ready, self.ticks())
            self._bytes += ready.size
            self._make_room()

    def pin(self, prompt_ids: frozenset[str]) -> None:
        """Say which prompts stay, in memory or when they come; all others may go."""
        with self._lock:
            self._pinned = prompt_ids
            self._make_room()

    def discard(self, prompt_id: str) -> None:
        """Forget a prompt that was deleted."""
        with self._lock:
            for key in [key for key in self._items if key.prompt_id == prompt_id]:
                self._drop(key)

    def used_at(self, key: PromptKey) -> float | None:
        """When it was last asked for, in seconds since the epoch; None if it is not here."""
        with self._lock:
            item = self._items.get(key)
            return None if item is None else item.used_at

    def residency(self) -> Residency:
        """How much is here."""
        with self._lock:
            pinned = sum(key.prompt_id in self._pinned for key in self._items)
            return Residency(len(self._items), self._bytes, pinned)

    def _make_room(self) -> None:
        """Drop the least recently used; the newest stays even if it is too large by itself."""
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
