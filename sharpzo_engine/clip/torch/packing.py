"""`Packing`: the rows of class prompts, packed with little padding and block-local attention.

Suffixes (name, ".", EOT) of different lengths follow one another in blocks of B rows, and the first
block begins with the M context vectors. Attention is then a small dense product per block, computed
by one kernel for all blocks, with a mask that marks which rows belong together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: Rows per attention block: enough for efficient products, few enough that little is masked.
BLOCK_ROWS = 32

_CONTEXT, _PADDING = -1, -2


@dataclass(frozen=True)
class Packing:
    """Some classes' rows: n_blocks blocks of B rows, the first M of them the context's.

    Each row belongs to a class (numbered within this packing), to the context, or is padding.
    """

    classes: tuple[int, ...]
    suffixes: tuple[tuple[int, ...], ...]
    blocks: tuple[tuple[int, ...], ...]  # members of each block
    context: int  # M
    size: int  # B

    @classmethod
    def build(
        cls, suffixes: Sequence[Sequence[int]], classes: Sequence[int], context: int
    ) -> Packing:
        """Pack the chosen `classes` after `context` rows."""
        chosen = tuple(tuple(suffixes[c]) for c in classes)
        blocks = fill_blocks([len(suffix) for suffix in chosen], context)
        rows = [sum(len(chosen[m]) for m in members) for members in blocks]
        rows[0] += context
        return cls(tuple(classes), chosen, tuple(map(tuple, blocks)), context, max(rows))

    @property
    def rows(self) -> int:
        """Rows of one candidate, R = n_blocks * B."""
        return len(self.blocks) * self.size

    def table(self) -> list[tuple[int, int, int]]:
        """Per row (block by block): segment, token id, position in the prompt."""
        first = 1 + self.context
        table = [(_CONTEXT, 0, 1 + k) for k in range(self.context)]
        for number, members in enumerate(self.blocks):
            for member in members:
                suffix = self.suffixes[member]
                table += [(member, token, first + k) for k, token in enumerate(suffix)]
            table += [(_PADDING, 0, 0)] * ((number + 1) * self.size - len(table))
        return table

    def ends(self) -> list[int]:
        """Row of every class's EOT."""
        last = {segment: row for row, (segment, _, _) in enumerate(self.table())}
        return [last[member] for member in range(len(self.classes))]

    def end_slots(self) -> tuple[list[int], list[int]]:
        """The members of every block in equally many slots, and the slot of every class.

        A block with fewer members fills its slots with class 0, whose result there is not used.
        """
        width = max(map(len, self.blocks))
        slots, places = [], [0] * len(self.classes)
        for number, members in enumerate(self.blocks):
            for k, member in enumerate(members):
                places[member] = number * width + k
            slots += [*members, *[0] * (width - len(members))]
        return slots, places

    def mask(self) -> Tensor:
        """Additive attention mask [n_blocks, B, 1 + M + B]: 0 where a row may attend, else -inf.

        Keys are SOS, the context (except for the context's own rows, which attend to one another
        in the block), and the block's rows.
        """
        segments = torch.tensor([row[0] for row in self.table()]).view(-1, self.size)
        own = segments[:, :, None] == segments[:, None, :]
        own &= torch.ones(self.size, self.size, dtype=torch.bool).tril()
        own &= (segments != _PADDING)[:, :, None]
        context = (segments >= 0)[:, :, None].expand(-1, -1, self.context)
        seen = torch.cat([torch.ones_like(own[:, :, :1]), context, own], dim=-1)
        return torch.zeros(seen.shape).masked_fill_(~seen, float("-inf"))


def split_classes(lengths: Sequence[int], context: int, largest: int) -> list[list[int]]:
    """Split classes into the fewest packs of about `largest` rows, similar in size and lengths."""
    packs = -(-sum(lengths) // max(1, largest - context))
    order = sorted(range(len(lengths)), key=lambda c: -lengths[c])
    return [sorted(order[k::packs]) for k in range(min(packs, len(order)))]


def fill_blocks(lengths: Sequence[int], context: int) -> list[list[int]]:
    """Classes per block: the smallest blocks that fit all into the fewest of about BLOCK_ROWS.

    The first block also contains the context.
    """
    total = context + sum(lengths)
    count = -(-total // BLOCK_ROWS)
    capacity = max(-(-total // count), context, *lengths)
    while len(blocks := _first_fit(lengths, context, capacity)) > count:
        capacity += 1
    return blocks


def _first_fit(lengths: Sequence[int], context: int, capacity: int) -> list[list[int]]:
    """First-fit decreasing bin packing."""
    blocks: list[list[int]] = [[]]
    free = [capacity - context]
    for member in sorted(range(len(lengths)), key=lambda c: -lengths[c]):
        block = next(_with_room(free, lengths[member]), None)
        if block is None:
            blocks.append([])
            free.append(capacity)
            block = len(blocks) - 1
        blocks[block].append(member)
        free[block] -= lengths[member]
    return blocks


def _with_room(free: Sequence[int], length: int) -> Iterator[int]:
    return (block for block, rows in enumerate(free) if rows >= length)
