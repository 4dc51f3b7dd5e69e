"""Random views: within the image, drawn from the seed alone, told apart by the feature cache."""

from pathlib import Path

import numpy as np
from PIL import Image

from sharpzo_engine.clip.augmentation import View
from sharpzo_engine.clip.features import extract_features
from sharpzo_engine.clip.torch.backbone import Backbone
from sharpzo_engine.data.dataset import load_dataset


def ramp(width: int = 60, height: int = 40) -> Image.Image:
    """Red grows from left to right, green from top to bottom, both from 0 to 255."""
    red = np.tile(np.linspace(0, 255, width), (height, 1))
    green = np.tile(np.linspace(0, 255, height)[:, None], (1, width))
    return Image.fromarray(np.stack([red, green, 0 * red], -1).astype(np.uint8))


def test_a_view_covers_its_share_of_the_image() -> None:
    view = View(area=0.64, aspect=1.5, x=0.0, y=1.0, flipped=False).apply(ramp(), 32)
    pixels = np.asarray(view, dtype=float)
    assert view.size == (32, 32)
    assert pixels[0, -1, 0] / 255 > 0.75  # 80 % of the width, from the left edge
    assert pixels[0, -1, 0] / 255 < 0.85
    assert pixels[-1, 0, 1] > 245  # down to the lower edge


def test_a_flip_mirrors_the_view() -> None:
    straight = View(0.7, 1.0, 0.3, 0.3, flipped=False).apply(ramp(), 16)
    flipped = View(0.7, 1.0, 0.3, 0.3, flipped=True).apply(ramp(), 16)
    np.testing.assert_array_equal(np.asarray(straight)[:, ::-1], np.asarray(flipped))


def test_drawn_views_keep_at_least_half_of_the_area() -> None:
    rng = np.random.default_rng(0)
    views = [View.draw(rng) for _ in range(500)]
    assert all(0.5 <= view.area <= 1 and 0.75 <= view.aspect <= 4 / 3 for view in views)
    assert 0.4 < np.mean([view.flipped for view in views]) < 0.6


def test_features_of_views_depend_on_the_seed_alone(
    pictures: Path, clip: Backbone, tmp_path: Path
) -> None:
    train = load_dataset(pictures).train
    one, again, other, centre = (
        extract_features(train, clip, cache_dir=tmp_path, view_seed=seed).images
        for seed in (1, 1, 2, None)
    )
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert not np.array_equal(one, centre)
    assert len(list(tmp_path.iterdir())) == 3
