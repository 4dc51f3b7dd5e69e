"""Tuning on encoders that give no derivatives, and the speed of their image side.

    python -m benchmarks.encoders PHOTOS --backbone local-dir:PATH [--passes N] [--seeds 1 2 3]
    python -m benchmarks.encoders FEATURES.npz --backbone local-dir:PATH

The backbone is exported for ONNX Runtime in each precision, and the default configuration is tuned
on each: `rounded` is int8 with activations rounded in the text encoder as well, which `sharpzo
encoders export` never writes. Image embeddings come from the same encoder as class embeddings; a
file of features holds the backbone's own. Speeds are of one batch at a time, the encoders taking
turns.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from benchmarks.support.feature_file import FeatureFile, prompt_accuracy, search
from benchmarks.support.output import RESULTS, Row, Table
from benchmarks.support.results import Results
from benchmarks.support.setting import Setting, make_parser, setting_of
from sharpzo_engine import Encoder, Objective, TuningConfig, tune
from sharpzo_engine.clip.agreement import Photos
from sharpzo_engine.clip.onnx.encoder import OnnxEncoder
from sharpzo_engine.clip.onnx.export import export_encoder
from sharpzo_engine.clip.onnx.manifest import MANIFEST, TEXT, Manifest, Precision, hash_files
from sharpzo_engine.clip.onnx.quantize import to_int8
from sharpzo_engine.data.images import decode_image

SEEDS, PASSES = (1, 2, 3, 4, 5), 10_000
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
TORCH, ROUNDED = "torch", "rounded"
BATCH, TURNS = 16, 15
CALIBRATION = 64  # photos
FEATURES, SIDE = ".npz", 256


def encoders(setting: Setting, folder: Path) -> dict[str, Encoder]:
    """The backbone itself, and its exported forms."""
    photos = _photos(setting)
    found: dict[str, Encoder] = {TORCH: setting.backbone}
    for precision in PRECISIONS:
        export_encoder(setting.backbone, folder / precision, precision, photos, min_agreement=0)
        found[precision] = OnnxEncoder(folder / precision)
    shutil.copytree(folder / "int8", folder / ROUNDED)
    to_int8(folder / "fp32" / TEXT, folder / ROUNDED / TEXT)
    manifest = Manifest.read(folder / ROUNDED)
    files = hash_files(folder / ROUNDED)
    (folder / ROUNDED / MANIFEST).write_text(replace(manifest, files=files).to_json())
    found[ROUNDED] = OnnxEncoder(folder / ROUNDED)
    return found


def _photos(setting: Setting) -> Photos:
    """Photos to calibrate with; beside a file of features, only the text tower is used."""
    if setting.folder.suffix == FEATURES:
        return Photos([Image.new("RGB", (SIDE, SIDE), (shade, 0, 0)) for shade in range(8)])
    train = setting.dataset(SEEDS[0]).train
    examples = train[:: max(1, len(train) // CALIBRATION)]
    return Photos([decode_image(example.path.read_bytes()) for example in examples])


def run(setting: Setting, named: Mapping[str, Encoder], seed: int, name: str) -> list[Row]:
    """The prompt's test accuracy (a fraction) on one encoder."""
    config = setting.config(seed, {"head": "none"})
    if setting.folder.suffix == FEATURES:
        return [{"seed": seed, "encoder": name} | _search(setting.folder, named[name], config)]
    result = tune(setting.dataset(seed), named[name], config, cache_dir=setting.cache)
    keys = ("zero_shot_accuracy", "prompt_test_accuracy", "forward_passes", "seconds")
    return [{"seed": seed, "encoder": name} | {key: result.metrics[key] for key in keys}]


def _search(path: Path, encoder: Encoder, config: TuningConfig) -> Row:
    file = FeatureFile.read(path)
    train = file.few_shot(config.shots, config.seed)
    found = search(encoder, file.class_names, train, file.validation, config)
    return {
        "zero_shot_accuracy": Objective(found.space, file.test).score(found.space.origin).accuracy,
        "prompt_test_accuracy": prompt_accuracy(found, file.test),
        "forward_passes": found.forward_passes,
        "seconds": found.seconds,
    }


def images_per_second(named: Mapping[str, Encoder]) -> dict[str, float]:
    """Medians over `TURNS` turns of one batch for each encoder."""
    size = named[TORCH].image_size
    pixels = np.random.default_rng(0).random((BATCH, 3, size, size), np.float32)
    seconds: dict[str, list[float]] = {name: [] for name in named}
    for _ in range(TURNS):
        for name, encoder in named.items():
            started = time.perf_counter()
            encoder.encode_images(pixels)
            seconds[name].append(time.perf_counter() - started)
    return {name: BATCH / statistics.median(times) for name, times in seconds.items()}


def tables(rows: Sequence[Row], rates: Mapping[str, float], title: str) -> list[Table]:
    """One line per encoder, in the order measured."""
    lines = []
    for name in dict.fromkeys(str(row["encoder"]) for row in rows):
        own = [row for row in rows if row["encoder"] == name]
        accuracies = [100 * row["prompt_test_accuracy"] for row in own]
        spread = statistics.stdev(accuracies) if len(own) > 1 else 0.0
        passes = statistics.mean(row["forward_passes"] for row in own)
        rate = rates.get(name)
        ratio = "" if rate is None else f"{rate / rates[TORCH]:.1f}"
        lines.append(
            [name, f"{statistics.mean(accuracies):.1f} ± {spread:.1f}", f"{passes:,.0f}", ratio]
        )
    header = ("encoder", "test accuracy, %", "forward passes", "images/s, torch = 1")
    return [Table(f"Encoders: {title}", header, lines)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = make_parser(__doc__, SEEDS, PASSES)
    names = (TORCH, *PRECISIONS, ROUNDED)
    parser.add_argument("--encoders", nargs="+", choices=names, default=names, metavar="NAME")
    options = parser.parse_args(arguments)
    with setting_of(options) as setting, TemporaryDirectory() as folder:
        path = options.json or RESULTS / "encoders.json"
        results = Results.open(path, setting.facts(), resume=options.resume)
        named = encoders(setting, Path(folder))
        for name in options.encoders:
            for seed in setting.seeds:
                results.measure([seed, name], partial(run, setting, named, seed, name))
        for table in tables(results.rows, images_per_second(named), setting.title):
            table.print()


if __name__ == "__main__":
    main()
