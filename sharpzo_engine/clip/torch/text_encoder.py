"""The hot path: encodes class prompts with CLIP's causal text tower, without redundant work.

A loss at one search point is C class prompts `[SOS, context, name, ".", EOT]` through the text
tower. The tower is causal and reads out at EOT, and `SOS + context` is the same for every class of
one candidate. So the following is exact (the plain forward is `PlainTextEncoder`):

1. nothing after EOT is computed;
2. the context's rows are computed once per candidate, and all its classes attend to them; the rows
   of SOS, which attends only to itself, once per job;
3. the suffixes (name, ".", EOT) of all classes are packed one after another (`Packing`);
4. the first layer's projections of the suffixes, the same for all candidates, are computed once per
   job, and the last layer computes queries, attention and MLP only for the EOT rows;
5. many candidates are computed together, in chunks of about `max_rows` packed rows, one per core.

Shapes: n candidates, M context tokens, C classes, R packed rows in n_blocks blocks of B,
P = 1 + M prefix positions, H heads of size D, W = H * D the width, E the embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from sharpzo_engine.clip.parallel import even_slices, map_chunks
from sharpzo_engine.clip.tokens import PromptTokens
from sharpzo_engine.clip.torch.packing import Packing, split_classes
from sharpzo_engine.clip.torch.text_tower import OpenClipModule, TowerWeights

#: Packed rows per chunk. On a CPU a chunk runs on one core: products reach their peak rate at
#: about 200 rows, while the MLP's activations (rows x 4W floats) still fit into the cache.
MAX_ROWS = {"cpu": 256, "cuda": 65_536}


@dataclass(frozen=True)
class Pack:
    """The packed rows of some classes, with everything that is the same for all candidates."""

    classes: Tensor  # their numbers [C']
    blocks: int
    rows: int  # R
    embeddings: Tensor  # of all rows but the context's [R - M, W]
    queries: Tensor  # in the first layer [R - M, W]
    keys_values: Tensor  # in the first layer [R - M, 2W]
    mask: Tensor  # [n_blocks, B, P + B]
    ends: Tensor  # the EOT rows [C']
    end_mask: Tensor  # [n_blocks, slots, P + B]
    end_slots: Tensor  # class of every slot of every block [n_blocks * slots]
    end_places: Tensor  # slot of every class [C']


class ForwardTextEncoder:
    """Exact, forward-only encoder of one job's class prompts (see the module's docstring)."""

    def __init__(
        self, tower: TowerWeights, tokens: PromptTokens, max_rows: int | None = None
    ) -> None:
        """Precompute everything that is the same for all candidates."""
        self.tower = tower
        self.device = tower.token_embedding.device
        self.on_cpu = self.device.type == "cpu"
        self.classes = len(tokens.suffixes)
        self.context_length = len(tokens.context)
        self.max_rows = max_rows or MAX_ROWS.get(self.device.type, MAX_ROWS["cpu"])
        positions = tower.positional_embedding[1 : 1 + self.context_length]
        self._positions = positions.to(tower.dtype)
        lengths = [len(suffix) for suffix in tokens.suffixes]
        with torch.no_grad():  # not inference mode: `TextReverse` differentiates through these
            self.sos = self._sos_keys_values(tokens.sos)
            self.packs = [
                self._pack(Packing.build(tokens.suffixes, classes, self.context_length))
                for classes in split_classes(lengths, self.context_length, self.max_rows)
            ]

    def encode(self, context: Tensor) -> Tensor:
        """`context` [n, M, W] (without positions) -> L2-normalised class embeddings [n, C, E]."""
        items = [
            (part, pack)
            for pack in self.packs
            for part in even_slices(len(context), max(1, self.max_rows // pack.rows), self.on_cpu)
        ]

        @torch.inference_mode()
        def encode_item(item: tuple[slice, Pack]) -> Tensor:
            return self.encode_pack(context[item[0]], item[1])

        width = self.tower.embed_dim
        found = torch.empty(len(context), self.classes, width, device=self.device)
        with torch.inference_mode():
            for (part, pack), rows in zip(
                items, map_chunks(encode_item, items, self.on_cpu), strict=True
            ):
                found[part, pack.classes] = rows.to(found.dtype)
        return found

    def encode_pack(self, context: Tensor, pack: Pack) -> Tensor:
        """`context` [n, M, W] -> L2-normalised embeddings of the pack's classes [n, C', E]."""
        blocks = self.tower.blocks
        x, queries, keys_values = self.enter(context, pack)
        mask = pack.mask.repeat(len(context), 1, 1)
        for layer, block in enumerate(blocks[:-1]):
            if layer:
                queries, keys_values = block.attend(x)
            keys, values = self.join_prefix(keys_values, self.sos[layer], pack)
            attended = attention(self.split_heads(queries, pack), keys, values, mask)
            x = block.finish(x, join_heads(attended, len(x)))
        return self.tower.read_out(self._last_layer(x, pack))

    def enter(self, context: Tensor, pack: Pack) -> tuple[Tensor, Tensor, Tensor]:
        """The first layer's input [n, R, W], queries [n, R, W], keys and values [n, R, 2W]."""
        x = context.to(self.tower.dtype) + self._positions
        parts = zip(
            (x, *self.tower.blocks[0].attend(x)),
            (pack.embeddings, pack.queries, pack.keys_values),
            strict=True,
        )
        joined = [torch.cat([own, rest.expand(len(x), -1, -1)], dim=1) for own, rest in parts]
        return joined[0], joined[1], joined[2]

    def join_prefix(self, keys_values: Tensor, first: Tensor, pack: Pack) -> tuple[Tensor, Tensor]:
        """Prepend SOS (`first` [2W]) and the context to every block's rows.

        [n, R, 2W] -> keys and values [n * n_blocks, H, P + B, D].
        """
        n, _, both = keys_values.shape
        own = keys_values.view(n, pack.blocks, -1, both)
        sos = first.expand(n, pack.blocks, 1, both)
        context = own[:, :1, : self.context_length].expand(-1, pack.blocks, -1, -1)
        joined = torch.cat([sos, context, own], dim=2).flatten(0, 1)
        keys, values = joined.unflatten(-1, (2, self.tower.heads, -1)).unbind(2)
        return keys.transpose(1, 2), values.transpose(1, 2)

    def split_heads(self, x: Tensor, pack: Pack) -> Tensor:
        """[n, n_blocks * rows, W] -> [n * n_blocks, H, rows, D]."""
        heads: Tensor = x.reshape(len(x) * pack.blocks, -1, self.tower.heads, self.tower.head_width)
        return heads.transpose(1, 2)

    def _last_layer(self, x: Tensor, pack: Pack) -> Tensor:
        """The EOT rows after the last block: [n, R, W] -> [n, C', W]."""
        block = self.tower.blocks[-1]
        normed = block.norm_1(x)
        queries = block.queries(normed[:, pack.ends])[:, pack.end_slots]
        attended = attention(
            self.split_heads(queries, pack),
            *self.join_prefix(block.keys_values(normed), self.sos[-1], pack),
            pack.end_mask.repeat(len(x), 1, 1),
        )
        return block.finish(x[:, pack.ends], join_heads(attended, len(x))[:, pack.end_places])

    def _sos_keys_values(self, sos: int) -> list[Tensor]:
        """SOS attends only to itself, so its value is its attention output for every candidate."""
        tower = self.tower
        x = (tower.token_embedding[sos] + tower.positional_embedding[0])[None].to(tower.dtype)
        found = []
        for block in tower.blocks:
            _, keys_values = block.attend(x)
            found.append(keys_values[0])
            x = block.finish(x, keys_values[:, tower.width :])
        return found

    def _pack(self, packing: Packing) -> Pack:
        """Embed a packing's rows and compute their projections in the first layer."""
        tower = self.tower
        table = torch.tensor(packing.table()[packing.context :], device=self.device)
        embeddings = tower.token_embedding[table[:, 1]] + tower.positional_embedding[table[:, 2]]
        embeddings = embeddings.to(tower.dtype)
        mask = packing.mask().to(self.device, tower.dtype)
        slots, places = (torch.tensor(index, device=self.device) for index in packing.end_slots())
        ends = torch.tensor(packing.ends(), device=self.device)
        return Pack(
            torch.tensor(packing.classes, device=self.device),
            len(packing.blocks),
            packing.rows,
            embeddings,
            *tower.blocks[0].attend(embeddings),
            mask,
            ends,
            mask.flatten(0, 1)[ends[slots]].unflatten(0, (len(packing.blocks), -1)),
            slots,
            places,
        )


def attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Softmax attention of [N, H, rows, D] queries with an additive mask [N, rows, P + B]."""
    return functional.scaled_dot_product_attention(queries, keys, values, mask[:, None])


def join_heads(x: Tensor, n: int) -> Tensor:
    """[n * n_blocks, H, rows, D] -> [n, n_blocks * rows, W]."""
    return x.transpose(1, 2).reshape(n, -1, x.shape[1] * x.shape[3])


class PlainTextEncoder:
    """open_clip's own full-length forward, one candidate at a time: the oracle and the baseline."""

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
