"""A process that does nothing but decode, prepare and encode: what serving is measured against.

    python -m benchmarks.support.plain_encoder BACKBONE FOLDER

Every line on stdin is `BATCH SECONDS`; the answer on stdout is `IMAGES_PER_SECOND MEDIAN_SECONDS`,
the latter of one batch. No service, no prompt: open_clip's own forward in float32, and a loop over
the JPEG files.
"""

from __future__ import annotations

import sys
import time
from itertools import cycle, islice
from pathlib import Path
from statistics import median

import numpy as np
import torch

from sharpzo_engine import load_backbone
from sharpzo_engine.data.images import decode_image


def main() -> None:
    """Answer until stdin ends."""
    backbone = load_backbone(sys.argv[1], device="cpu")
    model = backbone.model.to(memory_format=torch.contiguous_format)
    files = cycle([path.read_bytes() for path in sorted(Path(sys.argv[2]).glob("*.jpg"))])

    def encode(size: int) -> None:
        pixels = [backbone.preprocess(decode_image(data)) for data in islice(files, size)]
        with torch.inference_mode():
            model.encode_image(torch.from_numpy(np.stack(pixels)))

    encode(1)
    for line in sys.stdin:
        size, seconds = int(line.split()[0]), float(line.split()[1])
        took: list[float] = []
        encode(size)
        began = time.perf_counter()
        while not took or time.perf_counter() - began < seconds:
            started = time.perf_counter()
            encode(size)
            took.append(time.perf_counter() - started)
        print(size * len(took) / sum(took), median(took), flush=True)


if __name__ == "__main__":
    main()
