"""`TextReverse`: the class embeddings of one context, differentiated by reverse mode.

Only the first-order baseline (CoOp) uses it; it shares the packed encoder.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sharpzo_engine.clip.parallel import map_chunks
from sharpzo_engine.clip.torch.text_encoder import ForwardTextEncoder, Pack


class TextReverse:
    """T(ctx) [C, E] at one context, and the products of its transposed Jacobian."""

    def __init__(self, encoder: ForwardTextEncoder, context: Tensor) -> None:
        """Encode `context` [M, W] and keep what the reverse pass needs."""
        self._encoder = encoder

        def record(pack: Pack) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                leaf = context[None].clone().requires_grad_()
                return leaf, encoder.encode_pack(leaf, pack)

        self._graphs = list(map_chunks(record, encoder.packs, encoder.on_cpu))
        self.embeddings = torch.empty(
            encoder.classes, encoder.tower.embed_dim, device=encoder.device
        )
        for pack, (_, rows) in zip(encoder.packs, self._graphs, strict=True):
            self.embeddings[pack.classes] = rows[0].detach()

    def pull_back(self, cotangent: Tensor) -> Tensor:
        """dL/dT [C, E] -> dL/dctx [M, W]; can be called once, because it frees the graph."""

        def pull_back_pack(item: tuple[Pack, tuple[Tensor, Tensor]]) -> Tensor:
            pack, (context, rows) = item
            return torch.autograd.grad(rows, context, cotangent[None, pack.classes])[0]

        items = zip(self._encoder.packs, self._graphs, strict=True)
        return torch.cat(list(map_chunks(pull_back_pack, items, self._encoder.on_cpu))).sum(0)
