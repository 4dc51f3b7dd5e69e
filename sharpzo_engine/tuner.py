"""`tune`: dataset -> features -> objective -> stage 1 -> stage 2 -> `TunedPrompt`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sharpzo_engine.clip.encoder import Encoder, require
from sharpzo_engine.clip.features import OnProgress, extract_features, hash_file
from sharpzo_engine.clip.level import Level
from sharpzo_engine.clip.residuals import prototypes
from sharpzo_engine.config import EXTENDABLE, TuningConfig
from sharpzo_engine.data.dataset import (
    Dataset,
    Example,
    check_unlabelled,
    few_shot,
    group_by_label,
    select_classes,
)
from sharpzo_engine.data.layout import SPLITS
from sharpzo_engine.errors import DatasetError, FinishSearch
from sharpzo_engine.result import FinishedSearch, Metrics, TuneResult, create_result, fit_head
from sharpzo_engine.search.checkpoint import (
    BACKBONE,
    CheckpointEvent,
    CheckpointFolder,
    Checkpointing,
    OnCheckpoint,
)
from sharpzo_engine.search.history import StepRecord
from sharpzo_engine.search.loop import Search
from sharpzo_engine.search.objective import Objective
from sharpzo_engine.search.progress import OnStep, Phase, Progress
from sharpzo_engine.search.prompt_space import PromptSpace

__all__ = ["CheckpointEvent", "Metrics", "Progress", "StepRecord", "TuneResult", "tune"]

CHECKPOINT_SECONDS = 10.0
MAX_HOLDOUT = 4  # images per class held out of the shots for validation


def tune(
    dataset: Dataset,
    backbone: Encoder,
    config: TuningConfig | None = None,
    *,
    on_step: OnStep | None = None,
    checkpoint_dir: str | Path | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    resume: bool = False,
    on_checkpoint: OnCheckpoint | None = None,
    cache_dir: str | Path | None = None,
    unlabelled: Sequence[Path | Example] | None = None,
) -> TuneResult:
    """Tune a prompt for the dataset's classes with forward passes only.

    Args:
        dataset: the dataset; if it is not sampled (`load_dataset(..., shots=16)`), the config
            decides the sample.
        backbone: the frozen CLIP model.
        config: hyperparameters; None is the `default` preset.
        on_step: called with `Progress` after every step, during preparation and during evaluation.
            It may raise `FinishSearch`: the search takes no further step, and the run completes
            with the best prompt so far (`stopped_by` is "finished"). Raised during preparation, it
            ends the search before its first step; during evaluation it changes nothing. It may
            also raise `TuningInterrupted` (or `TuningCancelled`); then a checkpoint is written.
        checkpoint_dir: folder for checkpoints; None disables them.
        checkpoint_seconds: longest time between two checkpoints; the first ones are more frequent.
        resume: continue from the folder's last checkpoint, if there is one. On a CPU the result is
            bit-identical to that of an uninterrupted run. The budgets (`total_steps`,
            `max_forward_passes`, `max_seconds`) may be larger than before; they include the work
            done before.
        on_checkpoint: called with a `CheckpointEvent` when a checkpoint is saved, cannot be saved,
            is rejected or is resumed from. Without it, a checkpoint that cannot be written is only
            logged.
        cache_dir: folder in which image features are cached by content; None disables the cache.
        unlabelled: more images of the dataset's classes, five per class or more, that nobody has
            labelled. They refine the GDA head (`heads.fitting.fit_gda`) and nothing else, so they
            may change when a run is resumed. The label of an `Example` is not looked at. Files
            that the dataset names itself are left out: its shots, validation and test images.

    Raises:
        LevelMissing: the backbone does not give what the method needs.
        ConfigError: `extra_classes` cannot be served beside the dataset's classes.
        DatasetError: too few images, too long a class name, or an image that cannot be read.
        TooFewImages: a class has fewer images than shots, or there are fewer than five unlabelled
            images per class.
        CheckpointError: `resume` found another run's checkpoint.
        BackboneMismatch: `resume` found a checkpoint of a backbone with other weights.
        TuningInterrupted: raised by `on_step`.
    """
    config = config or TuningConfig()
    if config.needs_derivatives and backbone.level is Level.CONTEXTS:
        require(backbone, Level.TANGENTS, config.needs_derivatives)
    report = _Reporter(config, on_step)
    cache = Path(cache_dir) if cache_dir else None
    dataset = _sampled(dataset, config)
    train, validation, source = split_validation(dataset, config)
    more = None
    if unlabelled is not None:
        config.check_unlabelled()
        more = _unlabelled(unlabelled, dataset)
    if config.extra_classes:
        shots = dataset.shots or config.shots
        judged = shots > 1 or source == "official"
        has_texts = backbone.level.includes(Level.TEXTS)
        config.check_extra_classes(dataset.class_names, has_texts=has_texts, has_judges=judged)
        backbone.prompts(config.prompt.context, config.extra_classes)  # whether they can be encoded
    embed = partial(extract_features, backbone=backbone, cache_dir=cache)
    view_seed = config.seed if config.training_view == "random" else None
    train_features = embed(train, on_progress=report.embedding("training"), view_seed=view_seed)
    val_features = embed(validation, on_progress=report.embedding("validation"))
    more_features = None
    if more is not None:
        more_features = embed(more, on_progress=report.embedding("unlabelled")).images
    prompts = None
    if backbone.level is Level.IMAGES:
        prompts = prototypes(train_features.images, train_features.labels, len(dataset.class_names))
    space = PromptSpace(backbone, dataset.class_names, config.prompt, config.seed, prompts=prompts)
    training = Objective(space, train_features, config.zo.anchor)
    search = Search(config, training, Objective(space, val_features), on_step)
    checkpoints = None
    if checkpoint_dir:
        identity = _identity(config, backbone, dataset.class_names, train, validation)
        folder = CheckpointFolder(Path(checkpoint_dir), identity)
        checkpoints = Checkpointing(folder, checkpoint_seconds, on_checkpoint)
    if resume and checkpoints and (snapshot := checkpoints.load()):
        search.restore(snapshot)
        checkpoints.resumed(len(search.history))
    if report.finish_asked:
        search.finish()
    search.run(checkpoints)
    report.phase, report.search = "evaluating", search
    about = {"name": dataset.name, "shots": dataset.shots or config.shots}
    finished = FinishedSearch(
        config, search, about, train_features, val_features, source, more_features
    )
    report.send("fitting the head")
    stacking = fit_head(finished)
    test_features = embed(dataset.test, on_progress=report.embedding("test"))
    on_row = report.counting("computing the loss landscape: row")
    return create_result(finished, stacking, test_features, on_row)


def split_validation(
    dataset: Dataset, config: TuningConfig
) -> tuple[tuple[Example, ...], tuple[Example, ...], str]:
    """The training and validation examples of a run, and the source of the latter.

    `official`: the dataset's own validation split, at most `shots` images per class. `holdout`: a
    quarter of the shots, at most 4 per class, removed from training. `training`: the training
    images, if there are fewer than 4 shots.

    Raises:
        DatasetError: the config asks for `official`, but the dataset has no validation split.
        TooFewImages: a class has fewer images than shots.
    """
    dataset = _sampled(dataset, config)
    shots = dataset.shots or config.shots
    if config.validation == "official" and not dataset.val:
        raise DatasetError(
            "validation is 'official', but the dataset has no val split (set it to auto)"
        )
    if dataset.val and config.validation != "holdout":
        return dataset.train, _at_most(dataset.val, shots), "official"
    held_out = min(MAX_HOLDOUT, shots // 4)
    if not held_out:
        return dataset.train, dataset.train, "training"
    validation = _at_most(dataset.train, held_out)
    kept = set(validation)
    return tuple(e for e in dataset.train if e not in kept), validation, "holdout"


def _sampled(dataset: Dataset, config: TuningConfig) -> Dataset:
    """Sample the config's shots and classes, unless the dataset is sampled already."""
    if dataset.shots is None:
        return few_shot(dataset, config.shots, config.seed, config.classes)
    return select_classes(dataset, config.classes)


