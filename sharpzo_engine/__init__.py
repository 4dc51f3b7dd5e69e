"""SharpZO: adapt CLIP to your own classes with forward passes only.

    from sharpzo_engine import TuningConfig, load_backbone, load_dataset, tune

    backbone = load_backbone("ViT-B-16", pretrained="openai")
    dataset = load_dataset("photos/", shots=16)
    tune(dataset, backbone, TuningConfig()).prompt.save("prompt.safetensors")

Names are loaded when first used: importing this package, or its `config`, `errors`, `layout` and
`images`, never loads torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sharpzo_engine.artifact import TunedPrompt
    from sharpzo_engine.backbone import Backbone, load_backbone
    from sharpzo_engine.classifier import Prediction, PromptClassifier
    from sharpzo_engine.config import TuningConfig
    from sharpzo_engine.dataset import Dataset, Example, few_shot, load_dataset
    from sharpzo_engine.errors import EngineError, TuningCancelled, TuningInterrupted
    from sharpzo_engine.evaluation import Evaluation, evaluate
    from sharpzo_engine.report import RunReport
    from sharpzo_engine.tuner import Progress, StepRecord, TuneResult, tune

__version__ = "0.1.0"

_HOME = {
    "Backbone": "backbone",
    "Dataset": "dataset",
    "EngineError": "errors",
    "Evaluation": "evaluation",
    "Example": "dataset",
    "Prediction": "classifier",
    "Progress": "tuner",
    "PromptClassifier": "classifier",
    "RunReport": "report",
    "StepRecord": "tuner",
    "TuneResult": "tuner",
    "TunedPrompt": "artifact",
    "TuningCancelled": "errors",
    "TuningConfig": "config",
    "TuningInterrupted": "errors",
    "evaluate": "evaluation",
    "few_shot": "dataset",
    "load_backbone": "backbone",
    "load_dataset": "dataset",
    "tune": "tuner",
}

__all__ = [
    "Backbone",
    "Dataset",
    "EngineError",
    "Evaluation",
    "Example",
    "Prediction",
    "Progress",
    "PromptClassifier",
    "RunReport",
    "StepRecord",
    "TuneResult",
    "TunedPrompt",
    "TuningCancelled",
    "TuningConfig",
    "TuningInterrupted",
    "evaluate",
    "few_shot",
    "load_backbone",
    "load_dataset",
    "tune",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
