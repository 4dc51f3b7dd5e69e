"""Class prompts as token ids: `[SOS, context, name, ".", EOT]`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sharpzo_engine.errors import ConfigError, DatasetError

#: Texts -> ids [n, positions], zero-padded.
Tokenizer = Callable[[Sequence[str]], NDArray[np.int64]]


@dataclass(frozen=True)
class PromptTokens:
    """Token ids of one job's prompts."""

    sos: int
    context: tuple[int, ...]  #: M ids, shared by all classes
    suffixes: tuple[tuple[int, ...], ...]  #: per class: name, ".", EOT

    @property
    def ends(self) -> list[int]:
        """Position of EOT in each full prompt."""
        return [len(self.context) + len(suffix) for suffix in self.suffixes]

    def padded(self, length: int) -> list[list[int]]:
        """Full prompts, zero-padded to `length` positions."""
        rows = [[self.sos, *self.context, *suffix] for suffix in self.suffixes]
        return [row + [0] * (length - len(row)) for row in rows]


def tokenize_prompts(
    tokenizer: Tokenizer, context: str, class_names: Sequence[str]
) -> PromptTokens:
    """Tokenise "{context} {name}." for every class.

    Raises:
        ConfigError: the context has no tokens, or leaves no room for a name.
        DatasetError: a class name is too long for the text tower.
    """
    alone = _sentence(tokenizer, context)
    size = len(alone) - 2  # without SOS and EOT
    if size < 1:
        raise ConfigError("prompt.context: has no tokens (use words such as 'a photo of a')")
    prompts = [f"{context} {name.replace('_', ' ')}." for name in class_names]
    rows = tokenizer(prompts)
    limit = rows.shape[1]
    if size > limit - 3:
        raise ConfigError(f"prompt.context: {size} tokens are too many (use at most {limit - 3})")
    sentences = [until_end(row) for row in rows.tolist()]
    for name, sentence in zip(class_names, sentences, strict=True):
        # The tokenizer truncates a prompt that is too long and puts EOT at the last position.
        if len(sentence) == limit:
            raise DatasetError(
                f"class name {name[:40]!r} is too long for the text tower (shorten it)"
            )
    head = alone[: 1 + size]
    if any(sentence[: 1 + size] != head for sentence in sentences):
        raise ConfigError(
            "prompt.context: its tokens depend on the class name (end it with a whole word)"
        )
    suffixes = tuple(tuple(sentence[1 + size :]) for sentence in sentences)
    return PromptTokens(alone[0], tuple(alone[1 : 1 + size]), suffixes)


def _sentence(tokenizer: Tokenizer, text: str) -> list[int]:
    return until_end(tokenizer([text])[0].tolist())


def until_end(row: list[int]) -> list[int]:
    """Cut the padding: EOT is the highest id of CLIP's vocabulary."""
    return row[: row.index(max(row)) + 1]
