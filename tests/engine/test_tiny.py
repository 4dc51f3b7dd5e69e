"""The bundled backbone: it loads, it is small, it reads digits moderately, it can be made again."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch

from sharpzo_engine.tiny import MODEL_NAME, PATH
from tools.tiny_clip.captions import write_caption
from tools.tiny_clip.corpus import make_corpus
from tools.tiny_clip.evaluate import evaluate
from tools.tiny_clip.glyphs import Concept, concepts
from tools.tiny_clip.pretrain import CONFIG_FILE, WEIGHTS_FILE, build_model, main
from tools.tiny_clip.render import IMAGE_SIZE, render
from tools.tiny_clip.style import Turn, draw_style

SIZE_LIMIT = 9.5e6  # bytes


def test_bundled_files_are_small() -> None:
    assert sum((PATH / name).stat().st_size for name in (CONFIG_FILE, WEIGHTS_FILE)) <= SIZE_LIMIT


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, sharpzo_engine.tiny; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_bundled_model_loads_and_encodes() -> None:
    model, _, preprocess = open_clip.create_model_and_transforms(
        MODEL_NAME, require_pretrained=True
    )
    model.eval()
    picture = torch.zeros(2, 3, IMAGE_SIZE, IMAGE_SIZE)
    tokens = open_clip.get_tokenizer(MODEL_NAME)(["a photo of a seven."])
    with torch.inference_mode():
        assert model.encode_image(picture).shape == (2, 128)
        assert model.encode_text(tokens).shape == (1, 128)
    assert preprocess is not None
    assert model.logit_scale.exp() <= 100.01  # half precision rounds


def test_zero_shot_is_useful_but_leaves_room() -> None:
    measured = evaluate(PATH)
    assert 0.30 <= measured["zero_shot_accuracy"] <= 0.75
    assert measured["few_shot_accuracy"] >= 0.85


def test_pretraining_writes_a_loadable_model(tmp_path: Path) -> None:
    arguments = ["--steps", "2", "--pictures", "16", "--batch-size", "8", "--processes", "1"]
    main(["--out", str(tmp_path), *arguments])
    open_clip.create_model_and_transforms(f"local-dir:{tmp_path}", require_pretrained=True)


def test_building_a_model_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, second = build_model(3), build_model(3)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.text_projection, second.text_projection)


def test_corpus_depends_on_its_seed_alone() -> None:
    first, second, other = (make_corpus(6, seed) for seed in (1, 1, 2))
    assert first.captions == second.captions
    assert np.array_equal(first.pictures, second.pictures)
    assert first.captions != other.captions


@pytest.mark.parametrize("concept", concepts(), ids=lambda concept: concept.name)
def test_every_concept_can_be_drawn_and_named(concept: Concept) -> None:
    rng = np.random.default_rng(0)
    style = draw_style(concept, rng)
    picture = render(concept, style, rng)
    assert picture.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
    assert picture.dtype == np.uint8
    assert np.ptp(picture) > 0
    caption = write_caption(concept, style, rng)
    assert concept.name in caption or concept.character in caption


def test_only_captions_of_photos_hide_that_a_digit_is_turned() -> None:
    rng = np.random.default_rng(0)
    six = concepts()[6]
    styles = [draw_style(six, rng) for _ in range(500)]
    turned = [style for style in styles if style.turn is Turn.UPSIDE_DOWN]
    captions = [write_caption(six, style, rng) for style in turned]
    hiding = [caption for caption in captions if "upside down" not in caption]
    assert 0 < len(hiding) < len(captions)
    assert all("photo" in caption for caption in hiding)
