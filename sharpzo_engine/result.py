"""Turns a finished search into its result: head, test accuracies, prompt file, report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sharpzo_engine._version import __version__
from sharpzo_engine.clip.encoder import Floats
from sharpzo_engine.clip.features import Features
from sharpzo_engine.clip.level import Level
from sharpzo_engine.clip.texts import template_embeddings
from sharpzo_engine.config import TuningConfig
from sharpzo_engine.heads.fitting import LinearHead
from sharpzo_engine.heads.stacking import (
    HEAD_ALONE,
    PROMPT,
    TIP_ADAPTER,
    ZERO_SHOT,
    HeadData,
    Stacking,
    accuracy,
    stack_heads,
)
from sharpzo_engine.prompts.artifact import Stacked, TunedPrompt
from sharpzo_engine.prompts.evaluation import evaluate
from sharpzo_engine.prompts.interval import interval_figures
from sharpzo_engine.randomness import Purpose, generator
from sharpzo_engine.reports.report import RunReport
from sharpzo_engine.search.history import StepRecord
from sharpzo_engine.search.landscape import SearchSpeed, compute_landscape
from sharpzo_engine.search.loop import Search
from sharpzo_engine.search.methods import stage_label
from sharpzo_engine.search.objective import Objective
from sharpzo_engine.search.progress import Phase
from sharpzo_engine.search.prompt_space import PromptSpace

Array = NDArray[np.float64]
Metrics = dict[str, float | int | None]
OnRow = Callable[[int, int], None]  #: (rows of the loss landscape done, rows in all)


@dataclass(frozen=True)
class TuneResult:
    """A tuned prompt with its metrics, history and report."""

    prompt: TunedPrompt
    metrics: Metrics  #: accuracies are fractions
    history: tuple[StepRecord, ...]
    stopped_by: str  #: "completed", "enough", "max_forward_passes", "max_seconds", "finished"
    validation_source: str  #: "official", "holdout" or "training", see `split_validation`
    comparison: Mapping[str, float]  #: classifier -> accuracy
    comparison_split: str  #: "test"; if there is none, "validation" or "training"
    report: RunReport  #: the same as JSON and as an HTML page


@dataclass(frozen=True)
class FinishedSearch:
    """A finished search, and the images that it used."""

    config: TuningConfig
    search: Search
    dataset: Mapping[str, object]  #: name and shots
    train: Features
    validation: Features
    source: str  #: source of the validation images, see `tuner.split_validation`
    unlabelled: Floats | None = None  #: embeddings [U, E] of the images without labels

    @property
    def class_names(self) -> tuple[str, ...]:
        """The dataset's classes, then those without images."""
        return (*self.search.space.class_names, *self.config.extra_classes)

    def class_embeddings(self, points: Array) -> Floats:
        """Points [n, d] -> L2-normalised embeddings of all classes [n, C, E].

        Residuals belong to the classes that were searched; without any, an extra class has the
        embedding of the hand-written prompt.
        """
        space = self.search.space
        found = space.class_embeddings(points)
        if not self.config.extra_classes:
            return found
        prompts = space.backbone.prompts(self.config.prompt.context, self.config.extra_classes)
        contexts = space.context(points)
        if not space.backbone.level.includes(Level.CONTEXTS):
            contexts = np.stack([prompts.initial_context] * len(points))
        return np.concatenate([found, prompts.encode(contexts)], axis=1)

    @cached_property
    def embeddings(self) -> Floats:
        """Of the hand-written prompt and of the tuned one [2, C, E]."""
        points = np.stack([self.search.space.origin, self.search.best.point])
        return self.class_embeddings(points)


def create_result(
    finished: FinishedSearch, stacking: Stacking, test: Features, on_row: OnRow
) -> TuneResult:
    """Score the prompt and its head on the test images, which are used nowhere else."""
    search = finished.search
    comparison, split = _compare(finished, stacking, test)
    served = accuracy(stacking.served.head, test) if split == "test" else None
    metrics = _metrics(search, comparison, served, len(test), len(finished.validation))
    origin = {
        "dataset": finished.dataset,
        "validation_source": finished.source,
        "unlabelled_images": 0 if finished.unlabelled is None else len(finished.unlabelled),
        "stopped_by": search.stopped_by,
    }
    prompt = _to_prompt(finished, stacking, metrics, origin)
    report = replace(_run_report(finished, prompt, test, on_row), comparison=comparison)
    return TuneResult(
        prompt,
        metrics,
        report.history,
        search.stopped_by,
        finished.source,
        comparison,
        split,
        report,
    )


