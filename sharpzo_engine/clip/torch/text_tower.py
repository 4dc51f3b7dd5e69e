"""Reads the weights of open_clip's causal text towers into plain maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sharpzo_engine.clip.torch.linear import Linear, leave
from sharpzo_engine.errors import BackboneError

OpenClipModule = Any  # open_clip's modules declare no attributes

_QUICK_GELU = 1.702


@dataclass(frozen=True)
class Norm:
    """LayerNorm over the last dimension."""

    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """[..., W] -> [..., W]."""
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True)
class Block:
    """One transformer block, with constant factors folded into its maps.

    Folded: LayerScale into the output projections, and, if `folded`, QuickGELU's constant around
    the activation, which then is SiLU: x s(ax) = silu(ax) / a.
    """

    norm_1: Norm
    queries: Linear  # W -> W
    keys_values: Linear  # W -> 2W
    out: Linear  # W -> W
    norm_2: Norm
    fc: Linear  # W -> 4W
    proj: Linear  # 4W -> W
    quick: bool
    folded: bool = True

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """LayerNorm and projections: [..., W] -> queries [..., W], keys and values [..., 2W]."""
        normed = self.queries.enter(self.norm_1(x))
        return self.queries(normed), self.keys_values(normed)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Output projection, MLP and both residual sums; both [..., W] -> [..., W]."""
        x = self.out(attended).add_(x)
        hidden = self.fc.stay(self.fc.enter(self.norm_2(x)))
        return self.proj(self._activate(hidden)).add_(x)

    def _activate(self, hidden: Tensor) -> Tensor:
        """The MLP's activation; both in the layout of `proj`."""
        if not self.quick:
            return functional.gelu(hidden)
        hidden = leave(hidden)  # oneDNN's layout has no SiLU
        if self.folded:
            return self.proj.enter(functional.silu(hidden))
        hidden = functional.silu(hidden.mul_(_QUICK_GELU), inplace=True)
        return self.proj.enter(hidden.mul_(1 / _QUICK_GELU))


@dataclass(frozen=True)
class TowerWeights:
    """A causal text tower with EOT readout, as plain tensors."""

    blocks: tuple[Block, ...]
    heads: int
    final_norm: Norm
    projection: Linear  # W -> E
    token_embedding: Tensor  # [vocabulary, W]
    positional_embedding: Tensor  # [positions, W]

    @property
    def width(self) -> int:
        """W."""
        return int(self.token_embedding.shape[1])

    @property
    def head_width(self) -> int:
        """D."""
        return self.width // self.heads

    @property
    def embed_dim(self) -> int:
        """E."""
        return int(self.projection.weight.shape[0])

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the blocks."""
        return self.final_norm.weight.dtype

    def read_out(self, x: Tensor) -> Tensor:
        """Final LayerNorm, projection, L2 normalisation: [..., W] -> [..., E]."""
        return functional.normalize(self.projection(self.final_norm(x)), dim=-1)


def read_tower(text: OpenClipModule, dtype: torch.dtype = torch.float32) -> TowerWeights:
    """Read the weights of an open_clip text tower; its blocks and projection in `dtype`.

    Raises:
        BackboneError: the tower is not causal with EOT readout; says what differs.
    """
    reason = _unsupported(text)
    if reason:
        raise BackboneError(
            f"this text tower {reason}; SharpZO needs a causal tower read out at EOT "
            "(use ViT-B-16, ViT-L-14 or RN50, for example)"
        )
    blocks = text.transformer.resblocks
    return TowerWeights(
        blocks=tuple(read_block(block, dtype) for block in blocks),
        heads=int(blocks[0].attn.num_heads),
        final_norm=_norm(text.ln_final, dtype),
        projection=_read_projection(text.text_projection, dtype),
        token_embedding=text.token_embedding.weight.detach(),
        positional_embedding=text.positional_embedding.detach(),
    )


def _unsupported(text: OpenClipModule) -> str | None:
    """Why a tower is not supported, as the end of a sentence that starts 'this text tower'."""
    pool = getattr(text, "text_pool_type", getattr(text, "pool_type", None))
    if not hasattr(text, "transformer") or not hasattr(text.transformer, "resblocks"):
        return "is not open_clip's own (for example a Hugging Face encoder)"
    if getattr(text, "attn_mask", None) is None:
        return "is bidirectional"
    if pool not in ("argmax", "eos") or getattr(text, "cls_emb", None) is not None:
        return f"is read out at {pool!r}, not at EOT"
    if text.text_projection is None:
        return "has no projection into the joint space"
    return next(filter(None, map(unsupported_block, text.transformer.resblocks)), None)


def unsupported_block(block: OpenClipModule) -> str | None:
    """Why `read_block` cannot read a block, as the end of a sentence; None if it can."""
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


def _norm(module: OpenClipModule, dtype: torch.dtype) -> Norm:
    return Norm(module.weight.detach().to(dtype), module.bias.detach().to(dtype), float(module.eps))


def _read_projection(projection: OpenClipModule, dtype: torch.dtype) -> Linear:
    if isinstance(projection, nn.Linear):
        bias: Tensor | None = projection.bias
        weight = projection.weight.detach().to(dtype)
        return Linear(weight, bias.detach().to(dtype) if bias is not None else None)
    return Linear(projection.detach().t().to(dtype).contiguous())


def read_block(block: OpenClipModule, dtype: torch.dtype, *, fold_activation: bool = True) -> Block:
    """Read one block; folding QuickGELU's constant copies the MLP's weights."""
    attention, mlp = block.attn, block.mlp
    weight, bias = attention.in_proj_weight.detach(), attention.in_proj_bias.detach()
    width = weight.shape[1]
    quick = _is_quick(mlp.gelu)
    gain = _QUICK_GELU if quick and fold_activation else None
    inverse_gain = 1 / gain if gain else None

    def linear(weight: Tensor, bias: Tensor) -> Linear:
        return Linear(weight.to(dtype), bias.to(dtype))

    return Block(
        norm_1=_norm(block.ln_1, dtype),
        queries=linear(weight[:width], bias[:width]),
        keys_values=linear(weight[width:], bias[width:]),
        out=linear(*_scaled(attention.out_proj, _layer_scale(block.ls_1))),
        norm_2=_norm(block.ln_2, dtype),
        fc=linear(*_scaled(mlp.c_fc, weight_gain=gain, bias_gain=gain)),
        proj=linear(*_scaled(mlp.c_proj, _layer_scale(block.ls_2), weight_gain=inverse_gain)),
        quick=quick,
        folded=fold_activation,
    )


def _layer_scale(module: OpenClipModule) -> Tensor | None:
    return None if isinstance(module, nn.Identity) else module.gamma.detach()


def _scaled(
    linear: OpenClipModule,
    gamma: Tensor | None = None,
    *,
    weight_gain: float | None = None,
    bias_gain: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Weight and bias with factors folded in; without factors they share the model's storage."""
    weight, bias = linear.weight.detach(), linear.bias.detach()
    weight = weight if weight_gain is None else weight * weight_gain
    bias = bias if bias_gain is None else bias * bias_gain
    return (weight, bias) if gamma is None else (weight * gamma[:, None], bias * gamma)
