"""SharpZO: adapt CLIP to your own classes with forward passes only.

    from sharpzo_engine import TuningConfig, load_backbone, load_dataset, tune

    backbone = load_backbone("ViT-B-16", pretrained="openai")
    dataset = load_dataset("photos/", shots=16)
    tune(dataset, backbone, TuningConfig()).prompt.save("prompt.safetensors")

Names are loaded when first used: importing this package, its `config`, `errors` or most of its
`data`, never loads torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from sharpzo_engine._version import __version__

if TYPE_CHECKING:
    from sharpzo_engine.clip.encoder import Encoder
    from sharpzo_engine.clip.features import Features, extract_features
    from sharpzo_engine.clip.level import Level
    from sharpzo_engine.clip.loading import load_backbone
    from sharpzo_engine.clip.torch.backbone import Backbone
    from sharpzo_engine.config import CmaConfig, PromptConfig, TuningConfig, ZoConfig
    from sharpzo_engine.data.dataset import Dataset, Example, few_shot, load_dataset
    from sharpzo_engine.errors import (
        EngineError,
        FinishSearch,
        TuningCancelled,
        TuningInterrupted,
    )
    from sharpzo_engine.prompts.artifact import TunedPrompt
    from sharpzo_engine.prompts.classifier import Prediction, PromptClassifier
    from sharpzo_engine.prompts.evaluation import Evaluation, evaluate
    from sharpzo_engine.reports.report import RunReport
    from sharpzo_engine.result import TuneResult
    from sharpzo_engine.search.history import StepRecord
    from sharpzo_engine.search.objective import Objective
    from sharpzo_engine.search.progress import Progress
    from sharpzo_engine.search.prompt_space import PromptSpace
    from sharpzo_engine.search.stages.gauss_newton import GaussNewton
    from sharpzo_engine.search.stages.sharp_cma import SharpCma
    from sharpzo_engine.search.stages.sparse_zo import SparseZo
    from sharpzo_engine.tuner import tune

#: Where each public name lives.
_HOME = {
    "Backbone": "clip.torch.backbone",
    "Encoder": "clip.encoder",
    "Level": "clip.level",
    "CmaConfig": "config",
    "Dataset": "data.dataset",
    "EngineError": "errors",
    "Evaluation": "prompts.evaluation",
    "Example": "data.dataset",
    "Features": "clip.features",
    "FinishSearch": "errors",
    "GaussNewton": "search.stages.gauss_newton",
    "Objective": "search.objective",
    "Prediction": "prompts.classifier",
    "Progress": "search.progress",
    "PromptClassifier": "prompts.classifier",
    "PromptConfig": "config",
    "PromptSpace": "search.prompt_space",
    "RunReport": "reports.report",
    "SharpCma": "search.stages.sharp_cma",
    "SparseZo": "search.stages.sparse_zo",
    "StepRecord": "search.history",
    "TuneResult": "result",
    "TunedPrompt": "prompts.artifact",
    "TuningCancelled": "errors",
    "TuningConfig": "config",
    "TuningInterrupted": "errors",
    "ZoConfig": "config",
    "evaluate": "prompts.evaluation",
    "extract_features": "clip.features",
    "few_shot": "data.dataset",
    "load_backbone": "clip.loading",
    "load_dataset": "data.dataset",
    "tune": "tuner",
}

__all__ = [
    "Backbone",
    "CmaConfig",
    "Dataset",
    "Encoder",
    "EngineError",
    "Evaluation",
    "Example",
    "Features",
    "FinishSearch",
    "GaussNewton",
    "Level",
    "Objective",
    "Prediction",
    "Progress",
    "PromptClassifier",
    "PromptConfig",
    "PromptSpace",
    "RunReport",
    "SharpCma",
    "SparseZo",
    "StepRecord",
    "TuneResult",
    "TunedPrompt",
    "TuningCancelled",
    "TuningConfig",
    "TuningInterrupted",
    "ZoConfig",
    "__version__",
    "evaluate",
    "extract_features",
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
    return sorted(__all__)
