"""A small CLIP with random weights, a folder of pictures, and the real checkpoint where it is."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import strategies as st
from PIL import Image

from sharpzo_engine.clip.features import Features
from sharpzo_engine.clip.torch.backbone import Backbone

ClipMaker = Callable[..., Backbone]

VISION = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3}


@pytest.fixture(scope="session")
def random_clip() -> ClipMaker:
    """Make a random CLIP; `text` and other arguments override the architecture."""

    def make(text: dict[str, Any] | None = None, seed: int = 0, **more: Any) -> Backbone:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = open_clip.CLIP(24, dict(VISION), {**TEXT, **(text or {})}, **more)
            for parameter in model.parameters():
                if parameter.ndim:  # make every bias, norm and LayerScale matter
                    parameter.data += 0.05 * torch.randn_like(parameter)
            model.logit_scale.data.fill_(np.log(20.0))
        preprocess = open_clip.image_transform(32, is_train=False)
        return Backbone(
            model, preprocess, open_clip.SimpleTokenizer(), name="random", pretrained=None
        )

    return make


@pytest.fixture(scope="session")
def clip(random_clip: ClipMaker) -> Backbone:
    return random_clip()


def draw_backbone(random_clip: ClipMaker, data: st.DataObject) -> Backbone:
    """Any causal text tower of open_clip, as far as its options are independent."""
    heads = data.draw(st.sampled_from([1, 2, 4]))
    text = {
        "width": heads * data.draw(st.sampled_from([8, 16, 64])),
        "heads": heads,
        "layers": data.draw(st.integers(1, 4)),
        "context_length": data.draw(st.sampled_from([24, 77])),
        "ls_init_value": data.draw(st.sampled_from([None, 0.3])),
        "proj_bias": data.draw(st.booleans()),
        "mlp_ratio": data.draw(st.sampled_from([2.0, 4.0])),
    }
    seed, quick = data.draw(st.integers(0, 99)), data.draw(st.booleans())
    return random_clip(text, seed=seed, quick_gelu=quick)


def draw_names(data: st.DataObject) -> list[str]:
    """Class names of 1 to 8 words."""
    words = st.lists(st.sampled_from(["cat", "red", "house", "zebra"]), min_size=1, max_size=8)
    return [
        " ".join(name)
        for name in data.draw(st.lists(words, min_size=2, max_size=9, unique_by=tuple))
    ]


def random_features(count: int, width: int, classes: int, seed: int = 0) -> Features:
    """Unit vectors of random directions, labelled in turn."""
    images = np.random.default_rng(seed).standard_normal((count, width))
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    return Features(images, np.arange(count) % classes)


def save_picture(path: Path, colour: Sequence[int], seed: int) -> None:
    """A noisy picture of one colour, different for every seed."""
    noise = np.random.default_rng(seed).integers(-40, 40, (40, 48, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of coloured noise: 6 training, 2 validation and 3 test images each."""
    root = tmp_path_factory.mktemp("pictures")
    colours = {"red": (200, 40, 40), "green": (40, 200, 40), "deep_blue": (40, 40, 200)}
    for c, (name, colour) in enumerate(colours.items()):
        for split, count in {"train": 6, "val": 2, "test": 3}.items():
            for i in range(count):
                seed = hash((c, split == "train", split == "val", i)) % 2**31
                save_picture(root / split / name / f"{i}.png", colour, seed)
    return root


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real photos and the real checkpoint, where the environment names one."""
    folder = Path(os.environ.get("SHARPZO_REAL_DATA", "/nonexistent"))
    if not (folder / "lite").is_dir():
        pytest.skip("no real data: SHARPZO_REAL_DATA does not name its folder")
    return folder
