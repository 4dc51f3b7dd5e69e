"""The forward-only encoder equals open_clip's own full forward."""

from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sharpzo_engine.clip.features import Features
from sharpzo_engine.clip.loading import load_backbone
from sharpzo_engine.clip.torch.backbone import Backbone
from sharpzo_engine.clip.torch.packing import Packing, split_classes
from sharpzo_engine.clip.torch.text_encoder import ForwardTextEncoder
from sharpzo_engine.config import PromptConfig
from sharpzo_engine.errors import BackboneError, ConfigError, DatasetError
from sharpzo_engine.search.objective import Objective
from sharpzo_engine.search.prompt_space import PromptSpace
from tests.engine.conftest import ClipMaker, draw_backbone, draw_names

#: Names of 1 to 12 tokens, in no order of length.
NAMES = [
    "cat",
    "red panda",
    "a b c d e f g h i j k l",
    "fire truck",
    "one two three four five",
    "x",
    "tree house in the old park",
    "annual crop land",
    "seven of nine with an apple pie",
    "dog",
    "eleven words are in this name of a class as here",
]


def relative_error(backbone: Backbone, points: np.ndarray, names: list[str] = NAMES) -> float:
    space = PromptSpace(backbone, names)
    fast = space.class_embeddings(points)
    with torch.inference_mode():
        context = torch.from_numpy(space.context(points))
        tokens = backbone.tokenize(PromptConfig().context, names)
        plain = backbone.plain_text_encoder(tokens).encode(context).numpy()
    return float(np.abs(fast - plain).max() / np.abs(plain).max())


def some_points(count: int, seed: int = 0) -> np.ndarray:
    return 0.3 * np.random.default_rng(seed).normal(size=(count, 512))


def test_the_names_have_1_to_12_tokens(clip: Backbone) -> None:
    tokens = clip.tokenize("a photo of a", NAMES)
    assert {len(suffix) - 2 for suffix in tokens.suffixes} >= {1, 2, 3, 5, 6, 12}


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16", "RN50", "RN101", "ViT-B-32-quickgelu"])
@pytest.mark.filterwarnings("ignore")
def test_equals_the_full_forward_of_the_papers_architectures(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.create_model(name)
    tokenizer = open_clip.get_tokenizer(name)
    backbone = Backbone(model, lambda image: image, tokenizer, name=name, pretrained=None)
    assert relative_error(backbone, some_points(1)) < 1e-5


def test_equals_the_full_forward_of_tiny() -> None:
    assert relative_error(load_backbone("tiny", device="cpu"), some_points(3)) < 1e-5


def test_equals_the_full_forward_of_a_real_checkpoint(real_data: Any) -> None:
    backbone = load_backbone(f"local-dir:{real_data / 'lite'}", device="cpu")
    assert relative_error(backbone, some_points(3)) < 1e-5


def test_reproduces_losses_computed_elsewhere_in_float64(real_data: Any) -> None:
    golden = np.load(real_data / "golden.npz")
    backbone = load_backbone(f"local-dir:{real_data / 'lite'}", device="cpu")
    context = PromptConfig(context=str(golden["context"]))
    names = [str(name) for name in golden["class_names"]]
    space = PromptSpace(backbone, names, context, projection=golden["projection"])
    features = Features(golden["image_features"], golden["labels"])
    losses = Objective(space, features)(golden["points"])
    np.testing.assert_allclose(losses, golden["losses"], rtol=1e-5)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_equals_the_full_forward_of_any_architecture(
    random_clip: ClipMaker, data: st.DataObject
) -> None:
    backbone, names = draw_backbone(random_clip, data), draw_names(data)
    points = some_points(data.draw(st.integers(1, 5)), data.draw(st.integers(0, 99)))
    assert relative_error(backbone, points, names) < 2e-5


def test_equals_the_full_forward_where_products_go_through_onednn(random_clip: ClipMaker) -> None:
    backbone = random_clip({"width": 256, "heads": 4}, quick_gelu=True)
    assert relative_error(backbone, some_points(3)) < 1e-5


@pytest.mark.parametrize("max_rows", [1, 7, 30, 10_000])
def test_chunking_changes_nothing(clip: Backbone, max_rows: int) -> None:
    space = PromptSpace(clip, NAMES)
    context = space.context(some_points(5))
    whole = space.prompts.encode(context)
    tokens = clip.tokenize(PromptConfig().context, NAMES)
    space.prompts.forward = ForwardTextEncoder(clip.tower, tokens, max_rows)
    np.testing.assert_allclose(space.prompts.encode(context), whole, rtol=0, atol=2e-6)


def test_permuting_classes_permutes_the_rows(clip: Backbone) -> None:
    points, order = some_points(2), np.random.default_rng(3).permutation(len(NAMES))
    rows = PromptSpace(clip, NAMES).class_embeddings(points)
    permuted = PromptSpace(clip, [NAMES[i] for i in order]).class_embeddings(points)
    np.testing.assert_allclose(permuted, rows[:, order], rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ({"no_causal_mask": True}, "bidirectional"),
        ({"pool_type": "last"}, "read out at 'last'"),
        ({"block_type": "custom", "qk_norm": True}, "extra normalisation"),
        ({"block_type": "custom", "scale_heads": True}, "learned factors"),
        ({"proj_type": "none"}, "no projection"),
        ({"act_kwargs": {"approximate": "tanh"}}, "activation GELU"),
    ],
)
def test_other_towers_are_refused_with_the_reason(
    random_clip: ClipMaker, text: dict[str, Any], reason: str
) -> None:
    with pytest.raises(BackboneError, match=reason):
        random_clip(text)


