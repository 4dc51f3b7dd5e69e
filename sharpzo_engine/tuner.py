"""`tune`: dataset -> features -> objective -> stage 1 -> stage 2 -> `TunedPrompt`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import torch

import sharpzo_engine
from sharpzo_engine.artifact import Stacked, TunedPrompt
from sharpzo_engine.backbone import Backbone
from sharpzo_engine.checkpoint import CheckpointFolder
from sharpzo_engine.classifier import evaluate
from sharpzo_engine.config import TuningConfig
from sharpzo_engine.dataset import Dataset, Example, few_shot, group_by_label
from sharpzo_engine.errors import DatasetError
from sharpzo_engine.features import Features, OnProgress, extract_features
from sharpzo_engine.heads import CPU, LinearHead
from sharpzo_engine.history import StepRecord
from sharpzo_engine.landscape import Pace, survey
from sharpzo_engine.objective import Objective
from sharpzo_engine.progress import OnStep, Phase, Progress
from sharpzo_engine.prompt import Array, PromptSpace
from sharpzo_engine.randomness import Purpose, generator
from sharpzo_engine.report import RunReport
from sharpzo_engine.search import Search
from sharpzo_engine.stacking import (
    HEAD_ALONE,
    PROMPT,
    TIP_ADAPTER,
    ZERO_SHOT,
    Material,
    Stacking,
    accuracy,
    stack_heads,
)

__all__ = ["Progress", "StepRecord", "TuneResult", "tune"]

CHECKPOINT_SECONDS = 10.0
MAX_HOLDOUT = 4  # images per class held out of the shots for validation

Metrics = dict[str, float | int | None]


@dataclass(frozen=True)
class TuneResult:
    """A tuned prompt, what it scores, and how the run went."""

    prompt: TunedPrompt
    metrics: Metrics  #: accuracies are fractions
    history: tuple[StepRecord, ...]
    stopped_by: str  #: "completed", "max_forward_passes" or "max_seconds"
    validation_source: str  #: "official", "holdout" or "training", see `split_validation`
    comparison: Mapping[str, float]  #: accuracy of everything that could have been served
    comparison_split: str  #: "test"; without test images "validation", and without those "training"
    report: RunReport  #: all of this as JSON and as an HTML page


def tune(
    dataset: Dataset,
    backbone: Backbone,
    config: TuningConfig | None = None,
    *,
    on_step: OnStep | None = None,
    checkpoint_dir: str | Path | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    resume: bool = False,
    cache_dir: str | Path | None = None,
) -> TuneResult:
    """Tune a prompt for the dataset's classes with forward passes only.

    Args:
        dataset: sampled already (`load_dataset(..., shots=16)`), or sampled here by the config.
        backbone: the frozen CLIP model.
        config: hyperparameters; none is the `default` preset.
        on_step: called with `Progress` after every step and while preparing; may raise
            `TuningInterrupted` (or `TuningCancelled`), upon which a checkpoint is written.
        checkpoint_dir: where to keep checkpoints; none keeps none.
        checkpoint_seconds: time between two checkpoints.
        resume: go on from the folder's last checkpoint, if there is one; on a CPU the result equals
            the uninterrupted run's bit for bit.
        cache_dir: where to keep image features by content; none keeps none.

    Raises:
        DatasetError: too few images, or one that cannot be read.
        CheckpointError: `resume` found another run's checkpoint.
        TuningInterrupted: `on_step` asked for it.
    """
    config = config or TuningConfig()
    report = _Reporter(config, on_step)
    cache = Path(cache_dir) if cache_dir else None
    train, validation, source = split_validation(dataset, config)
    embed = partial(extract_features, backbone=backbone, cache_dir=cache)
    view_seed = config.seed if config.training_view == "random" else None
    saying = report.embedding("training")
    train_features = embed(train, on_progress=saying, view_seed=view_seed)
    val_features = embed(validation, on_progress=report.embedding("validation"))
    space = PromptSpace(backbone, dataset.class_names, config.prompt, config.seed)
    search = Search(
        config, Objective(space, train_features), Objective(space, val_features), on_step
    )
    checkpoints = _checkpoints(checkpoint_dir, config, space, train_features, val_features)
    if resume and checkpoints and (snapshot := checkpoints.load()):
        search.restore(snapshot)
    point = search.run(checkpoints, checkpoint_seconds)
    report.phase = "evaluating"
    report.search = search
    report.say("fitting the head")
    material = _material(space, point, train_features, val_features, source)
    stacking = stack_heads(config.head, material)
    test_features = embed(dataset.test, on_progress=report.embedding("test"))
    comparison, split = _compare(config, material, stacking, test_features.to(CPU))
    served = accuracy(stacking.served.head, test_features.to(CPU)) if split == "test" else None
    metrics = _metrics(search, comparison, served, len(test_features), len(val_features))
    origin = {
        "dataset": {"name": dataset.name, "shots": dataset.shots or config.shots},
        "validation_source": source,
        "stopped_by": search.stopped_by,
    }
    prompt = _to_prompt(space, point, config, stacking, metrics, origin)
    scored = test_features if len(test_features) else val_features
    run = _run_report(search, prompt, Objective(space, train_features), scored, report)
    run = replace(run, comparison=comparison)
    history, stopped_by = run.history, search.stopped_by
    return TuneResult(prompt, metrics, history, stopped_by, source, comparison, split, run)


def split_validation(
    dataset: Dataset, config: TuningConfig
) -> tuple[tuple[Example, ...], tuple[Example, ...], str]:
    """The training and validation examples of a run, and where the latter come from.

    `official`: the dataset's own validation split, at most `shots` images per class. `holdout`: a
    quarter of the shots, at most 4 per class, taken out of training. `training`: with fewer than
    4 shots there is nothing to spare, and the training images themselves are scored.

    Raises:
        DatasetError: `official` was asked for, and the dataset has no validation split.
        TooFewImages: a class has fewer images than shots.
    """
    if dataset.shots is None:
        dataset = few_shot(dataset, config.shots, config.seed)
    shots = dataset.shots or config.shots
    if config.validation == "official" and not dataset.val:
        raise DatasetError("validation is 'official', but the dataset has no val split")
    if dataset.val and config.validation != "holdout":
        return dataset.train, _at_most(dataset.val, shots), "official"
    held_out = min(MAX_HOLDOUT, shots // 4)
    if not held_out:
        return dataset.train, dataset.train, "training"
    validation = _at_most(dataset.train, held_out)
    kept = set(validation)
    return tuple(e for e in dataset.train if e not in kept), validation, "holdout"


def _at_most(examples: tuple[Example, ...], count: int) -> tuple[Example, ...]:
    """The first `count` of each class; few-shot samples come in random order already."""
    groups = group_by_label(examples).values()
    return tuple(example for group in groups for example in group[:count])


class _Reporter:
    """Reports what happens outside the search loop."""

    def __init__(self, config: TuningConfig, on_step: OnStep | None) -> None:
        self._config = config
        self._on_step = on_step
        self.phase: Phase = "preparing"
        self.search: Search | None = None

    def embedding(self, what: str) -> OnProgress:
        """A callback that tells how far the embedding of a split is."""
        return self.counting(f"embedding {what} images:")

    def counting(self, what: str) -> OnProgress:
        """A callback that tells how many of the parts of some work are done."""
        return lambda done, total: self.say(f"{what} {done} of {total}")

    def say(self, message: str) -> None:
        if self._on_step is None:
            return
        self._on_step(
            Progress(
                phase=self.phase,
                step=len(self.search.history) if self.search else 0,
                total_steps=self._config.total_steps,
                forward_passes=self.search.forward_passes if self.search else 0,
                message=message,
            )
        )


def _checkpoints(
    folder: str | Path | None,
    config: TuningConfig,
    space: PromptSpace,
    *features: Features,
) -> CheckpointFolder | None:
    """The run's checkpoint folder; its identity is everything that decides the run."""
    if folder is None:
        return None
    digest = hashlib.sha256(json.dumps(config.model_dump(mode="json"), sort_keys=True).encode())
    digest.update(space.backbone.fingerprint.encode())
    digest.update(space.projection_sha256.encode())
    digest.update(json.dumps(space.class_names).encode())
    for split in features:
        digest.update(split.images.cpu().numpy().tobytes())
        digest.update(split.labels.cpu().numpy().tobytes())
    return CheckpointFolder(Path(folder), digest.hexdigest())


