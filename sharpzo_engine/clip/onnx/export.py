"""Writes a CLIP model as a folder that ONNX Runtime can run, and measures how well they agree."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import safetensors.numpy
from PIL import Image

from sharpzo_engine.clip.agreement import Agreement, Answers, Photos, batches, pixels
from sharpzo_engine.clip.level import Level
from sharpzo_engine.clip.onnx.bpe import BpeTokenizer
from sharpzo_engine.clip.onnx.encoder import OnnxEncoder
from sharpzo_engine.clip.onnx.graphs import write_image_graph, write_text_graph
from sharpzo_engine.clip.onnx.manifest import (
    IMAGE,
    MANIFEST,
    TEXT,
    TOKENIZER,
    TOKENS,
    Manifest,
    Precision,
    hash_files,
)
from sharpzo_engine.clip.onnx.preprocessing import Preprocessing
from sharpzo_engine.clip.onnx.quantize import to_int8, weights_to_half, weights_to_int8
from sharpzo_engine.clip.torch.backbone import Backbone
from sharpzo_engine.errors import BackboneError

MIN_AGREEMENT = 0.98
#: Largest difference of a pixel, in units of the model's own scale.
PIXEL_TOLERANCE = 1e-3
_TEXTS = (
    "a photo of a cat.", "Crème brûlée, 12 €", "it's a T-shirt &amp; jeans", "日本語", "x " * 100,
)  # fmt: skip


class Disagreement(BackboneError):  # noqa: N818 - named for the fact
    """The exported encoder's answers differ too much from the original's."""


def export_encoder(
    backbone: Backbone,
    folder: Path,
    precision: Precision,
    photos: Photos | None = None,
    min_agreement: float = MIN_AGREEMENT,
) -> Agreement:
    """Write a new folder for `OnnxEncoder`; an existing one is replaced when all has succeeded.

    Without photos, int8 scales activations by what each call brings; with them, half of the photos
    also calibrate fixed scales, and the better of both is written. Agreement is measured on the
    other half, through the written files.

    Raises:
        BackboneError: the model's preprocessing or tokenizer is not supported.
        Disagreement: fewer than `min_agreement` of the photos get the original's label.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        parts = Path(temporary) / "encoder"
        parts.mkdir()
        with _quiet():
            agreement = _write(backbone, parts, precision, photos)
        if agreement.top1 is not None and agreement.top1 < min_agreement:
            raise Disagreement(
                f"only {agreement.top1:.1%} of {agreement.photos} photos get the original's label, "
                f"less than {min_agreement:.1%}"
            )
        if folder.exists():
            shutil.rmtree(folder)
        parts.rename(folder)
    return agreement


def _write(
    backbone: Backbone, folder: Path, precision: Precision, photos: Photos | None
) -> Agreement:
    tokenizer = _tokenizer(backbone)
    tokenizer.save(folder / TOKENIZER)
    preprocessing = backbone.preprocessing
    _check_preprocessing(backbone, preprocessing)
    tokens = backbone.tower.token_embedding.cpu().numpy()
    kept = tokens if precision == "fp32" else tokens.astype(np.float16)
    # Not `save_file`: what it writes is for its owner alone, not for a service's user.
    (folder / TOKENS).write_bytes(safetensors.numpy.save({"tokens": kept}))
    text, image = folder / "text.fp32.onnx", folder / "image.fp32.onnx"
    write_text_graph(backbone, tokenizer.start, text)
    write_image_graph(backbone, image)
    if precision == "fp32":
        shutil.copy(text, folder / TEXT)
    else:
        (weights_to_half if precision == "fp16" else weights_to_int8)(text, folder / TEXT)
    manifest = Manifest(
        name=backbone.name,
        pretrained=backbone.pretrained,
        fingerprint=backbone.fingerprint,
        precision=precision,
        level=Level.CONTEXTS,
        logit_scale=backbone.logit_scale,
        embed_dim=backbone.embed_dim,
        text_width=backbone.text_width,
        positions=len(backbone.tower.positional_embedding),
        preprocessing=preprocessing,
        files={},
    )
    calibration, held_out = _halves(photos)
    expected = Answers.of(backbone, held_out)
    measured: list[tuple[Agreement, bytes]] = []
    for write in _image_writers(precision, backbone, calibration):
        write(image, folder / IMAGE)
        _write_manifest(folder, manifest)
        agreement = Answers.of(OnnxEncoder(folder), held_out).agreement(expected)
        measured.append((agreement, (folder / IMAGE).read_bytes()))
    agreement, graph = max(measured, key=lambda one: one[0].top1 or 0)  # the first of equals
    (folder / IMAGE).write_bytes(graph)
    text.unlink()
    image.unlink()
    _write_manifest(folder, replace(manifest, agreement=agreement.to_dict()))
    return agreement


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the remarks of the exporters on every constant that they fold."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _image_writers(
    precision: Precision, backbone: Backbone, calibration: Sequence[Image.Image]
) -> list[Callable[[Path, Path], object]]:
    if precision != "int8":
        return [shutil.copy if precision == "fp32" else weights_to_half]
    if not calibration:
        return [to_int8]
    examples = [pixels(backbone, part) for part in batches(calibration)]
    return [lambda source, target: to_int8(source, target, examples), to_int8]


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    (folder / MANIFEST).write_text(replace(manifest, files=hash_files(folder)).to_json())


def _halves(photos: Photos | None) -> tuple[Sequence[Image.Image], Photos | None]:
    """Photos to calibrate on, and others to measure on."""
    if photos is None:
        return (), None
    return photos.images[::2], replace(photos, images=photos.images[1::2])


def _tokenizer(backbone: Backbone) -> BpeTokenizer:
    tokenizer = backbone.tokenizer
    if not isinstance(tokenizer, open_clip.tokenizer.SimpleTokenizer):
        name = type(tokenizer).__name__
        raise BackboneError(f"the tokenizer {name} cannot be exported (use a model with CLIP's)")
    length = len(backbone.tower.positional_embedding)
    written = BpeTokenizer.build(tokenizer.encoder, list(tokenizer.bpe_ranks), length)
    expected = tokenizer(list(_TEXTS), context_length=length).numpy()
    if not np.array_equal(written(_TEXTS), expected):
        raise BackboneError("this model's tokenizer is not CLIP's own and cannot be exported")
    return written


def _check_preprocessing(backbone: Backbone, preprocessing: Preprocessing) -> None:
    rng = np.random.default_rng(0)
    size = backbone.image_size
    for height, width in ((2 * size + 3, 3 * size), (size, size + 7), (size // 2 + 1, size)):
        noise = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), np.uint8)
        image = Image.fromarray(noise).resize((width, height))
        difference = np.abs(backbone.preprocess(image) - preprocessing(image))
        if difference.max() > PIXEL_TOLERANCE:
            raise BackboneError("this model's preprocessing is not supported by the exporter")
