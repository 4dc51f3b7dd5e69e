"""The pretraining corpus: generates pictures with several captions each, in parallel."""

from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Final

import numpy as np

from tools.tiny_clip.captions import write_caption
from tools.tiny_clip.glyphs import Concept, Kind, concepts
from tools.tiny_clip.render import Pixels, render
from tools.tiny_clip.style import draw_style

CAPTIONS_PER_PICTURE: Final = 4
_KIND_SHARES: Final = {Kind.DIGIT: 0.7, Kind.LETTER: 0.18, Kind.SHAPE: 0.12}
_CHUNK: Final = 1_000  # pictures that a process generates at a time


@dataclass(frozen=True)
class Corpus:
    """Captioned pictures."""

    #: (n, side, side, 3)
    pictures: Pixels
    #: n tuples of CAPTIONS_PER_PICTURE sentences.
    captions: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.captions)


def make_corpus(size: int, seed: int, processes: int = 1) -> Corpus:
    """`size` random captioned pictures; they depend on `seed`, not on the number of processes."""
    sizes = [min(_CHUNK, size - start) for start in range(0, size, _CHUNK)]
    seeds = np.random.SeedSequence(seed).spawn(len(sizes))
    if processes == 1:
        return _join(map(_make_chunk, sizes, seeds))
    # Spawned, because forking a process that runs torch's threads is not safe.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return _join(pool.map(_make_chunk, sizes, seeds))


def _make_chunk(size: int, seed: np.random.SeedSequence) -> Corpus:
    rng = np.random.default_rng(seed)
    things = concepts()
    shares = _shares(things)
    pictures, captions = [], []
    for index in rng.choice(len(things), size, p=shares):
        thing = things[int(index)]
        style = draw_style(thing, rng)
        pictures.append(render(thing, style, rng))
        captions.append(
            tuple(write_caption(thing, style, rng) for _ in range(CAPTIONS_PER_PICTURE))
        )
    return Corpus(np.stack(pictures), tuple(captions))


def _shares(things: tuple[Concept, ...]) -> list[float]:
    """Probability of each concept; the share of a kind is divided equally among its concepts."""
    kinds = [thing.kind for thing in things]
    return [_KIND_SHARES[kind] / kinds.count(kind) for kind in kinds]


def _join(chunks: Iterable[Corpus]) -> Corpus:
    parts = list(chunks)
    pictures = np.concatenate([part.pictures for part in parts])
    return Corpus(pictures, tuple(row for part in parts for row in part.captions))
