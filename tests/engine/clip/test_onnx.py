"""Encoders in ONNX Runtime: exported, read back, and compared with the original."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
from PIL import Image

from sharpzo_engine import (
    Backbone,
    Level,
    Progress,
    TuningConfig,
    load_backbone,
    load_dataset,
    tune,
)
from sharpzo_engine.clip.agreement import Answers, Photos
from sharpzo_engine.clip.onnx.bpe import BpeTokenizer
from sharpzo_engine.clip.onnx.encoder import OnnxEncoder
from sharpzo_engine.clip.onnx.export import Disagreement, export_encoder
from sharpzo_engine.clip.onnx.manifest import FILES, MANIFEST, Manifest
from sharpzo_engine.clip.onnx.preprocessing import Preprocessing
from sharpzo_engine.errors import (
    BackboneError,
    BackboneMismatch,
    LevelMissing,
    TuningInterrupted,
)
from sharpzo_engine.search.objective import Objective
from sharpzo_engine.search.prompt_space import PromptSpace
from tests.engine.conftest import random_features

NAMES = ("cat", "red dog", "a thing with a rather long name", "x")
PRECISIONS = ("fp32", "fp16", "int8")


@pytest.fixture(scope="module")
def original() -> Backbone:
    found = load_backbone("tiny", device="cpu")
    assert isinstance(found, Backbone)
    return found


@pytest.fixture(scope="module")
def photos() -> Photos:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (24, 7, 9, 3), np.uint8)
    return Photos([Image.fromarray(one).resize((90, 70)) for one in pixels])


@pytest.fixture(scope="module")
def folders(
    original: Backbone, photos: Photos, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("encoders")
    for precision in PRECISIONS:
        export_encoder(original, root / precision, precision, photos, min_agreement=0)
    return {precision: root / precision for precision in PRECISIONS}


@pytest.mark.parametrize(
    ("precision", "cosine"), [("fp32", 0.999999), ("fp16", 0.9999), ("int8", 0.98)]
)
def test_answers_are_those_of_the_original(
    original: Backbone, photos: Photos, folders: dict[str, Path], precision: str, cosine: float
) -> None:
    encoder = OnnxEncoder(folders[precision])
    found = Answers.of(encoder, photos).agreement(Answers.of(original, photos))
    assert found.photos == len(photos.images)
    assert found.top1 is not None
    assert found.image_cosine is not None
    assert min(found.text_cosine, found.image_cosine) > cosine
    assert encoder.fingerprint == original.fingerprint
    assert encoder.level is Level.CONTEXTS


@pytest.mark.parametrize("count", [1, 3, 4097])
def test_class_embeddings_of_any_number_of_classes(
    original: Backbone, folders: dict[str, Path], count: int
) -> None:
    encoder = OnnxEncoder(folders["fp32"])
    names = [f"{NAMES[i % len(NAMES)]} {i}" for i in range(count)]
    words = "a photo of a"
    assert encoder.tokenize(words, names) == original.tokenize(words, names)
    own, other = encoder.prompts(words, names), original.prompts(words, names)
    context = own.initial_context
    np.testing.assert_array_equal(context, other.initial_context)
    noise = np.random.default_rng(0).standard_normal((2, *context.shape), np.float32)
    points = context + np.float32(0.1) * noise
    expected, found = other.encode(points), own.encode(points)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-5


def test_int8_weights_answer_smoothly(folders: dict[str, Path]) -> None:
    """Runtimes that round activations as well move an answer by far more than this."""
    encoder = OnnxEncoder(folders["int8"])
    prompts = encoder.prompts("a photo of a", NAMES)
    context = prompts.initial_context
    direction = np.random.default_rng(0).standard_normal(context.shape, np.float32)
    lengths = np.float32(1e-4) * np.arange(7, dtype=np.float32)
    points = context + lengths[:, None, None] * direction
    answers = prompts.encode(points).astype(np.float64)
    noise = np.sqrt((np.diff(answers, n=3, axis=0) ** 2).mean() / 20)
    assert noise < 1e-6


def test_a_search_needs_no_derivatives(folders: dict[str, Path]) -> None:
    encoder = OnnxEncoder(folders["fp32"])
    space = PromptSpace(encoder, NAMES)
    objective = Objective(space, random_features(8, encoder.embed_dim, len(NAMES)))
    assert np.isfinite(objective(np.zeros((2, space.dim)))).all()
    with pytest.raises(LevelMissing, match=r"needs an encoder of level tangents, tiny gives cont"):
        objective.tangents(np.zeros(space.dim), np.eye(1, space.dim))


def test_an_encoder_loads_by_its_folder(folders: dict[str, Path]) -> None:
    encoder = load_backbone(f"onnx-dir:{folders['int8']}", alias="small")
    assert (encoder.name, encoder.precision, encoder.runtime) == ("small", "int8", "onnxruntime")
    assert encoder.variant.startswith("onnxruntime int8 ")
    with pytest.raises(BackboneError, match="omit pretrained"):
        load_backbone(f"onnx-dir:{folders['int8']}", "openai")


def test_a_resumed_run_ends_with_the_same_bits(
    folders: dict[str, Path], pictures: Path, tmp_path: Path
) -> None:
    encoder = OnnxEncoder(folders["int8"])
    dataset = load_dataset(pictures)
    config = TuningConfig.parse({"shots": 2, "total_steps": 8, "change_point": 3}, "fast")

    def stop(progress: Progress) -> None:
        if progress.step == 6:
            raise TuningInterrupted

    whole = tune(dataset, encoder, config)
    assert whole.metrics["steps"] == 8
    with pytest.raises(TuningInterrupted):
        tune(dataset, encoder, config, on_step=stop, checkpoint_dir=tmp_path)
    resumed = tune(dataset, encoder, config, checkpoint_dir=tmp_path, resume=True)
    assert resumed.prompt.vectors_sha256 == whole.prompt.vectors_sha256
    with pytest.raises(BackboneMismatch):
        tune(dataset, OnnxEncoder(folders["fp32"]), config, checkpoint_dir=tmp_path, resume=True)


@pytest.mark.parametrize(
    "values",
    [
        {"method": "first-order"},
        {"zo": {"estimator": "jvp", "optimizer": "adam"}},
        {"cma": {"sharpness_estimator": "fo"}},
    ],
)
def test_methods_that_need_derivatives_are_refused(
    folders: dict[str, Path], pictures: Path, values: dict[str, object]
) -> None:
    config = TuningConfig.parse({"shots": 2, **values}, "fast")
    with pytest.raises(LevelMissing, match="gives contexts"):
        tune(load_dataset(pictures), OnnxEncoder(folders["fp32"]), config)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    copy = copied(folders["fp32"], tmp_path)
    (copy / name).write_bytes(b"\0" + (copy / name).read_bytes()[1:])
    with pytest.raises(BackboneError, match=f"{name} is damaged"):
        OnnxEncoder(copy)
    (copy / name).unlink()
    with pytest.raises(BackboneError, match=f"has no {name}"):
        OnnxEncoder(copy)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no encoder.json in"),
        ("[", "is not JSON"),
        ("[]", "is not a sharpzo-encoder/1 file"),
        ('{"kind": "other"}', "is not a sharpzo-encoder/1 file"),
        ('{"kind": "sharpzo-encoder/1"}', "is incomplete"),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(BackboneError, match=message):
        Manifest.read(tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"size": 0}, {"interpolation": "nearest"}, {"resize_mode": "longest"}, {"std": [0, 1, 1]}],
)
def test_an_impossible_preprocessing_is_named(
    folders: dict[str, Path], tmp_path: Path, change: dict[str, object]
) -> None:
    raw = json.loads((folders["fp32"] / MANIFEST).read_text())
    raw["preprocessing"] |= change
    (tmp_path / MANIFEST).write_text(json.dumps(raw))
    with pytest.raises(BackboneError, match="preprocessing is not supported"):
        Manifest.read(tmp_path)


def test_too_little_agreement_writes_nothing(
    original: Backbone, photos: Photos, tmp_path: Path
) -> None:
    with pytest.raises(Disagreement, match=r"of 12 photos get the original's label"):
        export_encoder(original, tmp_path / "x", "int8", photos, min_agreement=1.01)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [(31, 57), (224, 224), (640, 427), (9, 500)])
def test_pixels_are_those_of_open_clip(
    original: Backbone, folders: dict[str, Path], size: tuple[int, int]
) -> None:
    rng = np.random.default_rng(1)
    image = Image.fromarray(rng.integers(0, 256, (8, 11, 3), np.uint8)).resize(size)
    found = OnnxEncoder(folders["fp32"]).preprocess(image)
    assert np.abs(found - original.preprocess(image)).max() < 1e-3


def test_squashed_pixels_are_those_of_open_clip() -> None:
    own = Preprocessing(24, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bilinear", "squash")
    other = open_clip.image_transform(
        24, is_train=False, mean=own.mean, std=own.std, interpolation="bilinear",
        resize_mode="squash",
    )  # fmt: skip
    image = Image.effect_noise((50, 31), 80).convert("RGB")
    assert np.abs(own(image) - other(image).numpy()).max() < 1e-3


@pytest.mark.parametrize(
    "text",
    [
        "a photo of a cat.", "Crème brûlée!!", "it's 2024's T-SHIRT & 12,5 €", "日本語 テキスト",
        "emoji 😀 ok", " &amp;lt; x ", "black-and-white dog_3.", "x " * 100, "", "don't we'LL",
        "Ünïcödé ﬁ",
    ],
)  # fmt: skip
def test_tokens_are_those_of_open_clip(
    original: Backbone, folders: dict[str, Path], text: str
) -> None:
    length = len(original.tower.positional_embedding)
    tokenizer = BpeTokenizer.load(folders["fp32"] / "tokenizer.json", length)
    expected = original.tokenizer([text])
    assert np.array_equal(tokenizer([text]), np.asarray(expected))


def copied(folder: Path, target: Path) -> Path:
    copy = target / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy
