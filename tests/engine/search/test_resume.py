"""Wherever a run is interrupted, the resumed one ends with the same bits."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sharpzo_engine import TuneResult, TuningConfig, load_dataset, tune
from sharpzo_engine.clip.torch.backbone import Backbone
from sharpzo_engine.search.checkpoint import CheckpointFolder, Snapshot
from sharpzo_engine.search.stages import gauss_newton

POINTS = 20  # interruptions of every run
SMALL: dict[str, Any] = {
    "shots": 4,
    "total_steps": 48,
    "change_point": 16,
    "head": "none",
    "prompt": {"intrinsic_dim": 16},
    "cma": {"population_size": 6},
    "zo": {"queries": 3},
}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gauss-newton": ("default", {}),
    "masked adam": (
        "default",
        {
            "cma": {
                "population_size": 6,
                "sharpness_estimator": "zo",
                "sharpness_interval": 3,
                "bound": 5.0,
            },
            "zo": {
                "queries": 2,
                "optimizer": "adam",
                "estimator": "rge",
                "mask": "z-score",
                "prune_interval": 5,
                "learning_rate": 0.05,
            },
        },
    ),
    "reference": ("reference", {"zo": {"queries": 1}}),
}
#: Seeded, both stages, and always: before the first, around the change point, before the last step.
INTERRUPTIONS = sorted(
    {1, 15, 16, 17, 47}
    | set(np.random.default_rng(0).permutation(np.arange(2, 47))[: POINTS - 2].tolist())
)


@dataclass
class Recorded:
    """A run that was left alone, with the checkpoint of every step."""

    config: TuningConfig
    result: TuneResult
    checkpoints: list[Path]
    resume: Callable[[int, Path], TuneResult]


@pytest.fixture(scope="module", params=CONFIGS)
def recorded(
    pictures: Path,
    clip: Backbone,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Recorded:
    root = tmp_path_factory.mktemp("run")
    preset, changes = CONFIGS[request.param]
    config = TuningConfig.parse({**SMALL, **changes}, preset)
    dataset = load_dataset(pictures, shots=config.shots)
    checkpoints: list[Path] = []

    def resume(at: int, folder: Path) -> TuneResult:
        shutil.copy(checkpoints[at - 1], folder / "checkpoint.safetensors")
        return tune(
            dataset, clip, config, checkpoint_dir=folder, resume=True, cache_dir=root / "cache"
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gauss_newton, "MAX_JACOBIAN", 10 * 3 * 24)  # ten of sixteen coordinates
        patch.setattr(gauss_newton, "ROUNDS_PER_SUBSET", 1)
        save = CheckpointFolder.save

        def keep(folder: CheckpointFolder, snapshot: Snapshot) -> None:
            save(folder, snapshot)
            kept = root / f"{len(checkpoints)}.safetensors"
            shutil.copy(root / "checkpoint.safetensors", kept)
            checkpoints.append(kept)

        with pytest.MonkeyPatch.context() as spying:
            spying.setattr(CheckpointFolder, "save", keep)
            result = tune(
                dataset,
                clip,
                config,
                checkpoint_dir=root,
                checkpoint_seconds=0.0,
                cache_dir=root / "cache",
            )
        yield Recorded(config, result, checkpoints, resume)


def test_there_is_a_checkpoint_of_every_step_of_both_stages(recorded: Recorded) -> None:
    phases = [record.phase for record in recorded.result.history]
    assert phases == ["stage1"] * 16 + ["stage2"] * 32
    assert len(recorded.checkpoints) == 48
    assert len(INTERRUPTIONS) >= POINTS


@pytest.mark.parametrize("at", INTERRUPTIONS)
def test_the_resumed_run_ends_with_the_same_bits(
    recorded: Recorded, tmp_path: Path, at: int
) -> None:
    resumed, whole = recorded.resume(at, tmp_path), recorded.result
    assert resumed.prompt.vectors_sha256 == whole.prompt.vectors_sha256
    assert resumed.metrics["forward_passes"] == whole.metrics["forward_passes"]
    assert [r.loss for r in resumed.history] == [r.loss for r in whole.history]


def test_the_prompt_depends_on_the_whole_run(recorded: Recorded) -> None:
    """Or else equal bits would say nothing."""
    losses = [record.loss for record in recorded.result.history]
    assert len(set(losses)) > 40
    assert np.any(recorded.result.prompt.metadata["point"])
