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
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from sharpzo_engine.errors import BackboneError

if TYPE_CHECKING:
    from sharpzo_engine.tokens import PromptTokens

#: Packed rows per chunk. The GEMMs are near their peak rate from about a thousand rows on, and the
#: MLP's activations (rows x 4W floats) still fit a processor's outer cache.
MAX_TOKENS = {"cpu": 2048, "cuda": 65_536}
_QUICK_GELU = 1.702


class TextEncoder(Protocol):
    """Context vectors in, class matrices out."""

    def encode(self, context: Tensor) -> Tensor:
        """`context` [n, M, W] -> L2-normalised class embeddings [n, C, E]."""
        ...


@dataclass(frozen=True)
class BlockWeights:
    """One transformer block, with constant factors folded into the weights.

    Folded: the attention scale into the query rows, LayerScale into the output projections, and
    QuickGELU's constant around the activation, which then is SiLU: x s(ax) = silu(ax) / a.
    """

    norm_1: tuple[Tensor, Tensor, float]
    qkv: tuple[Tensor, Tensor]  # [3W, W], [3W]
    out: tuple[Tensor, Tensor]  # [W, W], [W]
    norm_2: tuple[Tensor, Tensor, float]
    fc: tuple[Tensor, Tensor]  # [4W, W], [4W]
    proj: tuple[Tensor, Tensor]  # [W, 4W], [W]
    quick: bool

    def attend(self, x: Tensor) -> Tensor:
        """LayerNorm and the packed q, k, v projections: [..., W] -> [..., 3W]."""
        return functional.linear(_layer_norm(x, self.norm_1), *self.qkv)

    def keys_values(self, x: Tensor) -> Tensor:
        """LayerNorm and the k, v projections alone: [..., W] -> [..., 2W]."""
        width = x.shape[-1]
        weight, bias = self.qkv
        return functional.linear(_layer_norm(x, self.norm_1), weight[width:], bias[width:])

    def queries(self, x: Tensor) -> Tensor:
        """LayerNorm and the q projection alone: [..., W] -> [..., W]."""
        width = x.shape[-1]
        weight, bias = self.qkv
        return functional.linear(_layer_norm(x, self.norm_1), weight[:width], bias[:width])

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Output projection, MLP and both residual sums; both [..., W] -> [..., W]."""
        x = x + functional.linear(attended, *self.out)
        hidden = functional.linear(_layer_norm(x, self.norm_2), *self.fc)
        hidden = functional.silu(hidden) if self.quick else functional.gelu(hidden)
        return x + functional.linear(hidden, *self.proj)


@dataclass(frozen=True)
class TowerWeights:
    """A causal text tower with EOT readout, as plain tensors."""

    blocks: tuple[BlockWeights, ...]
    heads: int
    final_norm: tuple[Tensor, Tensor, float]
    projection: tuple[Tensor, Tensor | None]  # [E, W], [E] or none
    token_embedding: Tensor  # [vocabulary, W]
    positional_embedding: Tensor  # [positions, W]

    @property
    def width(self) -> int:
        """W."""
        return int(self.token_embedding.shape[1])

    def read_out(self, x: Tensor) -> Tensor:
        """Final LayerNorm, projection, L2 normalisation: [..., W] -> [..., E]."""
        x = functional.linear(_layer_norm(x, self.final_norm), *self.projection)
        return functional.normalize(x, dim=-1)


def read_tower(text: nn.Module) -> TowerWeights:
    """Read the weights of an open_clip text tower.

    Raises:
        BackboneError: the tower is not causal with EOT readout, naming what differs.
    """
    reason = _unsupported(text)
    if reason:
        raise BackboneError(
            f"this text tower {reason}; SharpZO needs a causal tower read out at EOT "
            "(such as ViT-B-16, ViT-L-14 or RN50)"
        )
    heads = _heads(text.transformer.resblocks[0])
    projection = text.text_projection
    linear = (
        (projection.weight, projection.bias)
        if isinstance(projection, nn.Linear)
        else (projection.t().contiguous(), None)
    )
    return TowerWeights(
        blocks=tuple(_read_block(block, heads) for block in text.transformer.resblocks),
        heads=heads,
        final_norm=_norm(text.ln_final),
        projection=linear,
        token_embedding=text.token_embedding.weight.detach(),
        positional_embedding=text.positional_embedding.detach(),
    )


def _unsupported(text: nn.Module) -> str | None:
    """What keeps a tower from being read, in words that complete 'this text tower ...'."""
    pool = getattr(text, "text_pool_type", getattr(text, "pool_type", None))
    if not hasattr(text, "transformer") or not hasattr(text.transformer, "resblocks"):
        return "is not open_clip's own (for example a Hugging Face encoder)"
    if getattr(text, "attn_mask", None) is None:
        return "is bidirectional"
    if pool not in ("argmax", "eos") or getattr(text, "cls_emb", None) is not None:
        return f"is read out at {pool!r}, not at EOT"
    if text.text_projection is None:
        return "has no projection into the joint space"
    return next(filter(None, map(_unsupported_block, text.transformer.resblocks)), None)


def _unsupported_block(block: nn.Module) -> str | None:
    attention = block.attn
    extras = [getattr(attention, n, None) for n in ("ln_q", "ln_k", "ln_inner")]
    extras += [getattr(block, "ln_attn", None), getattr(block.mlp, "ln", None)]
    scales = [getattr(attention, name, None) for name in ("logit_scale", "head_scale")]
    if any(extra is not None and not isinstance(extra, nn.Identity) for extra in extras):
        return "has extra normalisation in its blocks"
    if any(scale is not None for scale in scales):
        return "scales its attention by learned factors"
    if attention.in_proj_weight is None or attention.in_proj_bias is None:
        return "has separate attention projections"
    if not _is_quick(block.mlp.gelu) and not _is_gelu(block.mlp.gelu):
        return f"uses the activation {type(block.mlp.gelu).__name__}"
    return None


def _is_gelu(activation: nn.Module) -> bool:
    return isinstance(activation, nn.GELU) and activation.approximate == "none"


def _is_quick(activation: nn.Module) -> bool:
    return type(activation).__name__ == "QuickGELU"


def _heads(block: nn.Module) -> int:
    return int(block.attn.num_heads)


def _norm(module: nn.Module) -> tuple[Tensor, Tensor, float]:
    return module.weight.detach(), module.bias.detach(), float(module.eps)


def _linear(module: nn.Module) -> tuple[Tensor, Tensor]:
    return module.weight.detach(), module.bias.detach()


def _read_block(block: nn.Module, heads: int) -> BlockWeights:
    width = block.attn.in_proj_weight.shape[1]
    quick = _is_quick(block.mlp.gelu)
    gain = _QUICK_GELU if quick else 1.0
    query_scale = torch.ones(3 * width, 1, device=block.attn.in_proj_weight.device)
    query_scale[:width] = (width // heads) ** -0.5
    qkv_weight = block.attn.in_proj_weight.detach() * query_scale
    qkv_bias = block.attn.in_proj_bias.detach() * query_scale[:, 0]
    fc_weight, fc_bias = _linear(block.mlp.c_fc)
    return BlockWeights(
        norm_1=_norm(block.ln_1),
        qkv=(qkv_weight, qkv_bias),
        out=_scaled(_linear(block.attn.out_proj), _layer_scale(block.ls_1)),
        norm_2=_norm(block.ln_2),
        fc=(fc_weight * gain, fc_bias * gain),
        proj=_scaled(_linear(block.mlp.c_proj), _layer_scale(block.ls_2), 1 / gain),
        quick=quick,
    )


def _layer_scale(module: nn.Module) -> Tensor | None:
    return None if isinstance(module, nn.Identity) else module.gamma.detach()


def _scaled(
    linear: tuple[Tensor, Tensor], gamma: Tensor | None, weight_gain: float = 1.0
) -> tuple[Tensor, Tensor]:
    weight, bias = linear[0] * weight_gain, linear[1]
    return (weight, bias) if gamma is None else (weight * gamma[:, None], bias * gamma)


def _layer_norm(x: Tensor, norm: tuple[Tensor, Tensor, float]) -> Tensor:
    weight, bias, eps = norm
    return functional.layer_norm(x, weight.shape, weight, bias, eps)


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
        """SOS attends to itself alone, so its value is its attention output, for every candidate."""
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
            x = block.finish(x, self._attend(pack, *qkv.chunk(3, dim=-1), *prefixes[layer]))
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
        return x.unflatten(-1, (self._tower.heads, -1)).transpose(-2, -3)

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

    def __init__(self, text: nn.Module, tokens: PromptTokens) -> None:
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
