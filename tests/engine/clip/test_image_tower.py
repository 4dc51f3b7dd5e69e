"""The fast image tower equals open_clip's own forward."""

from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sharpzo_engine import load_backbone
from sharpzo_engine.clip import features
from sharpzo_engine.clip.agreement import agreement_through
from sharpzo_engine.clip.features import MIN_PART_PIXELS, encode_batch
from sharpzo_engine.clip.torch.backbone import Backbone, ImagePrecision
from sharpzo_engine.clip.torch.image_tower import MAX_ROWS, read_image_tower
from sharpzo_engine.clip.torch.linear import MIN_BLOCKED_WEIGHT
from tests.engine.conftest import VISION, ClipMaker

TEXT = {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
#: Wide enough for oneDNN's layout.
WIDE = {"width": 128, "head_width": 64, "layers": 2}


def make_model(vision: dict[str, Any], **more: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.CLIP(24, {**VISION, **vision}, dict(TEXT), **more)
        for parameter in model.parameters():
            if parameter.ndim:  # make every bias, norm and LayerScale matter
                parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval().requires_grad_(False)


def some_images(count: int = 5, size: int = 32) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.manual_seed(1))


def difference(model: Any, images: Tensor, dtype: torch.dtype = torch.float32) -> float:
    """The largest difference of a normalised embedding."""
    with torch.inference_mode():
        plain = functional.normalize(model.encode_image(images), dim=-1)
        tower = read_image_tower(model.visual, dtype)
        assert tower is not None
        fast = functional.normalize(tower(images), dim=-1)
    return float((fast - plain).abs().max())


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize(
    "vision",
    [
        {},
        {"layers": 3, "head_width": 8},
        {"head_width": 32},
        {"ls_init_value": 0.3},
        {"pool_type": "avg"},
        {"pool_type": "avg", "final_ln_after_pool": True},
        {"final_ln_after_pool": True},
        {"attentional_pool": True, "attn_pooler_heads": 2},
        {"no_ln_pre": True, "pos_embed_type": "sin_cos_2d"},
        {"image_size": 64, "patch_size": 8, "mlp_ratio": 2.0},
        WIDE,
        {**WIDE, "ls_init_value": 0.3},
    ],
    ids=str,
)
def test_equals_the_full_forward_of_any_vision_transformer(
    vision: dict[str, Any], quick: bool
) -> None:
    model = make_model(vision, quick_gelu=quick)
    images = some_images(size=vision.get("image_size", 32))
    assert difference(model, images) < 2e-6


def test_equals_the_full_forward_of_many_images_at_once() -> None:
    model = make_model({"patch_size": 4})  # 65 tokens
    assert difference(model, some_images(MAX_ROWS // 65 * 2 + 1)) < 2e-6


@pytest.mark.filterwarnings("ignore")
def test_equals_the_full_forward_of_vit_b_32_of_full_size() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.create_model("ViT-B-32-quickgelu").eval().requires_grad_(False)
    assert difference(model, some_images(2, 224)) < 2e-6


def test_shares_the_weights_of_the_model() -> None:
    model = make_model(WIDE, quick_gelu=True)
    tower = read_image_tower(model.visual)
    assert tower is not None
    layer = model.visual.transformer.resblocks[0]
    assert tower.blocks[0].fc.weight.numel() >= MIN_BLOCKED_WEIGHT
    for own, its in (
        (tower.blocks[0].fc.weight, layer.mlp.c_fc.weight),
        (tower.blocks[0].proj.weight, layer.mlp.c_proj.weight),
        (tower.blocks[0].queries.weight, layer.attn.in_proj_weight),
    ):
        assert own.data_ptr() == its.data_ptr()


@pytest.mark.parametrize("quick", [False, True])
def test_bfloat16_rounds_products_alone(quick: bool) -> None:
    model = make_model({**WIDE, "layers": 4}, quick_gelu=quick)
    images = some_images()
    assert 0 < difference(model, images, torch.bfloat16) < 0.01
    converted = make_model({**WIDE, "layers": 4}, quick_gelu=quick)
    converted.visual.to(torch.bfloat16)
    with torch.inference_mode():
        plain = functional.normalize(model.encode_image(images), dim=-1)
        whole = functional.normalize(converted.encode_image(images.bfloat16()).float(), dim=-1)
    assert difference(model, images, torch.bfloat16) < float((whole - plain).abs().max())


@pytest.mark.parametrize(
    ("vision", "dtype"),
    [
        ({"layers": [1, 1, 1, 1], "width": 8, "head_width": 16}, torch.float32),
        ({"layers": 2, "qk_norm": True}, torch.float32),
        ({"scale_attn_inner": True}, torch.float32),
        ({"output_tokens": True}, torch.float32),
        ({}, torch.float16),
    ],
    ids=["convolutional", "norms of queries", "norms within", "tokens wanted", "float16"],
)
def test_leaves_other_towers_to_open_clip(vision: dict[str, Any], dtype: torch.dtype) -> None:
    assert read_image_tower(make_model(vision).visual, dtype) is None


def test_leaves_other_devices_to_open_clip() -> None:
    assert read_image_tower(make_model({}).visual.to("meta")) is None


def test_a_backbone_uses_it(clip: Backbone) -> None:
    assert clip.image_tower is not None
    with torch.inference_mode():
        plain = functional.normalize(clip.model.encode_image(some_images()), dim=-1)
    np.testing.assert_allclose(clip.encode_images(some_images().numpy()), plain, atol=1e-6)


def test_a_backbone_without_it_answers_by_open_clip() -> None:
    tiny = load_backbone("tiny", device="cpu")
    assert isinstance(tiny, Backbone)
    assert tiny.image_tower is None
    plain = functional.normalize(tiny.model.encode_image(some_images()), dim=-1)
    assert torch.equal(torch.as_tensor(tiny.encode_images(some_images().numpy())), plain)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["random", "tiny"])
def test_a_change_of_precision_says_how_many_labels_stay(
    random_clip: ClipMaker, name: str, precision: ImagePrecision
) -> None:
    backbone = random_clip() if name == "random" else load_backbone("tiny", device="cpu")
    assert isinstance(backbone, Backbone)
    exact = torch.as_tensor(backbone.encode_images(some_images().numpy()))
    agreement = agreement_through(backbone, lambda: backbone.encode_images_in(precision))
    assert agreement.top1 is not None
    assert 0.8 < agreement.top1 <= 1
    assert agreement.text_cosine == pytest.approx(1)
    rounded = torch.as_tensor(backbone.encode_images(some_images().numpy()))
    assert 0 < float((rounded - exact).abs().max()) < 0.02
    assert backbone.describe()["precision"] == precision
    assert backbone.variant == f"torch {precision}"


def test_a_rounded_tower_cannot_change_again(random_clip: ClipMaker) -> None:
    backbone = random_clip()
    backbone.encode_images_in("bfloat16")
    backbone.encode_images_in("bfloat16")  # changes nothing
    with pytest.raises(RuntimeError, match="gone"):
        backbone.encode_images_in("float16")


@pytest.mark.parametrize("count", [1, 2, 5, 40])
@pytest.mark.parametrize("smallest", [1, MIN_PART_PIXELS, 10**9])
def test_parts_of_a_batch_join_to_the_whole(
    clip: Backbone, monkeypatch: pytest.MonkeyPatch, count: int, smallest: int
) -> None:
    monkeypatch.setattr(features, "MIN_PART_PIXELS", smallest)
    images = some_images(count)
    found = torch.as_tensor(encode_batch(list(images), clip))
    assert torch.allclose(found, torch.as_tensor(clip.encode_images(images)), atol=1e-6)
