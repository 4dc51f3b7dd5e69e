"""`TextTangent`: directional derivatives of the class embeddings, in forward mode.

The encoder is run once at a context and records what the rules below need (a tape). Then tangents
of many directions are propagated together. Every rule is the exact derivative of one step:

- affine map:   d(x W^T + b) = dx W^T;
- LayerNorm:    dy = g r (dx - mean(dx) - z mean(z dx)), with r = 1 / std(x), z = r (x - mean(x));
- attention:    for S = Q K^T / sqrt(D), A = softmax(S), O = A V:
                dS = (dQ K^T + Q dK^T) / sqrt(D), dA = A (dS - sum(A dS)), dO = dA V + A dV;
- activation:   da = a'(h) dh;
- unit norm:    for t = e / |e|: dt = (de - t <t, de>) / |e|.

Only the context's rows have tangents at the input, SOS never has one, and the last layer computes
only the EOT rows. Shapes are those of `text_encoder`, with q directions instead of n candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from sharpzo_engine.clip.parallel import even_slices, map_chunks
from sharpzo_engine.clip.torch.text_encoder import ForwardTextEncoder, Pack, join_heads
from sharpzo_engine.clip.torch.text_tower import Block, Norm

#: Packs whose tapes are kept from the loss to the slopes (about 250 KiB per row in a tower of width
#: 512). If there are more packs, tapes are recorded again when they are needed.
MAX_TAPES = 4


class TextTangent:
    """T(ctx) [C, E] at one context, and the products of its Jacobian."""

    def __init__(self, encoder: ForwardTextEncoder, context: Tensor) -> None:
        """Encode `context` [M, W]; keeps at most `MAX_TAPES` tapes."""
        self._encoder = encoder
        self._context = context
        self._tapes: list[_PackTape] = []
        if len(encoder.packs) > MAX_TAPES:
            self.embeddings = encoder.encode(context[None])[0]
            return
        self._tapes = list(map_chunks(self._record, encoder.packs, encoder.on_cpu))
        self.embeddings = context.new_empty(encoder.classes, encoder.tower.embed_dim)
        for tape in self._tapes:
            self.embeddings[tape.pack.classes] = tape.embeddings

    def products(self, directions: Tensor) -> Tensor:
        """Tangents dT_j [q, C, E] for `directions` [q, M, W] of the context."""
        found = torch.empty(len(directions), *self.embeddings.shape, device=self.embeddings.device)
        for tape in self._each_tape():
            found[:, tape.pack.classes] = self._map(tape, directions, lambda tangents: tangents)
        return found

    def slopes(self, directions: Tensor, cotangent: Tensor) -> Tensor:
        """<cotangent, dT_j> [q] for `directions` [q, M, W] of the context, cotangent [C, E]."""
        found = torch.zeros(len(directions), device=cotangent.device)
        for tape in self._each_tape():
            contract = partial(torch.einsum, "ce,qce->q", cotangent[tape.pack.classes])
            found += self._map(tape, directions, contract)
        return found

    def _each_tape(self) -> Iterable[_PackTape]:
        return self._tapes or map(self._record, self._encoder.packs)

    def _map(
        self, tape: _PackTape, directions: Tensor, function: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """`function` of a pack's tangents [q', C', E], over chunks of directions."""
        on_cpu = self._encoder.on_cpu
        size = max(1, self._encoder.max_rows // tape.pack.rows)

        @torch.inference_mode()
        def apply(part: slice) -> Tensor:
            return function(tape.tangents(directions[part]))

        parts = even_slices(len(directions), size, on_cpu)
        return torch.cat(list(map_chunks(apply, parts, on_cpu)))

    @torch.inference_mode()
    def _record(self, pack: Pack) -> _PackTape:
        return _PackTape(self._encoder, self._context, pack)


class _PackTape:
    """One pack's forward pass at one context, and its derivative."""

    def __init__(self, encoder: ForwardTextEncoder, context: Tensor, pack: Pack) -> None:
        self.pack = pack
        self._encoder = encoder
        self._layers: list[_BlockTape] = []
        *blocks, last = encoder.tower.blocks
        x, queries, keys_values = encoder.enter(context[None], pack)
        for layer, block in enumerate(blocks):
            norm = _NormTape.record(block.norm_1, x)
            if layer:
                queries, keys_values = block.attend(x)
            attention = self._attention(queries, keys_values, layer, pack.mask)
            x = self._finish(block, norm, attention, x, attention.output)
        normed = last.norm_1(x)
        queries = last.queries(normed[:, pack.ends])[:, pack.end_slots]
        attention = self._attention(queries, last.keys_values(normed), -1, pack.end_mask)
        attended = attention.output[:, pack.end_places]
        norm = _NormTape.record(last.norm_1, x)
        x = self._finish(last, norm, attention, x[:, pack.ends], attended)
        self._final_norm = _NormTape.record(encoder.tower.final_norm, x)
        projected = encoder.tower.projection(encoder.tower.final_norm(x))[0]
        self._lengths: Tensor = projected.norm(dim=-1, keepdim=True)
        self.embeddings = projected / self._lengths

    def _attention(
        self, queries: Tensor, keys_values: Tensor, layer: int, mask: Tensor
    ) -> _AttentionTape:
        sos = self._encoder.sos[layer]
        keys, values = self._encoder.join_prefix(keys_values, sos, self.pack)
        heads = self._encoder.split_heads(queries, self.pack)
        return _AttentionTape.record(heads, keys, values, mask)

    def _finish(
        self,
        block: Block,
        norm_1: _NormTape,
        attention: _AttentionTape,
        x: Tensor,
        attended: Tensor,
    ) -> Tensor:
        """Record a block and return its output."""
        x = block.out(attended).add_(x)
        hidden = block.fc(block.norm_2(x))
        slope = _silu_slope(hidden) if block.quick else _gelu_slope(hidden)
        tape = _BlockTape(block, norm_1, attention, _NormTape.record(block.norm_2, x), slope)
        self._layers.append(tape)
        return block.proj(functional.silu(hidden) if block.quick else functional.gelu(hidden)) + x

    def tangents(self, directions: Tensor) -> Tensor:
        """Context directions [q, M, W] -> tangents dT of the pack's embeddings [q, C', E]."""
        *layers, last = self._layers
        rest = self.pack.rows - directions.shape[1]
        dx = functional.pad(directions, (0, 0, 0, rest))
        for tape in layers:
            dqueries, dkeys_values = tape.attend(dx)
            dx = tape.finish(dx, self._attended(tape, dqueries, dkeys_values))
        dnormed = last.norm_1.differential(dx)
        dqueries = last.block.queries.differential(dnormed[:, self.pack.ends])
        dkeys_values = last.block.keys_values.differential(dnormed)
        dattended = self._attended(last, dqueries[:, self.pack.end_slots], dkeys_values)
        dx = last.finish(dx[:, self.pack.ends], dattended[:, self.pack.end_places])
        return self._read_out(dx)

    def _attended(self, tape: _BlockTape, dqueries: Tensor, dkeys_values: Tensor) -> Tensor:
        still = dkeys_values.new_zeros(dkeys_values.shape[-1])  # SOS has no tangent
        dkeys, dvalues = self._encoder.join_prefix(dkeys_values, still, self.pack)
        heads = self._encoder.split_heads(dqueries, self.pack)
        return join_heads(tape.attention.differential(heads, dkeys, dvalues), len(dqueries))

    def _read_out(self, dx: Tensor) -> Tensor:
        unit = self.embeddings
        de = self._encoder.tower.projection.differential(self._final_norm.differential(dx))
        across: Tensor = de - unit * (unit * de).sum(-1, keepdim=True)
        return across / self._lengths


@dataclass(frozen=True)
class _BlockTape:
    """What a transformer block's derivative needs."""

    block: Block
    norm_1: _NormTape
    attention: _AttentionTape
    norm_2: _NormTape
    slope: Tensor  # a'(h) [1, rows, 4W]

    def attend(self, dx: Tensor) -> tuple[Tensor, Tensor]:
        """[q, R, W] -> tangents of the queries [q, R, W] and the keys and values [q, R, 2W]."""
        dnormed = self.block.queries.enter(self.norm_1.differential(dx))
        queries, keys_values = self.block.queries, self.block.keys_values
        return queries.differential(dnormed), keys_values.differential(dnormed)

    def finish(self, dx: Tensor, dattended: Tensor) -> Tensor:
        """Output projection, MLP and both residual sums; both [q, rows, W] -> [q, rows, W]."""
        dx = self.block.out.differential(dattended).add_(dx)
        dhidden = self.block.fc.differential(self.norm_2.differential(dx)).mul_(self.slope)
        return self.block.proj.differential(dhidden).add_(dx)


@dataclass(frozen=True)
class _NormTape:
    """What LayerNorm's derivative needs."""

    normal: Tensor  # z [1, rows, W]
    inverse_std: Tensor  # r [1, rows, 1]
    weight: Tensor  # g [W]

    @classmethod
    def record(cls, norm: Norm, x: Tensor) -> _NormTape:
        variance, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
        inverse_std = (variance + norm.eps).rsqrt()
        return cls((x - mean) * inverse_std, inverse_std, norm.weight)

    def differential(self, dx: Tensor) -> Tensor:
        """[q, rows, W] -> [q, rows, W]."""
        along = (self.normal * dx).mean(dim=-1, keepdim=True)
        change = (dx - dx.mean(dim=-1, keepdim=True)).addcmul_(self.normal, along, value=-1)
        return change.mul_(self.inverse_std).mul_(self.weight)


@dataclass(frozen=True)
class _AttentionTape:
    """What attention's derivative needs, N = n_blocks at one context."""

    queries: Tensor  # Q / sqrt(D) [N, H, rows, D]
    keys: Tensor  # K^T / sqrt(D) [N, H, D, P + B]
    values: Tensor  # [N, H, P + B, D]
    weights: Tensor  # A [N, H, rows, P + B]
    output: Tensor  # [1, N * rows, W]

    @classmethod
    def record(cls, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> _AttentionTape:
        queries = queries.contiguous() / math.sqrt(queries.shape[-1])
        keys, values = keys.transpose(-1, -2).contiguous(), values.contiguous()
        weights = (queries @ keys + mask[:, None]).softmax(dim=-1)
        output = join_heads(weights @ values, 1)
        return cls(queries, keys / math.sqrt(keys.shape[-2]), values, weights, output)

    def differential(self, dqueries: Tensor, dkeys: Tensor, dvalues: Tensor) -> Tensor:
        """Tangents [q * N, H, ...] -> of the output [q * N, H, rows, D]."""
        dqueries, dkeys, dvalues = (
            t.unflatten(0, (-1, len(self.queries))) for t in (dqueries, dkeys, dvalues)
        )
        change = dqueries @ self.keys
        change += self.queries @ dkeys.transpose(-1, -2)
        change *= self.weights
        change -= self.weights * change.sum(dim=-1, keepdim=True)
        return (change @ self.values).add_(self.weights @ dvalues).flatten(0, 1)


def _gelu_slope(x: Tensor) -> Tensor:
    """d/dx of x Phi(x): Phi(x) + x phi(x)."""
    density = torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return 0.5 * (1 + torch.erf(x / math.sqrt(2))) + x * density


def _silu_slope(x: Tensor) -> Tensor:
    """d/dx of x s(x): s(x) (1 + x (1 - s(x)))."""
    gate = x.sigmoid()
    return gate * (1 + x * (1 - gate))
