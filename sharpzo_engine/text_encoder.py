"""The hot path: class prompts through CLIP's causal text tower, computing only what is needed.

A loss at one search point is C class prompts `[SOS, context, name, ".", EOT]` through the text
tower. The tower is causal and reads out at EOT, and `SOS + context` is the same for every class of
one candidate. So, exactly (the plain forward is `PlainTextEncoder`):

1. nothing after EOT is computed;
2. keys and values of the context are computed once per candidate and shared by all its classes;
   those of SOS, which sees only itself, once per job;
3. suffixes (name, ".", EOT) of all classes are packed one behind the other, none is padded;
4. the first layer's projections of the suffixes, which no candidate changes, are computed once per
   job, and the last layer computes its queries, attention and MLP for the EOT rows alone;
5. many candidates go through together, in chunks of `max_tokens` packed rows.

Shapes: n candidates, M context tokens, C classes, T suffix tokens of all classes, P = 1 + M prefix
positions, H heads of size D, W = H * D the width, E the embedding width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from sharpzo_engine.text_tower import OpenClipModule, TowerWeights
from sharpzo_engine.tokens import PromptTokens

#: Packed rows per chunk. On a processor a chunk runs on one core: its GEMMs are near their peak
#: rate from a few hundred rows on, while the MLP's activations (rows x 4W floats) stay in cache.
MAX_TOKENS = {"cpu": 512, "cuda": 65_536}


class TextEncoder(Protocol):
    """Context vectors in, class matrices out."""

    @property
    def candidates_per_chunk(self) -> int:
        """Candidates that are best encoded together."""
        ...

    def encode(self, context: Tensor) -> Tensor:
        """`context` [n, M, W] -> L2-normalised class embeddings [n, C, E]."""
        ...


@dataclass(frozen=True)
class _Group:
    """Classes of one suffix length, a contiguous slice of the packed rows."""

    rows: slice
    classes: int
    length: int


@dataclass(frozen=True)
class _Pack:
    """Some classes' suffixes behind one another, with what no candidate changes."""

    classes: slice  # in the encoder's order (by length)
    groups: tuple[_Group, ...]
    embeddings: Tensor  # [T, W]
    first_qkv: Tensor  # [T, 3W]
    last_rows: Tensor  # [classes], the EOT rows