def _material(
    space: PromptSpace, point: Array, train: Features, validation: Features, source: str
) -> Material:
    """What a head is fitted to and chosen on; test images are no part of it."""
    embeddings = space.class_embeddings(np.stack([space.origin, point])).cpu()
    zero_shot, tuned = (
        LinearHead(space.backbone.logit_scale * rows, torch.zeros(len(rows))) for rows in embeddings
    )
    return Material(train.to(CPU), validation.to(CPU), source, tuned, zero_shot)


def _compare(
    config: TuningConfig, material: Material, stacking: Stacking, test: Features
) -> tuple[dict[str, float], str]:
    """Accuracies of all that could be served, and the split that they were measured on.

    Without test images heads are measured on validation images that they were not fitted to.
    """
    compared, split = test, "test"
    if not len(test):
        compared = material.validation
        split = "training" if material.source == "training" else "validation"
        if material.source == "holdout":
            stacking = stack_heads(config.head, replace(material, source="official"))
    return {name: accuracy(head, compared) for name, head in stacking.rows.items()}, split


def _metrics(
    search: Search,
    comparison: Mapping[str, float],
    served: float | None,
    test_images: int,
    validation_images: int,
) -> Metrics:
    """What the run reached; test accuracies are None where there are no test images."""
    tested: Mapping[str, float] = comparison if test_images else {}
    return {
        "zero_shot_accuracy": tested.get(ZERO_SHOT, search.start.accuracy),
        "test_accuracy": served,
        "prompt_test_accuracy": tested.get(PROMPT),
        "head_test_accuracy": tested.get(HEAD_ALONE),
        "tip_adapter_test_accuracy": tested.get(TIP_ADAPTER),
        "val_accuracy": search.best.score.accuracy,
        "val_loss": search.best.score.loss,
        "zero_shot_val_accuracy": search.start.accuracy,
        "loss": search.training_loss,
        "forward_passes": search.forward_passes,
        "seconds": search.seconds,
        "steps": len(search.history),
        "test_images": test_images,
        "validation_images": validation_images,
    }


