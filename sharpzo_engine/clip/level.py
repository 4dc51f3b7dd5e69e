"""What an encoder can answer. Loads no torch."""

from __future__ import annotations

from enum import StrEnum


class Level(StrEnum):
    """What an encoder can answer; every level includes the ones before it."""

    IMAGES = "images"  #: images -> embeddings: heads
    TEXTS = "texts"  #: and strings -> embeddings: zero-shot
    CONTEXTS = "contexts"  #: and context vectors -> class embeddings: prompt tuning
    TANGENTS = "tangents"  #: and their exact directional derivatives

    def includes(self, other: Level) -> bool:
        """Whether an encoder of this level answers what the other level stands for."""
        order = list(Level)
        return order.index(self) >= order.index(other)
