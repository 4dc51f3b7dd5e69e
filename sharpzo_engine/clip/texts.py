"""Embeddings of whole texts, through the same text encoder that prompts go through."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from sharpzo_engine.clip.encoder import Encoder, Floats, TokenEncoder
from sharpzo_engine.clip.tokens import PromptTokens, Tokenizer, until_end
from sharpzo_engine.errors import TextError

#: Context rows at a time.
MAX_ROWS = 4096


def encode_texts(encoder: TokenEncoder, tokenizer: Tokenizer, texts: Sequence[str]) -> Floats:
    """Texts -> L2-normalised embeddings [n, E], with an encoder of level `contexts`.

    A text is a context whose only class is the end of the text; texts of one length are encoded
    together.

    Raises:
        TextError: a text has no tokens, or too many.
    """
    rows = token_ids(tokenizer, texts)
    lengths: dict[int, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        lengths[len(row)].append(index)
    found = np.empty((len(rows), encoder.embed_dim), np.float32)
    for length, indices in lengths.items():
        step = max(1, MAX_ROWS // length)
        for start in range(0, len(indices), step):
            part = indices[start : start + step]
            found[part] = _encode(encoder, [rows[index] for index in part])
    return found


def template_embeddings(
    encoder: Encoder, templates: Sequence[str], class_names: Sequence[str]
) -> Floats:
    """L2-normalised means over the templates [C, E], of class names put in place of `{}`.

    Raises:
        LevelMissing: the encoder knows no texts.
        TextError: a text is too long for the text tower.
    """
    names = [name.replace("_", " ") for name in class_names]
    texts = [template.replace("{}", name) for template in templates for name in names]
    embeddings = encoder.encode_texts(texts).reshape(len(templates), len(names), -1)
    mean = embeddings.mean(0)
    unit: Floats = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    return unit


def token_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Each text's ids, from the first of the text to the last, with SOS and EOT.

    Raises:
        TextError: a text has no tokens, or too many.
    """
    table = tokenizer(list(texts)) if texts else np.empty((0, 0), np.int64)
    rows = [until_end(row) for row in table.tolist()]
    for index, row in enumerate(rows):
        if len(row) == len(("SOS", "EOT")):
            raise TextError("has no tokens (write at least one word)", index)
        if len(row) == table.shape[1]:  # the tokenizer truncates
            raise TextError(f"has more than {table.shape[1] - 3} tokens (shorten it)", index)
    return rows


def count_tokens(encoder: Encoder, texts: Sequence[str]) -> int:
    """Tokens of these texts, SOS and EOT included; 0 if the encoder has no tokenizer here."""
    tokenizer: Tokenizer | None = getattr(encoder, "tokenizer", None)
    return 0 if tokenizer is None else sum(map(len, token_ids(tokenizer, texts)))


def _encode(encoder: TokenEncoder, rows: Sequence[Sequence[int]]) -> Floats:
    """Rows of equal length -> embeddings [n, E]."""
    sos, *words, end = rows[0]
    tokens = PromptTokens(sos, tuple(words), ((end,),))
    contexts = [encoder.token_embeddings(row[1:-1]) for row in rows]
    return encoder.text_encoder(tokens).encode(np.stack(contexts))[:, 0]