def test_custom_blocks_without_extras_are_read_too(random_clip: ClipMaker) -> None:
    assert relative_error(random_clip({"block_type": "custom"}), some_points(2)) < 1e-5


def test_a_class_name_too_long_for_the_tower_is_refused(clip: Backbone) -> None:
    with pytest.raises(DatasetError, match="too long for the text tower"):
        PromptSpace(clip, ["cat", "word " * 80])


@pytest.mark.parametrize(
    ("context", "reason"), [("   ", "no token"), ("word " * 80, "too many"), ("x" * 3, None)]
)
def test_the_context_is_checked(clip: Backbone, context: str, reason: str | None) -> None:
    if reason is None:
        assert PromptSpace(clip, ["cat", "dog"], PromptConfig(context=context)).dim == 512
        return
    with pytest.raises(ConfigError, match=reason):
        clip.tokenize(context, ["cat", "dog"])


def test_permuting_candidates_permutes_the_results(clip: Backbone) -> None:
    space, points = PromptSpace(clip, NAMES), some_points(7)
    order = np.random.default_rng(3).permutation(len(points))
    np.testing.assert_allclose(
        space.class_embeddings(points[order]),
        space.class_embeddings(points)[order],
        rtol=0,
        atol=2e-6,
    )


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(3, 40), min_size=1, max_size=60),
    context=st.integers(1, 16),
    largest=st.integers(1, 300),
)
def test_packs_hold_every_class_once_and_little_else(
    lengths: list[int], context: int, largest: int
) -> None:
    packs = split_classes(lengths, context, largest)
    assert sorted(c for pack in packs for c in pack) == list(range(len(lengths)))
    suffixes = [range(length) for length in lengths]
    for pack in packs:
        packing = Packing.build(suffixes, pack, context)
        used = context + sum(lengths[c] for c in pack)
        assert used <= packing.rows < used + len(packing.blocks) * (max(lengths) + context)
        assert sorted(m for block in packing.blocks for m in block) == list(range(len(pack)))


def test_a_row_sees_sos_the_context_and_its_own_class_up_to_itself() -> None:
    packing = Packing.build([[7, 8], [9]], [0, 1], context=2)
    x, o = 0.0, float("-inf")
    expected = [  # SOS, context (2), rows: context (2), class 0 (2), class 1
        [x, o, o, x, o, o, o, o],
        [x, o, o, x, x, o, o, o],
        [x, x, x, o, o, x, o, o],
        [x, x, x, o, o, x, x, o],
        [x, x, x, o, o, o, o, x],
    ]
    assert packing.mask().tolist() == [expected]
    assert packing.ends() == [3, 4]
