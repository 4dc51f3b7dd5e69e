"""The weights of open_clip's causal text towers, read into plain tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn, ones
from torch.nn import functional

from sharpzo_engine.errors import BackboneError

OpenClipModule = Any  # open_clip's modules declare no attributes

_QUICK_GELU = 1.702


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


def read_tower(text: OpenClipModule) -> TowerWeights:
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


def _unsupported(text: OpenClipModule) -> str | None:
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


def _unsupported_block(block: OpenClipModule) -> str | None:
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


def _is_gelu(activation: OpenClipModule) -> bool:
    return isinstance(activation, nn.GELU) and activation.approximate == "none"


def _is_quick(activation: OpenClipModule) -> bool:
    return type(activation).__name__ == "QuickGELU"


def _heads(block: OpenClipModule) -> int:
    return int(block.attn.num_heads)


def _norm(module: OpenClipModule) -> tuple[Tensor, Tensor, float]:
    return module.weight.detach(), module.bias.detach(), float(module.eps)


def _linear(module: OpenClipModule) -> tuple[Tensor, Tensor]:
    return module.weight.detach(), module.bias.detach()


def _read_block(block: OpenClipModule, heads: int) -> BlockWeights:
    width = block.attn.in_proj_weight.shape[1]
    quick = _is_quick(block.mlp.gelu)
    gain = _QUICK_GELU if quick else 1.0
    query_scale = ones(3 * width, 1, device=block.attn.in_proj_weight.device)
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


def _layer_scale(module: OpenClipModule) -> Tensor | None:
    return None if isinstance(module, nn.Identity) else module.gamma.detach()


def _scaled(
    linear: tuple[Tensor, Tensor], gamma: Tensor | None, weight_gain: float = 1.0
) -> tuple[Tensor, Tensor]:
    weight, bias = linear[0] * weight_gain, linear[1]
    return (weight, bias) if gamma is None else (weight * gamma[:, None], bias * gamma)


def _layer_norm(x: Tensor, norm: tuple[Tensor, Tensor, float]) -> Tensor:
    weight, bias, eps = norm
    return functional.layer_norm(x, weight.shape, weight, bias, eps)
