"""A small CLIP of random weights, and prompts that tell plain colours apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from starlette.testclient import TestClient

from sharpzo_core.settings import Settings
from sharpzo_engine import Backbone, TunedPrompt, load_backbone
from sharpzo_engine.data.images import decode_image
from tests.service.conftest import png

CONFIG = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 64, "patch_size": 8},
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": 32,
            "heads": 2,
            "layers": 1,
        },
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.3, 0.3, 0.3]},
}
COLORS = {"red": (220, 20, 20), "green": (20, 220, 20), "blue": (20, 20, 220)}


def make_backbone(folder: Path, seed: int) -> Backbone:
    """A CLIP of random weights in open_clip's folder layout."""
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps(CONFIG))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.CLIP(**CONFIG["model_cfg"])  # type: ignore[arg-type]
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return load_backbone(f"local-dir:{folder}", device="cpu")


def artifact_of(on: Backbone, names: tuple[str, ...] = tuple(COLORS), **changes: Any) -> bytes:
    """A prompt whose classes are the embeddings of plain images of the colours."""
    images = [on.preprocess(decode_image(png(color))) for color in COLORS.values()]
    embeddings = on.encode_images(np.stack(images))
    metadata = {
        "backbone": on.describe(),
        "metrics": {"test_accuracy": 0.9, "loss": None},
        **changes,
    }
    context = np.zeros((4, on.text_width), np.float32)
    return TunedPrompt(names, embeddings, context, 100.0, metadata).to_bytes()


def with_backbones(data_dir: Path, backbone: Backbone, *more: str) -> Settings:
    backbones = ",".join((f"toy={backbone.name}", *more))
    return Settings(data_dir=data_dir, device="cpu", backbones=backbones, default_backbone="toy")


def import_(client: TestClient, artifact: bytes, name: str | None = "colors") -> Any:
    data = {} if name is None else {"name": name}
    return client.post("/v1/prompts", data=data, files={"file": ("p.safetensors", artifact)})


def files(*images: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [("images", ("x.png", image)) for image in images]
