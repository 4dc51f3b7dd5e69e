"""The two towers as ONNX graphs, exported from torch.

The text graph takes context vectors and the embedded tokens behind them (name, ".", EOT), so that
it serves any class names. Like `ForwardTextEncoder`, it computes the rows of SOS and context once
per candidate and nothing after EOT.

Shapes: n candidates, M context tokens, C classes, S suffix tokens (padded), P = 1 + M, H heads of
size D, W = H * D the width, E the embedding width.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional

from sharpzo_engine.clip.torch.backbone import Backbone
from sharpzo_engine.clip.torch.linear import Linear
from sharpzo_engine.clip.torch.text_tower import Block, OpenClipModule, TowerWeights

OPSET = 18
#: Added to the scores of tokens that are not attended to.
_MASKED = -1e9


class ImageTower(nn.Module):
    """Preprocessed images [B, 3, H, W] -> L2-normalised embeddings [B, E]."""

    def __init__(self, visual: OpenClipModule) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, images: Tensor) -> Tensor:
        """Encode a batch."""
        return functional.normalize(self.visual(images), dim=-1)


class TextTower(nn.Module):
    """Context vectors -> class embeddings, with plain operations only."""

    def __init__(self, tower: TowerWeights, sos: int) -> None:
        """`sos` is the token that every prompt starts with."""
        super().__init__()
        self._tower = _transposed(tower)
        self._first = tower.token_embedding[sos] + tower.positional_embedding[0]

    def forward(self, context: Tensor, suffixes: Tensor, ends: Tensor) -> Tensor:
        """`context` [n, M, W], `suffixes` [C, S, W], `ends` [C] (EOT in a suffix) -> [n, C, E]."""
        n, m, width = context.shape
        classes, length, _ = suffixes.shape
        positions = self._tower.positional_embedding
        first = self._first.expand(n, 1, width)
        prefix = torch.cat([first, context + positions[1 : 1 + m]], dim=1)  # [n, P, W]
        own = (suffixes + positions[1 + m : 1 + m + length]).expand(n, classes, length, width)
        before = _causal(1 + m)
        within = _causal(length)[None].expand(classes, length, length)
        for block in self._tower.blocks[:-1]:
            prefix, keys, values = self._through_prefix(block, prefix, before)
            own = self._through_suffixes(block, own, own, keys, values, within)
        block = self._tower.blocks[-1]
        _, keys, values = self._through_prefix(block, prefix, before)
        places = ends[None, :, None, None].expand(n, classes, 1, width)
        last = own.gather(2, places)  # the EOT rows [n, C, 1, W]
        until_end = torch.arange(length)[None, :] <= ends[:, None]
        mask = torch.where(until_end, 0.0, _MASKED)[:, None]  # [C, 1, S]
        last = self._through_suffixes(block, last, own, keys, values, mask)
        read = _apply(self._tower.projection, self._tower.final_norm(last[:, :, 0]))
        return functional.normalize(read, dim=-1)

    def _heads(self, x: Tensor) -> Tensor:
        """[n, ..., W] -> [n, H, ..., D]."""
        split = x.unflatten(-1, (self._tower.heads, self._tower.head_width))
        heads: Tensor = split.movedim(-2, 1)
        return heads

    def _join(self, x: Tensor) -> Tensor:
        """[n, H, ..., D] -> [n, ..., W]."""
        return x.movedim(1, -2).flatten(-2)

    def _keys_values(self, block: Block, normed: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = _apply(block.keys_values, normed).chunk(2, dim=-1)
        return self._heads(keys), self._heads(values)

    def _through_prefix(
        self, block: Block, x: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of SOS and context [n, P, W] after the block, and their keys and values."""
        normed = block.norm_1(x)
        keys, values = self._keys_values(block, normed)  # [n, H, P, D]
        queries = self._heads(_apply(block.queries, normed)) * self._tower.head_width**-0.5
        weights = (queries @ keys.transpose(-1, -2) + mask).softmax(-1)
        return _finish(block, x, self._join(weights @ values)), keys, values

    def _through_suffixes(
        self, block: Block, x: Tensor, all_rows: Tensor, keys: Tensor, values: Tensor, mask: Tensor
    ) -> Tensor:
        """Rows x [n, C, s, W], which attend to the prefix and to `all_rows` [n, C, S, W]."""
        _, classes, rows, _ = x.shape
        queries = self._heads(_apply(block.queries, block.norm_1(x)))  # [n, H, C, s, D]
        queries = queries * self._tower.head_width**-0.5
        own_keys, own_values = self._keys_values(block, block.norm_1(all_rows))
        flat = queries.flatten(2, 3)
        to_prefix = (flat @ keys.transpose(-1, -2)).unflatten(2, (classes, rows))
        to_own = queries @ own_keys.transpose(-1, -2) + mask
        weights = torch.cat([to_prefix, to_own], dim=-1).softmax(-1)
        prefix = keys.shape[2]
        from_prefix = weights[..., :prefix].flatten(2, 3) @ values
        attended = from_prefix.unflatten(2, (classes, rows)) + weights[..., prefix:] @ own_values
        return _finish(block, x, self._join(attended))