def fit_head(finished: FinishedSearch) -> Stacking:
    """Choose and fit the head, without test images."""
    return stack_heads(finished.config.head, _head_data(finished))


def _head_data(finished: FinishedSearch) -> HeadData:
    search, space = finished.search, finished.search.space
    templates = finished.config.prompt.templates
    texts = None
    if templates and space.backbone.level is not Level.IMAGES:
        texts = template_embeddings(space.backbone, templates, finished.class_names)
    zero_shot, tuned = (_as_head(rows, space) for rows in finished.embeddings)
    extra = len(finished.config.extra_classes)
    return HeadData(
        train=finished.train,
        validation=finished.validation,
        source=finished.source,
        prompt=tuned,
        zero_shot=zero_shot,
        templates=None if texts is None else _as_head(texts, space),
        unbiased=None if extra else search.unbiased_logits(),
        unlabelled=finished.unlabelled,
        extra_classes=extra,
    )


def _as_head(embeddings: Floats, space: PromptSpace) -> LinearHead:
    scale = np.float32(space.backbone.logit_scale)
    return LinearHead(scale * embeddings, np.zeros(len(embeddings), np.float32))


def _compare(
    finished: FinishedSearch, stacking: Stacking, test: Features
) -> tuple[dict[str, float], str]:
    """Accuracies of all classifiers, and the split that they were measured on.

    Without test images, heads are measured on validation images that they were not fitted to.
    """
    compared, split = test, "test"
    if not len(test):
        compared = finished.validation
        split = "training" if finished.source == "training" else "validation"
        if finished.source == "holdout":
            stacking = fit_head(replace(finished, source="official"))
    return {name: accuracy(head, compared) for name, head in stacking.rows.items()}, split


def _metrics(
    search: Search,
    comparison: Mapping[str, float],
    served: float | None,
    test_images: int,
    validation_images: int,
) -> Metrics:
    """Metrics of the run; test accuracies are None if there are no test images.

    Only test accuracies have intervals: the other images have chosen what is measured on them.
    """
    tested: Mapping[str, float] = comparison if test_images else {}
    return {
        "zero_shot_accuracy": tested.get(ZERO_SHOT, search.start.accuracy),
        **interval_figures("zero_shot_accuracy", tested.get(ZERO_SHOT), test_images),
        "test_accuracy": served,
        **interval_figures("test_accuracy", served, test_images),
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
        "selected_step": search.selected_step,
        "test_images": test_images,
        "validation_images": validation_images,
    }


def _run_report(
    finished: FinishedSearch, prompt: TunedPrompt, test: Features, on_row: OnRow
) -> RunReport:
    search = finished.search
    space, point = search.space, search.best.point
    scored = test if len(test) else finished.validation
    names = finished.class_names
    zero_shot, tuned = finished.embeddings
    before = evaluate(zero_shot, scored, names)
    after = evaluate(tuned, scored, names)
    if len(test):
        # Score the served head only on test images, as it may have been fitted to all others.
        after = evaluate(prompt.weights, scored, names, prompt.bias)
    history = tuple(search.history)
    seconds, passes = (history[-1].seconds, history[-1].forward_passes) if history else (0.0, 0)
    speed = SearchSpeed(seconds, passes)
    rng = generator(finished.config.seed, Purpose.LANDSCAPE)
    # Separate, so that its passes are not counted.
    objective = Objective(space, finished.train, finished.config.zo.anchor)
    landscape = compute_landscape(objective, space.origin, point, rng, speed, on_row)
    stages: tuple[Phase, ...] = ("stage1", "stage2")
    return RunReport(
        names,
        prompt.metadata,
        history,
        before,
        after,
        landscape,
        stage_labels={stage: stage_label(stage, finished.config, objective) for stage in stages},
    )


def _to_prompt(
    finished: FinishedSearch,
    stacking: Stacking,
    metrics: Metrics,
    origin: Mapping[str, object],
) -> TunedPrompt:
    space, point = finished.search.space, finished.search.best.point
    served = stacking.served
    matrix = Stacked(*served.head.in_float32())
    return TunedPrompt(
        class_names=finished.class_names,
        class_embeddings=finished.embeddings[1],
        context=space.context(point[None])[0],
        logit_scale=space.backbone.logit_scale,
        metadata={
            "backbone": space.backbone.describe(),
            "config": finished.config.model_dump(mode="json"),
            "metrics": metrics,
            "head": served.describe(),
            "choice": stacking.choice.describe(),
            **origin,
            "point": point.tolist(),
            "projection_sha256": space.projection_sha256,
            "engine_version": __version__,
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        },
        stacked=None if served.is_prompt else matrix,
    )
