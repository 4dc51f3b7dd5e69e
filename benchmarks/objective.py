"""Losses per second: the forward-only encoder against open_clip's own full forward.

Random weights in a CLIP text tower of the given size, interleaved in one process; medians. Prints a
table and, with `--json FILE`, writes the numbers.

    python -m benchmarks.objective [--width 512] [--layers 12] [--classes 10 100]
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from sharpzo_engine.backbone import Backbone
from sharpzo_engine.parallel import map_chunks
from sharpzo_engine.prompt import PromptSpace

CANDIDATES = 40  # one CMA generation
WORDS = ["red", "old", "small", "house", "park", "river", "crop", "road", "dog", "apple"]


def make_backbone(width: int, layers: int) -> Backbone:
    """A CLIP with a text tower of the given size and a token image tower; random weights."""
    vision = {"image_size": 32, "patch_size": 32, "width": 64, "layers": 1, "head_width": 64}
    text = {
        "context_length": 77,
        "vocab_size": 49408,
        "width": width,
        "heads": width // 64,
        "layers": layers,
    }
    model = open_clip.CLIP(width, vision, text)
    preprocess = open_clip.image_transform(32, is_train=False)
    return Backbone(model, preprocess, open_clip.SimpleTokenizer(), name="random", pretrained=None)


def class_names(count: int) -> list[str]:
    """Distinct names of 1 to 4 words."""
    by_length = [itertools.product(WORDS, repeat=length) for length in (1, 2, 3, 4)]
    cycle = itertools.cycle(by_length)
    names: list[str] = []
    while len(names) < count:
        name = next(next(cycle), None)
        names += [" ".join(name)] if name else []
    return names


def seconds(run: Callable[[], Tensor]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@torch.inference_mode()
def measure(backbone: Backbone, classes: int, repeats: int) -> dict[str, float]:
    """Milliseconds per loss of both paths, their ratio, and the largest difference."""
    space = PromptSpace(backbone, class_names(classes))
    points = 0.3 * np.random.default_rng(0).normal(size=(CANDIDATES, space.dim))
    context = space.context(points)
    plain, ours = backbone.plain_text_encoder(space.tokens), space.encoder
    size = ours.candidates_per_chunk
    chunks = [points[start : start + size] for start in range(0, CANDIDATES, size)]

    def encode_all() -> Tensor:
        """What one generation of the search does."""
        return torch.cat(list(map_chunks(space.class_embeddings, chunks, backbone.device)))

    difference = float((plain.encode(context[:1]) - ours.encode(context[:1])).abs().max())
    pairs = [
        (
            seconds(lambda: plain.encode(context[:1])),
            seconds(encode_all) / CANDIDATES,
        )
        for _ in range(repeats)
    ]
    return {
        "classes": classes,
        "plain_ms": 1e3 * statistics.median(p for p, _ in pairs),
        "ours_ms": 1e3 * statistics.median(o for _, o in pairs),
        "ratio": statistics.median(p / o for p, o in pairs),
        "largest_difference": difference,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=512, help="512: ViT-B/16, ViT-B/32, RN50")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    backbone = make_backbone(options.width, options.layers)
    rows = [measure(backbone, classes, options.repeats) for classes in options.classes]
    threads = torch.get_num_threads()
    table = Table(title=f"text tower {options.width} x {options.layers}, fp32, {threads} threads")
    for heading in ("classes", "full forward, ms", "ours, ms", "ratio", "largest difference"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            f"{row['classes']:.0f}",
            f"{row['plain_ms']:.1f}",
            f"{row['ours_ms']:.1f}",
            f"{row['ratio']:.1f}",
            f"{row['largest_difference']:.0e}",
        )
    Console().print(table)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
