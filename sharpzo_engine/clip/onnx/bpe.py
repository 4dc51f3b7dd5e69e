"""CLIP's byte-pair tokenizer as a `tokenizer.json`, which needs neither torch nor open_clip."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

import ftfy
import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from sharpzo_engine.errors import BackboneError

START, END = "<start_of_text>", "<end_of_text>"
_END_OF_WORD = "</w>"
#: Words, single digits and runs of signs; English contractions are split off.
_PIECES = r"(?i)'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class BpeTokenizer:
    """Texts -> token ids, as open_clip's `SimpleTokenizer`."""

    def __init__(self, tokenizer: Tokenizer, length: int) -> None:
        """`length` is the number of positions of the text tower."""
        self._tokenizer = tokenizer
        self._length = length
        vocabulary = tokenizer.get_vocab()
        self.start, self.end = vocabulary[START], vocabulary[END]

    @classmethod
    def build(
        cls, vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]], length: int
    ) -> BpeTokenizer:
        """From the vocabulary and the merges of a byte-pair encoding, most frequent first."""
        model = models.BPE(
            vocab=dict(vocabulary), merges=list(merges), end_of_word_suffix=_END_OF_WORD
        )
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_PIECES), "removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        return cls(tokenizer, length)

    @classmethod
    def load(cls, path: Path, length: int) -> BpeTokenizer:
        """Read a `tokenizer.json`.

        Raises:
            BackboneError: it is damaged.
        """
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise BackboneError(f"{path.name} is damaged (export the encoder again)") from error
        if tokenizer.token_to_id(START) is None or tokenizer.token_to_id(END) is None:
            raise BackboneError(f"{path.name} is not CLIP's tokenizer")
        return cls(tokenizer, length)

    def save(self, path: Path) -> None:
        """Write a `tokenizer.json`."""
        self._tokenizer.save(str(path))

    def __call__(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Texts -> ids [n, length]: SOS, tokens, EOT, zeros; a text that is too long is cut."""
        rows = np.zeros((len(texts), self._length), np.int64)
        for row, text in zip(rows, texts, strict=True):
            ids = self._tokenizer.encode(_clean(text), add_special_tokens=False).ids
            ids = [self.start, *ids, self.end]
            if len(ids) > self._length:
                ids = [*ids[: self._length - 1], self.end]
            row[: len(ids)] = ids
        return rows


def _clean(text: str) -> str:
    """Repair encodings and entities, join white space, lower the case."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()
