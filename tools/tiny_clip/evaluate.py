"""Measure a `tiny` checkpoint on scikit-learn's digits: `python -m tools.tiny_clip.evaluate`.

These 1,797 real scans of 8x8 pixels are not used in pretraining.
"""

import argparse
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from sharpzo_engine.tiny import PATH
from tools.tiny_clip.glyphs import DIGITS

logger = logging.getLogger(__name__)

Labels = NDArray[np.int64]
Preprocess = Callable[[Image.Image], Tensor]

TEMPLATE: Final = "a photo of a {}."
SHOTS: Final = 16
_SCAN_MAXIMUM: Final = 16.0  # grey levels of a scan are 0..16
_BATCH: Final = 256


def load_scans() -> tuple[list[Image.Image], Labels]:
    """scikit-learn's digits as RGB pictures of 8x8 pixels, and their values (n,)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = (digits.images * (255.0 / _SCAN_MAXIMUM)).round().astype(np.uint8)
    return [Image.fromarray(scan).convert("RGB") for scan in grey], digits.target.astype(np.int64)


@torch.inference_mode()
def encode_pictures(
    model: open_clip.CLIP, preprocess: Preprocess, pictures: list[Image.Image]
) -> Tensor:
    """Unit features, (n, embed_dim)."""
    pixels = torch.stack([preprocess(picture) for picture in pictures])
    return torch.cat(
        [model.encode_image(part, normalize=True) for part in torch.split(pixels, _BATCH)]
    )


@torch.inference_mode()
def encode_digit_names(model: open_clip.CLIP) -> Tensor:
    """Unit features of the ten prompts, (10, embed_dim)."""
    prompts = [TEMPLATE.format(name) for name in DIGITS]
    features: Tensor = model.encode_text(open_clip.SimpleTokenizer()(prompts))
    return functional.normalize(features, dim=-1)


def zero_shot_accuracy(features: Tensor, classes: Tensor, labels: Labels) -> float:
    """Share of pictures whose nearest prompt is the right one."""
    predicted = (features @ classes.T).argmax(dim=1).numpy()
    return float((predicted == labels).mean())


def few_shot_accuracy(features: Tensor, labels: Labels, rng: np.random.Generator) -> float:
    """Accuracy of logistic regression trained on SHOTS pictures per class, on the others."""
    from sklearn.linear_model import LogisticRegression

    order = rng.permutation(len(labels))
    train = np.concatenate([order[labels[order] == value][:SHOTS] for value in range(len(DIGITS))])
    test = np.setdiff1d(order, train)
    probe = LogisticRegression(C=10.0, max_iter=2_000)
    probe.fit(features[train].numpy(), labels[train])
    return float(probe.score(features[test].numpy(), labels[test]))


def evaluate(folder: Path, seed: int = 0) -> dict[str, float]:
    """Zero-shot and few-shot accuracy and encoding speed of the model in `folder`."""
    model, _, preprocess = open_clip.create_model_and_transforms(
        f"local-dir:{folder}", require_pretrained=True
    )
    model.eval()
    pictures, labels = load_scans()
    started = time.perf_counter()
    features = encode_pictures(model, preprocess, pictures)
    seconds = time.perf_counter() - started
    rng = np.random.default_rng(seed)
    return {
        "zero_shot_accuracy": zero_shot_accuracy(features, encode_digit_names(model), labels),
        "few_shot_accuracy": few_shot_accuracy(features, labels, rng),
        "pictures_per_second": len(pictures) / seconds,
    }


def main(arguments: list[str] | None = None) -> None:
    """Evaluate the bundled model, or the one in the folder given."""
    parser = argparse.ArgumentParser(description="Measure a tiny checkpoint on real digit scans.")
    parser.add_argument("--model", type=Path, default=PATH, help="folder of the model")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name, value in evaluate(options.model.resolve()).items():
        logger.info("%s: %.3f", name, value)


if __name__ == "__main__":
    main()
