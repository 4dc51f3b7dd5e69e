"""Heads that need neither a search nor validation images: `benchmarks.accuracy --few-shots`.

The dataset is a folder of photos or a file of features. Every draw takes other training images;
`GDA with texts` draws the classes' means towards the texts of the hand-written prompt. `EM` also
learns from the training images that were not drawn, without labels; `skewed` from a part of them,
class frequencies falling linearly from 100 % to 10 %. Their gains are over `GDA with texts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.support.feature_file import FeatureFile
from benchmarks.support.output import Row, Table
from benchmarks.support.setting import Setting
from sharpzo_engine import Encoder, Features, extract_features, load_dataset
from sharpzo_engine.clip.encoder import Floats
from sharpzo_engine.config import PromptConfig
from sharpzo_engine.errors import TooFewImages
from sharpzo_engine.heads.fitting import LinearHead, fit_gda
from sharpzo_engine.heads.stacking import accuracy
from sharpzo_engine.prompts.classifier import zero_shot_weights

SHOTS, DRAWS = (1, 2, 4, 8, 16), 20
ZERO_SHOT, GDA, INFORMED = "zero-shot", "GDA", "GDA with texts"
EM, SKEWED = "GDA with texts + EM", "GDA with texts + EM, skewed"


def compare(setting: Setting) -> Table:
    """Measure the setting's dataset at every number of shots."""
    file = read(setting.folder, setting.backbone, setting.cache)
    return table(measure(setting.folder.stem, file, setting.backbone, SHOTS, DRAWS))


def read(path: Path, backbone: Encoder, cache: Path) -> FeatureFile:
    """The features of a dataset."""
    if path.suffix == ".npz":
        return FeatureFile.read(path)
    dataset = load_dataset(path)
    train, val, test = (
        extract_features(split, backbone, cache_dir=cache)
        for split in (dataset.train, dataset.val, dataset.test)
    )
    return FeatureFile(tuple(dataset.class_names), backbone.fingerprint, train, val, test)


def measure(
    name: str, file: FeatureFile, backbone: Encoder, shots: Sequence[int], draws: int
) -> list[Row]:
    """Test accuracies of every draw."""
    classes = len(file.class_names)
    texts = zero_shot_weights(backbone, PromptConfig().context, file.class_names)
    written = accuracy(LinearHead(texts, np.zeros(classes, np.float32)), file.test)
    rows: list[Row] = []
    for count in shots:
        for seed in range(draws):
            images = file.few_shot(count, seed)
            found: Row = {
                ZERO_SHOT: written,
                GDA: accuracy(fit_gda(images, classes), file.test),
                INFORMED: accuracy(fit_gda(images, classes, texts), file.test),
            }
            found |= _with_unlabelled(file, images, texts, count, seed)
            rows.append({"dataset": name, "shots": count, "seed": seed} | found)
    return rows


def _with_unlabelled(
    file: FeatureFile, images: Features, texts: Floats, shots: int, seed: int
) -> Row:
    """Accuracies with the images beyond the shots as unlabelled ones; None where they are few."""
    found: Row = {}
    for name, rarest in ((EM, 1.0), (SKEWED, 0.1)):
        pool = file.beyond(shots, seed, rarest).images
        try:
            head = fit_gda(images, len(file.class_names), texts, pool)
        except TooFewImages:
            found[name] = None
        else:
            found[name] = accuracy(head, file.test)
    return found


def table(rows: Sequence[Row]) -> Table:
    """Means over draws, and the paired difference with its standard error, in points."""
    lines = []
    for dataset, shots in dict.fromkeys((row["dataset"], row["shots"]) for row in rows):
        own = [row for row in rows if (row["dataset"], row["shots"]) == (dataset, shots)]
        means = [
            f"{100 * np.mean([row[key] for row in own]):.1f}" for key in (ZERO_SHOT, GDA, INFORMED)
        ]
        pairs = ((INFORMED, GDA), (EM, INFORMED), (SKEWED, INFORMED))
        gains = [_gain(own, one, other) for one, other in pairs]
        lines.append([str(dataset), str(shots), *means, *gains])
    header = ("dataset", "shots", ZERO_SHOT, GDA, INFORMED, "gain", "with EM", "EM, skewed")
    return Table("Heads at few shots: test accuracy, %", header, lines)


def _gain(rows: Sequence[Row], one: str, other: str) -> str:
    """The mean paired difference in points, with its standard error."""
    gains = 100 * np.array([row[one] - row[other] for row in rows if row[one] is not None])
    if not len(gains):
        return ""
    error = gains.std(ddof=1) / np.sqrt(len(gains)) if len(gains) > 1 else 0.0
    return f"{gains.mean():+.1f} ± {error:.1f}"
