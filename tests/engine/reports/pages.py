"""Reports of runs that never were, of any size, with any names."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sharpzo_engine.config import TuningConfig
from sharpzo_engine.prompts.evaluation import Evaluation
from sharpzo_engine.reports.report import RunReport
from sharpzo_engine.search.history import StepRecord
from sharpzo_engine.search.landscape import Landscape, NoLandscape, SearchSpeed, compute_landscape

PER_CLASS = 20  # test images


def a_report(names: Sequence[str] = ("cat", "dog"), steps: int = 120, **changes: Any) -> RunReport:
    """A report with everything in it; `changes` go into its metadata."""
    rng = np.random.default_rng(0)
    history = a_history(steps, steps // 4, rng)
    before, after = (an_evaluation(names, accuracy, rng) for accuracy in (0.5, 0.8))
    metrics = {
        "zero_shot_accuracy": before.accuracy,
        "test_accuracy": after.accuracy,
        "zero_shot_val_accuracy": 0.5,
        "val_accuracy": 0.75,
        "loss": float("nan"),
        "forward_passes": history[-1].forward_passes if history else 1,
        "seconds": 31.25,
        "steps": steps,
        "test_images": after.images,
    }
    metadata = {
        "dataset": {"name": "pets", "shots": 16},
        "backbone": {"name": "ViT-B-16", "pretrained": "openai", "fingerprint": "f" * 64},
        "config": TuningConfig().model_dump(mode="json"),
        "metrics": metrics,
        "head": {"name": "tuned prompt", "kind": "none"},
        "choice": {
            "reason": "tuned prompt: clearly better than gda on 40 images",
            "images": 40,
            "candidates": [
                {
                    "name": "tuned prompt",
                    "loss": 0.5,
                    "accuracy": 0.75,
                    "difference": -0.25,
                    "standard_error": 0.125,
                },
                {
                    "name": "gda",
                    "loss": 0.75,
                    "accuracy": 0.7,
                    "difference": None,
                    "standard_error": None,
                },
            ],
        },
        "validation_source": "holdout",
        "stopped_by": "completed",
        "projection_sha256": "a" * 64,
        "engine_version": "0.1.0",
        "created_at": "2026-01-01T00:00:00+00:00",
        "point": [0.0, 1.0],
    }
    return RunReport(tuple(names), metadata | changes, history, before, after, a_landscape(rng))


def a_history(steps: int, change: int, rng: np.random.Generator) -> tuple[StepRecord, ...]:
    return tuple(
        StepRecord(
            step=step,
            phase="stage1" if step <= change else "stage2",
            loss=float(1 / step + rng.random()),
            val_loss=float(1 / step) if step % 5 == 0 else None,
            val_accuracy=float(rng.random()) if step % 5 == 0 else None,
            sigma=0.4 if step <= change else None,
            sharpness=0.1 / step if step <= change else None,
            forward_passes=step * 40,
            seconds=step * 0.01,
        )
        for step in range(1, steps + 1)
    )


def an_evaluation(names: Sequence[str], accuracy: float, rng: np.random.Generator) -> Evaluation:
    count = len(names)
    confusion = np.zeros((count, count), dtype=int)
    for true in range(count):
        right = rng.random(PER_CLASS) < rng.normal(accuracy, 0.25)
        predicted = np.where(right, true, (true + rng.integers(1, 6, PER_CLASS)) % count)
        np.add.at(confusion[true], predicted, 1)
    right = confusion.diagonal()
    per_class = {name: float(right[i] / PER_CLASS) for i, name in enumerate(names)}
    images = count * PER_CLASS
    return Evaluation(images, float(right.sum() / images), per_class, confusion.tolist())


def a_landscape(rng: np.random.Generator) -> Landscape | NoLandscape:
    speed = SearchSpeed(1.0, 1000)
    return compute_landscape(lambda w: (w**2).sum(-1), np.ones(4), np.zeros(4), rng, speed)