def _causal(length: int) -> Tensor:
    """[length, length]: zero where a row may look, very negative elsewhere."""
    rows = torch.arange(length)
    return torch.where(rows[None, :] <= rows[:, None], 0.0, _MASKED)


def _apply(linear: Linear, x: Tensor) -> Tensor:
    """The map, as a product with one stored matrix [in, out], which `quantize` can replace."""
    product = x @ linear.weight
    return product if linear.bias is None else product + linear.bias


def _transposed(tower: TowerWeights) -> TowerWeights:
    """The tower with its matrices as [in, out]."""

    def turn(linear: Linear) -> Linear:
        return Linear(linear.weight.T.contiguous(), linear.bias)

    blocks = tuple(
        replace(
            block,
            queries=turn(block.queries),
            keys_values=turn(block.keys_values),
            out=turn(block.out),
            fc=turn(block.fc),
            proj=turn(block.proj),
        )
        for block in tower.blocks
    )
    return replace(tower, blocks=blocks, projection=turn(tower.projection))


def _finish(block: Block, x: Tensor, attended: Tensor) -> Tensor:
    x = x + _apply(block.out, attended)
    hidden = _apply(block.fc, block.norm_2(x))
    hidden = functional.silu(hidden) if block.quick else functional.gelu(hidden)
    return x + _apply(block.proj, hidden)


def write_image_graph(backbone: Backbone, path: Path) -> None:
    """Write `image.onnx`: images [B, 3, H, W] -> embeddings [B, E]."""
    size = backbone.image_size
    example = torch.zeros(2, 3, size, size)
    tower = ImageTower(backbone.model.visual)
    _export(tower, (example,), path, ["images"], {"images": {0: Dim("B")}})


def write_text_graph(backbone: Backbone, sos: int, path: Path) -> None:
    """Write `text.onnx`: contexts, suffixes and ends -> class embeddings [n, C, E]."""
    tower = TextTower(backbone.tower, sos)
    width = backbone.text_width
    example = (torch.zeros(2, 3, width), torch.zeros(5, 4, width), torch.tensor([1, 2, 3, 3, 2]))
    classes = Dim("C")
    shapes = {
        "context": {0: Dim("n"), 1: Dim("M")},
        "suffixes": {0: classes, 1: Dim("S")},
        "ends": {0: classes},
    }
    _export(tower, example, path, list(shapes), shapes)


def _export(
    module: nn.Module,
    example: tuple[Tensor, ...],
    path: Path,
    inputs: list[str],
    shapes: dict[str, dict[int, Dim]],
) -> None:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            example,
            str(path),
            input_names=inputs,
            output_names=["embeddings"],
            dynamic_shapes=shapes,
            opset_version=OPSET,
            external_data=False,
            dynamo=True,
            verbose=False,
        )