def _at_most(examples: tuple[Example, ...], count: int) -> tuple[Example, ...]:
    """The first `count` examples of each class; few-shot samples are in random order."""
    groups = group_by_label(examples).values()
    return tuple(example for group in groups for example in group[:count])


def _unlabelled(images: Sequence[Path | Example], dataset: Dataset) -> tuple[Example, ...]:
    """The images as examples whose label says nothing, without those of the sampled dataset."""
    own = {e.path.resolve() for split in SPLITS for e in dataset.split(split)}
    paths = [image.path if isinstance(image, Example) else Path(image) for image in images]
    kept = tuple(Example(path, 0) for path in paths if path.resolve() not in own)
    check_unlabelled(len(kept), len(dataset.class_names))
    return kept


class _Reporter:
    """Reports progress outside the search loop."""

    def __init__(self, config: TuningConfig, on_step: OnStep | None) -> None:
        self._config = config
        self._on_step = on_step
        self.phase: Phase = "preparing"
        self.search: Search | None = None
        self.finish_asked = False

    def embedding(self, what: str) -> OnProgress:
        """A callback that reports the progress of embedding a split."""
        return self.counting(f"embedding {what} images:")

    def counting(self, what: str) -> OnProgress:
        """A callback that reports how many parts of some work are done."""
        return lambda done, total: self.send(f"{what} {done} of {total}")

    def send(self, message: str) -> None:
        if self._on_step is None:
            return
        progress = Progress(
            phase=self.phase,
            step=len(self.search.history) if self.search else 0,
            total_steps=self.search.expected_steps if self.search else self._config.total_steps,
            forward_passes=self.search.forward_passes if self.search else 0,
            message=message,
        )
        try:
            self._on_step(progress)
        except FinishSearch:  # images embedded so far are of no use without the others
            self.finish_asked = True


def _identity(
    config: TuningConfig,
    backbone: Encoder,
    class_names: Sequence[str],
    *splits: Sequence[Example],
) -> dict[str, Any]:
    """Identifies a run: its checkpoints can be resumed if all of these parts are equal.

    Images are identified by their content, because the last bits of their features differ between
    processors.
    """
    images = hashlib.sha256()
    for split in splits:
        images.update(len(split).to_bytes(8, "little"))
        for example in split:
            images.update(hash_file(example.path) + example.label.to_bytes(8, "little"))
    return {
        "hyperparameters": config.model_dump(mode="json", exclude=set(EXTENDABLE)),
        BACKBONE: f"{backbone.fingerprint} {backbone.variant}".strip(),
        "classes": list(class_names),
        "images": images.hexdigest(),
    }