class ForwardTextEncoder:
    """Exact, forward-only encoder of one job's class prompts (see the module's docstring)."""

    def __init__(
        self, tower: TowerWeights, tokens: PromptTokens, max_tokens: int | None = None
    ) -> None:
        """Precompute what no candidate changes, without gradients."""
        device = tower.token_embedding.device
        self._tower = tower
        self._context_length = len(tokens.context)
        self.max_tokens = max_tokens or MAX_TOKENS.get(device.type, MAX_TOKENS["cpu"])
        order = sorted(range(len(tokens.suffixes)), key=lambda c: len(tokens.suffixes[c]))
        self._inverse = torch.tensor(order, device=device).argsort()
        suffixes = [tokens.suffixes[c] for c in order]
        self.suffix_tokens = sum(map(len, suffixes))
        with torch.inference_mode():
            self._sos = self._sos_keys_values(tokens.sos)
            self._packs = [self._pack(suffixes, part) for part in self._partition(suffixes)]

    @property
    def candidates_per_chunk(self) -> int:
        """Candidates whose packed rows fill one chunk; at least one."""
        return max(1, self.max_tokens // (self.suffix_tokens + self._context_length))

    def encode(self, context: Tensor) -> Tensor:
        """`context` [n, M, W] (without positions) -> L2-normalised class embeddings [n, C, E]."""
        chunks = context.split(self.candidates_per_chunk)
        return torch.cat([self._encode_chunk(chunk) for chunk in chunks])

    def _encode_chunk(self, context: Tensor) -> Tensor:
        prefixes = self._prefix_keys_values(context)
        packed = torch.cat([self._encode_pack(pack, prefixes) for pack in self._packs], dim=1)
        return self._tower.read_out(packed)[:, self._inverse]

    def _partition(self, suffixes: Sequence[Sequence[int]]) -> Iterator[slice]:
        """Cut the classes so that one candidate's rows never exceed a chunk."""
        start, rows = 0, 0
        for index, suffix in enumerate(suffixes):
            if rows and rows + len(suffix) > self.max_tokens:
                yield slice(start, index)
                start, rows = index, 0
            rows += len(suffix)
        yield slice(start, len(suffixes))

    def _sos_keys_values(self, sos: int) -> list[tuple[Tensor, Tensor]]:
        """SOS attends to itself alone: its value is its attention output, for every candidate."""
        tower = self._tower
        x = (tower.token_embedding[sos] + tower.positional_embedding[0])[None]
        found = []
        for block in tower.blocks:
            _, keys, values = block.attend(x).chunk(3, dim=-1)
            found.append((self._split_heads(keys), self._split_heads(values)))
            x = block.finish(x, values)
        return found

    def _pack(self, suffixes: Sequence[Sequence[int]], part: slice) -> _Pack:
        tower, device = self._tower, self._tower.token_embedding.device
        chosen = suffixes[part]
        first = 1 + self._context_length
        ids = torch.tensor([i for suffix in chosen for i in suffix], device=device)
        positions = torch.tensor([first + k for s in chosen for k in range(len(s))], device=device)
        embeddings = tower.token_embedding[ids] + tower.positional_embedding[positions]
        lengths = torch.tensor([len(suffix) for suffix in chosen], device=device)
        return _Pack(
            part,
            tuple(_group_by_length([len(suffix) for suffix in chosen])),
            embeddings,
            tower.blocks[0].attend(embeddings),
            lengths.cumsum(0) - 1,
        )

    def _prefix_keys_values(self, context: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Per layer, keys and values of SOS and context: each [n, H, P, D]."""
        tower = self._tower
        length = self._context_length
        x = context + tower.positional_embedding[1 : 1 + length]
        causal = torch.ones(length, 1 + length, device=x.device, dtype=torch.bool).tril(1)
        found = []
        for layer, block in enumerate(tower.blocks):
            last = layer == len(tower.blocks) - 1
            projected = block.keys_values(x) if last else block.attend(x)
            *queries, keys, values = projected.chunk(2 if last else 3, dim=-1)
            k = self._behind_sos(self._sos[layer][0], keys)
            v = self._behind_sos(self._sos[layer][1], values)
            found.append((k, v))
            if queries:
                scores = self._split_heads(queries[0]) @ k.transpose(-1, -2)
                weights = scores.masked_fill(~causal, float("-inf")).softmax(-1)
                x = block.finish(x, _join_heads(weights @ v))
        return found

    def _behind_sos(self, sos: Tensor, rows: Tensor) -> Tensor:
        heads = self._split_heads(rows)
        return torch.cat([sos.expand(heads.shape[0], -1, -1, -1), heads], dim=2)

    def _encode_pack(self, pack: _Pack, prefixes: list[tuple[Tensor, Tensor]]) -> Tensor:
        """The last layer's EOT rows of one pack's classes: [n, classes, W]."""
        blocks = self._tower.blocks
        n = prefixes[0][0].shape[0]
        x = pack.embeddings.expand(n, -1, -1)
        qkv = pack.first_qkv.expand(n, -1, -1)
        for layer, block in enumerate(blocks[:-1]):
            if layer:
                qkv = block.attend(x)
            queries, keys, values = qkv.chunk(3, dim=-1)
            x = block.finish(x, self._attend(pack, queries, keys, values, *prefixes[layer]))
        last = blocks[-1]
        ends = x[:, pack.last_rows]
        keys, values = last.keys_values(x).chunk(2, dim=-1)
        return last.finish(
            ends, self._attend_from_ends(pack, last.queries(ends), keys, values, *prefixes[-1])
        )

    def _attend(
        self, pack: _Pack, q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor
    ) -> Tensor:
        """Causal attention of every suffix row to the prefix and its own class: [n, T, W]."""
        n, _, width = q.shape
        prefix_scores = self._split_heads(q) @ prefix_k.transpose(-1, -2)  # [n, H, T, P]
        positions = prefix_k.shape[2]
        prefix_weights, own = torch.empty_like(prefix_scores), []
        for group in pack.groups:
            shape = (n, group.classes, group.length)
            q_g, k_g, v_g = (self._by_class(t[:, group.rows], shape) for t in (q, k, v))
            mask = _future(group.length, q.device)
            own_scores = (q_g @ k_g.transpose(-1, -2)).masked_fill(mask, float("-inf"))
            before = prefix_scores[:, :, group.rows].unflatten(2, shape[1:]).transpose(1, 2)
            weights = torch.cat([before, own_scores], dim=-1).softmax(-1)
            to_prefix = weights[..., :positions].transpose(1, 2).flatten(2, 3)
            prefix_weights[:, :, group.rows] = to_prefix
            own.append((weights[..., positions:] @ v_g).transpose(2, 3).reshape(n, -1, width))
        return _join_heads(prefix_weights @ prefix_v) + torch.cat(own, dim=1)

    def _attend_from_ends(
        self, pack: _Pack, q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor
    ) -> Tensor:
        """Attention of the EOT rows alone (q has one row per class): [n, classes, W]."""
        n, _, width = q.shape
        prefix_scores = self._split_heads(q) @ prefix_k.transpose(-1, -2)  # [n, H, classes, P]
        positions = prefix_k.shape[2]
        prefix_weights, own, start = torch.empty_like(prefix_scores), [], 0
        for group in pack.groups:
            classes = slice(start, start + group.classes)
            start = classes.stop
            k_g, v_g = (
                self._by_class(t[:, group.rows], (n, group.classes, group.length)) for t in (k, v)
            )
            q_g = self._by_class(q[:, classes], (n, group.classes, 1))
            own_scores = q_g @ k_g.transpose(-1, -2)  # EOT sees all of its class
            before = prefix_scores[:, :, classes].transpose(1, 2).unsqueeze(3)
            weights = torch.cat([before, own_scores], dim=-1).softmax(-1)
            prefix_weights[:, :, classes] = weights[..., 0, :positions].transpose(1, 2)
            own.append((weights[..., positions:] @ v_g).reshape(n, group.classes, width))
        return _join_heads(prefix_weights @ prefix_v) + torch.cat(own, dim=1)

    def _split_heads(self, x: Tensor) -> Tensor:
        """[..., rows, W] -> [..., H, rows, D]."""
        heads: Tensor = x.unflatten(-1, (self._tower.heads, -1))
        return heads.transpose(-2, -3)

    def _by_class(self, x: Tensor, shape: tuple[int, int, int]) -> Tensor:
        """[n, classes * length, W] -> [n, classes, H, length, D]."""
        return x.reshape(*shape, self._tower.heads, -1).transpose(2, 3)


def _join_heads(x: Tensor) -> Tensor:
    """[..., H, rows, D] -> [..., rows, W]."""
    return x.transpose(-2, -3).flatten(-2)


def _future(length: int, device: torch.device) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool, device=device).triu(1)


def _group_by_length(lengths: Sequence[int]) -> Iterator[_Group]:
    """Runs of equal length in an ascending list."""
    start = 0
    for length in sorted(set(lengths)):
        classes = lengths.count(length)
        yield _Group(slice(start, start + classes * length), classes, length)
        start += classes * length


class PlainTextEncoder:
    """open_clip's own full-length forward, one candidate at a time: the oracle and the baseline."""

    candidates_per_chunk = 1

    def __init__(self, text: OpenClipModule, tokens: PromptTokens) -> None:
        """`text` is the open_clip module that holds the text tower."""
        self._text = text
        length = int(text.positional_embedding.shape[0])
        self._ids = torch.tensor(tokens.padded(length), device=text.positional_embedding.device)
        self._ends = torch.tensor(tokens.ends, device=self._ids.device)
        self._context = slice(1, 1 + len(tokens.context))

    def encode(self, context: Tensor) -> Tensor:
        """`context` [n, M, W] -> L2-normalised class embeddings [n, C, E]."""
        return torch.stack([self._encode_one(one) for one in context])

    def _encode_one(self, context: Tensor) -> Tensor:
        text = self._text
        x = text.token_embedding(self._ids)
        x[:, self._context] = context.to(x.dtype)
        x = text.transformer(x + text.positional_embedding, attn_mask=text.attn_mask)
        x = text.ln_final(x)[torch.arange(len(x), device=x.device), self._ends]
        projection = text.text_projection
        x = projection(x) if isinstance(projection, nn.Linear) else x @ projection
        return functional.normalize(x, dim=-1)