def _run_report(
    search: Search,
    prompt: TunedPrompt,
    objective: Objective,
    scored: Features,
    report: _Reporter,
) -> RunReport:
    """The report of a finished search; `objective` is its own: those passes are not billed."""
    space, point = objective.space, search.best.point
    zero_shot, tuned = space.class_embeddings(np.stack([space.origin, point]))
    before = evaluate(zero_shot, scored, space.class_names)
    after = evaluate(tuned, scored, space.class_names)
    if prompt.metadata["metrics"]["test_images"]:
        # What is served; a head may have been fitted to any other images than those of the test.
        weights = torch.from_numpy(prompt.weights)
        after = evaluate(weights, scored, space.class_names, torch.from_numpy(prompt.bias))
    history = tuple(search.history)
    pace = Pace(history[-1].seconds, history[-1].forward_passes) if history else Pace(0.0, 0)
    rng = generator(prompt.metadata["config"]["seed"], Purpose.LANDSCAPE)
    on_row = report.counting("surveying the loss landscape: row")
    landscape = survey(objective, space.origin, point, rng, pace, on_row)
    return RunReport(space.class_names, prompt.metadata, history, before, after, landscape)


def _to_prompt(
    space: PromptSpace,
    point: Array,
    config: TuningConfig,
    stacking: Stacking,
    metrics: Metrics,
    origin: Mapping[str, object],
) -> TunedPrompt:
    served = stacking.served
    matrix = Stacked(served.head.weights.numpy(), served.head.bias.numpy())
    return TunedPrompt(
        class_names=space.class_names,
        class_embeddings=space.class_embeddings(point[None])[0].cpu().numpy(),
        context=space.context(point[None])[0].cpu().numpy(),
        logit_scale=space.backbone.logit_scale,
        metadata={
            "backbone": space.backbone.describe(),
            "config": config.model_dump(mode="json"),
            "metrics": metrics,
            "head": served.describe(),
            **origin,
            "point": point.tolist(),
            "projection_sha256": space.projection_sha256,
            "engine_version": sharpzo_engine.__version__,
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        },
        stacked=None if served.kind == "none" else matrix,
    )
