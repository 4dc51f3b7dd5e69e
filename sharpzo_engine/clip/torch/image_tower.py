"""The image side: open_clip's vision transformers with less work and faster products.

The numbers are those of open_clip's own forward up to rounding: products go through `Linear`, and
the last layer computes queries, attention and MLP only for the row that is read out. In bfloat16
only products and attention are rounded; sums, norms and the read-out stay in float32, which keeps
embeddings ten times closer than a conversion of the whole tower.

Shapes: B images, T tokens of width W (the class token first), E the embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor
from torch.nn import functional

from sharpzo_engine.clip.torch.linear import Linear, leave
from sharpzo_engine.clip.torch.text_tower import (
    Block,
    OpenClipModule,
    read_block,
    unsupported_block,
)

_onednn: Any = torch.ops.mkldnn  # what torch.compile calls, too

#: Tokens at a time: products reach their peak rate, and activations (rows x 4W) stay in the cache.
MAX_ROWS = 512


@dataclass(frozen=True)
class Bfloat16Linear(Linear):
    """A `Linear` whose product is computed in bfloat16; its weight may be in a kernel's layout."""

    def __call__(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out] in float32."""
        return self.stay(self.enter(x)).float()

    def enter(self, x: Tensor) -> Tensor:
        """Round activations to bfloat16."""
        return x.bfloat16()

    def stay(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out], both in bfloat16."""
        if not self.weight.is_mkldnn:
            return functional.linear(x, self.weight, self.bias)
        product: Tensor = _onednn._linear_pointwise(  # noqa: SLF001
            x, self.weight, self.bias, "none", [], ""
        )
        return product

    @classmethod
    def round(cls, linear: Linear) -> Bfloat16Linear:
        """Copy a map; where oneDNN has kernels for it, no call then has to reorder the weight."""
        weight = linear.weight.bfloat16()
        if _onednn._is_mkldnn_bf16_supported():  # noqa: SLF001
            weight = _onednn._reorder_linear_weight(weight, MAX_ROWS)  # noqa: SLF001
        return cls(weight, None if linear.bias is None else linear.bias.bfloat16())


@dataclass(frozen=True)
class ImageTower:
    """A vision transformer on the processor; the weights of float32 are the model's own."""

    visual: OpenClipModule
    blocks: tuple[Block, ...]
    heads: int

    def __call__(self, images: Tensor) -> Tensor:
        """Preprocessed images [B, 3, H, W] in float32 -> embeddings [B, E], not normalised."""
        tokens = self.visual.positional_embedding.shape[0]
        parts = images.split(max(1, MAX_ROWS // tokens))
        return torch.cat([self._encode(part) for part in parts])

    def _encode(self, images: Tensor) -> Tensor:
        x = self.visual._embeds(images)  # noqa: SLF001 - all that its forward does before blocks
        for block in self.blocks[:-1]:
            x = self._through(block, x, x)
        last = x[:, :1].contiguous() if self._reads_one_row else x
        x = self._through(self.blocks[-1], last, x)
        pooled, _ = self.visual._pool(x)  # noqa: SLF001
        embeddings: Tensor = pooled @ self.visual.proj
        return embeddings

    @property
    def _reads_one_row(self) -> bool:
        return self.visual.attn_pool is None and self.visual.pool_type == "tok"

    def _through(self, block: Block, own: Tensor, x: Tensor) -> Tensor:
        """One block for the rows `own` [B, T', W] of all rows [B, T, W] -> [B, T', W]."""
        normed = block.keys_values.enter(block.norm_1(x))
        asking = normed if own is x else block.queries.enter(block.norm_1(own))
        queries = leave(block.queries.stay(asking))
        keys, values = leave(block.keys_values.stay(normed)).chunk(2, dim=-1)
        attended = functional.scaled_dot_product_attention(
            self._split(queries), self._split(keys), self._split(values)
        )
        return block.finish(own, attended.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        """[B, T, W] -> [B, heads, T, W / heads]."""
        heads: Tensor = x.unflatten(-1, (self.heads, -1))
        return heads.transpose(1, 2)


def read_image_tower(
    visual: OpenClipModule, dtype: torch.dtype = torch.float32
) -> ImageTower | None:
    """The fast form of an image tower on the processor, with products in `dtype`.

    None if there is none: for convolutional towers, unusual blocks, other devices and other types.
    """
    if dtype not in (torch.float32, torch.bfloat16) or not _is_supported(visual):
        return None
    layers = visual.transformer.resblocks
    # Folding copies weights. Those of float32 stay the model's own.
    rounded = dtype == torch.bfloat16
    blocks = [read_block(layer, torch.float32, fold_activation=rounded) for layer in layers]
    if rounded:
        blocks = [_in_bfloat16(block) for block in blocks]
    return ImageTower(visual, tuple(blocks), int(layers[0].attn.num_heads))


def _is_supported(visual: OpenClipModule) -> bool:
    return (
        type(visual) is VisionTransformer
        and not visual.output_tokens
        and visual.proj is not None
        and visual.proj.device.type == "cpu"
        and all(type(block) is ResidualAttentionBlock for block in visual.transformer.resblocks)
        and not any(map(unsupported_block, visual.transformer.resblocks))
    )


def _in_bfloat16(block: Block) -> Block:
    return replace(
        block,
        queries=Bfloat16Linear.round(block.queries),
        keys_values=Bfloat16Linear.round(block.keys_values),
        out=Bfloat16Linear.round(block.out),
        fc=Bfloat16Linear.round(block.fc),
        proj=Bfloat16Linear.round(block.proj),
    )
