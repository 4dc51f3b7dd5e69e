"""Artifacts and checkpoints: every flipped bit is found, and another run's file is refused."""

import errno
import logging
from pathlib import Path

import numpy as np
import pytest

from sharpzo_engine.checksummed import ChecksumError, seal, unseal
from sharpzo_engine.errors import ArtifactError, BackboneMismatch, CheckpointError
from sharpzo_engine.prompts.artifact import HEADLESS_KIND, KIND, Stacked, TunedPrompt
from sharpzo_engine.search import checkpoint
from sharpzo_engine.search.checkpoint import (
    CheckpointEvent,
    CheckpointFolder,
    Checkpointing,
    Snapshot,
)


def some_prompt(**changes: object) -> TunedPrompt:
    fields: dict[str, object] = {
        "class_names": ("cat", "dog"),
        "class_embeddings": np.eye(2, 3, dtype=np.float32),
        "context": np.ones((4, 5), dtype=np.float32),
        "logit_scale": 100.0,
        "metadata": {"backbone": {"name": "x", "fingerprint": "f" * 64}, "metrics": {"a": None}},
    }
    return TunedPrompt(**{**fields, **changes})  # type: ignore[arg-type]


def test_a_prompt_survives_the_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "prompt.safetensors"
    digest = some_prompt().save(path)
    loaded = TunedPrompt.load(path)
    assert loaded.class_names == ("cat", "dog")
    assert loaded.fingerprint == "f" * 64
    assert loaded.vectors_sha256 == some_prompt().vectors_sha256
    np.testing.assert_array_equal(loaded.class_embeddings, np.eye(2, 3))
    assert len(digest) == 64
    assert [p.name for p in path.parent.iterdir()] == ["prompt.safetensors"]


STACKED = Stacked(
    np.arange(6, dtype=np.float32).reshape(2, 3), np.array([0.5, -0.5], dtype=np.float32)
)


def test_without_a_head_weights_and_bias_are_the_prompts_own() -> None:
    np.testing.assert_array_equal(some_prompt().weights, 100 * np.eye(2, 3, dtype=np.float32))
    np.testing.assert_array_equal(some_prompt().bias, np.zeros(2, dtype=np.float32))
    assert (some_prompt().weights.dtype, some_prompt().bias.dtype) == (np.float32, np.float32)


def test_a_head_survives_the_file() -> None:
    loaded = TunedPrompt.load(some_prompt(stacked=STACKED).to_bytes())
    np.testing.assert_array_equal(loaded.weights, STACKED.weights)
    np.testing.assert_array_equal(loaded.bias, STACKED.bias)
    np.testing.assert_array_equal(loaded.class_embeddings, np.eye(2, 3))
    assert loaded.vectors_sha256 == some_prompt(stacked=STACKED).vectors_sha256


def test_a_file_of_the_first_kind_is_a_prompt_without_a_head() -> None:
    prompt = some_prompt()
    arrays = {"class_embeddings": prompt.class_embeddings, "context": prompt.context}
    metadata = {**prompt.metadata, "class_names": ["cat", "dog"], "logit_scale": 100.0}
    loaded = TunedPrompt.load(seal(arrays, metadata, HEADLESS_KIND))
    assert loaded.stacked is None
    assert loaded.vectors_sha256 == prompt.vectors_sha256


@pytest.mark.parametrize(
    "change",
    [
        {"class_names": ("dog", "cat")},
        {"class_embeddings": -np.eye(2, 3, dtype=np.float32)},
        {"context": np.zeros((4, 5), dtype=np.float32)},
        {"logit_scale": 99.0, "stacked": None},
        {"stacked": Stacked(STACKED.weights + 1, STACKED.bias)},
        {"stacked": Stacked(STACKED.weights, STACKED.bias + 1)},
    ],
)
def test_the_hash_covers_what_decides_answers(change: dict[str, object]) -> None:
    changed = some_prompt(**{"stacked": STACKED, **change})
    assert changed.vectors_sha256 != some_prompt(stacked=STACKED).vectors_sha256


def test_equal_prompts_are_equal_files() -> None:
    assert len({some_prompt(stacked=STACKED).to_bytes() for _ in range(20)}) == 1


@pytest.mark.parametrize("stacked", [None, STACKED])
def test_every_flipped_byte_of_a_prompt_is_found(stacked: Stacked | None) -> None:
    data = some_prompt(stacked=stacked).to_bytes()
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        with pytest.raises(ArtifactError):
            TunedPrompt.load(bytes(damaged))


@pytest.mark.parametrize("data", [b"", b"\0" * 7, b"hello, world", b"\xff" * 100])
def test_other_bytes_are_no_prompt(data: bytes) -> None:
    with pytest.raises(ArtifactError):
        TunedPrompt.load(data)


def test_truncated_and_extended_files_are_refused() -> None:
    data = some_prompt().to_bytes()
    for damaged in (data[:-1], data[: len(data) // 2], data + b"\0"):
        with pytest.raises(ArtifactError):
            TunedPrompt.load(damaged)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"nothing\.safetensors cannot be read"):
        TunedPrompt.load(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        {"class_names": ("cat", "dog", "bird")},
        {"stacked": Stacked(STACKED.weights[:1], STACKED.bias)},
        {"stacked": Stacked(STACKED.weights, STACKED.bias[:1])},
    ],
)
def test_an_inconsistent_prompt_cannot_be_made(change: dict[str, object]) -> None:
    with pytest.raises(ArtifactError, match="inconsistent"):
        some_prompt(**change)


def test_a_head_without_a_bias_is_refused() -> None:
    prompt = some_prompt()
    arrays = {"class_embeddings": prompt.class_embeddings, "context": prompt.context}
    arrays["weights"] = prompt.weights
    metadata = {**prompt.metadata, "class_names": ["cat", "dog"], "logit_scale": 100.0}
    with pytest.raises(ArtifactError, match="fields are missing"):
        TunedPrompt.load(seal(arrays, metadata, KIND))


def test_numbers_that_are_not_finite_are_refused() -> None:
    data = seal({"x": np.array([1.0, np.nan])}, {}, "kind")
    with pytest.raises(ChecksumError, match="not finite"):
        unseal(data, "kind")


def test_another_kind_is_refused() -> None:
    with pytest.raises(ChecksumError, match="not a kind/2 file"):
        unseal(seal({"x": np.ones(1)}, {}, "kind/1"), "kind/2")


ME = {"backbone": "1", "images": "2"}


def snapshot(value: float) -> Snapshot:
    return Snapshot({"x": np.full(3, value)}, {"step": int(value), "rng": "{}"})


def test_the_newest_checkpoint_is_loaded(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "job", ME)
    assert folder.load() is None
    folder.save(snapshot(1))
    folder.save(snapshot(2))
    loaded = folder.load()
    assert loaded is not None
    assert loaded.scalars == {"step": 2, "rng": "{}"}
    np.testing.assert_array_equal(loaded.arrays["x"], np.full(3, 2.0))


@pytest.mark.parametrize("damage", [b"", b"garbage"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    folder = CheckpointFolder(tmp_path, ME)
    folder.save(snapshot(1))
    folder.save(snapshot(2))
    (tmp_path / "checkpoint.safetensors").write_bytes(damage)
    with caplog.at_level(logging.WARNING):
        loaded = folder.load()
    assert loaded is not None
    assert loaded.scalars["step"] == 1
    assert "checkpoint.safetensors rejected" in caplog.text


def test_another_runs_checkpoint_is_refused(tmp_path: Path) -> None:
    CheckpointFolder(tmp_path, ME).save(snapshot(1))
    with pytest.raises(CheckpointError, match="another run: images differ"):
        CheckpointFolder(tmp_path, {**ME, "images": "3"}).load()


def test_another_backbones_checkpoint_has_an_error_of_its_own(tmp_path: Path) -> None:
    CheckpointFolder(tmp_path, ME).save(snapshot(1))
    with pytest.raises(BackboneMismatch, match="other weights"):
        CheckpointFolder(tmp_path, {**ME, "backbone": "3"}).load()


def test_what_becomes_of_checkpoints_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    told: list[CheckpointEvent] = []
    folder = CheckpointFolder(tmp_path, ME)
    keeping = Checkpointing(folder, 10.0, told.append, lambda: now[0])
    keeping.save_if_due(1, lambda: snapshot(1))
    assert told == []
    now[0] = 1.0
    keeping.save_if_due(2, lambda: snapshot(2))
    keeping.save(2, lambda: snapshot(2))
    assert [(event.kind, event.step) for event in told] == [("saved", 2)]

    full = OSError(errno.ENOSPC, "No space left on device")

    def fail(*_: object) -> None:
        raise full

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_atomically", fail)
        now[0] = 20.0
        keeping.save_if_due(3, lambda: snapshot(3))
        keeping.save_if_due(4, lambda: snapshot(4))  # the next try has its time
    assert told[1:] == [CheckpointEvent("failed", 3, full)]
    loaded = keeping.load()
    assert loaded is not None
    assert loaded.scalars["step"] == 2

    keeping.save(5, lambda: snapshot(5))
    (tmp_path / "checkpoint.safetensors").write_bytes(b"")
    loaded = keeping.load()
    assert loaded is not None
    assert loaded.scalars["step"] == 2
    assert [event.kind for event in told[2:]] == ["saved", "rejected"]


@pytest.mark.parametrize(
    ("longest", "saved"), [(10.0, [1, 3, 7, 15, 25, 35]), (0.0, list(range(36))), (1.5, None)]
)
def test_the_first_checkpoint_comes_early_and_the_next_ones_at_growing_distances(
    tmp_path: Path, longest: float, saved: list[int] | None
) -> None:
    now = [0.0]
    told: list[CheckpointEvent] = []
    keeping = Checkpointing(CheckpointFolder(tmp_path, ME), longest, told.append, lambda: now[0])
    for second in range(36):
        now[0] = float(second)
        keeping.save_if_due(second, lambda step=second: snapshot(step))  # type: ignore[misc]
    expected = [1, *range(3, 36, 2)] if saved is None else saved
    assert [event.step for event in told] == expected


def test_a_hyperparameter_that_only_one_version_knows_does_not_tell_runs_apart(
    tmp_path: Path,
) -> None:
    """An upgrade that adds one must not cost the jobs that are under way."""
    before = {**ME, "hyperparameters": {"seed": 1, "cma": {"sigma": 0.4}}}
    after = {**ME, "hyperparameters": {"seed": 1, "cma": {"sigma": 0.4, "new": True}}}
    CheckpointFolder(tmp_path, before).save(snapshot(1))
    assert CheckpointFolder(tmp_path, after).load() is not None
    other = {**ME, "hyperparameters": {"seed": 2, "cma": {"sigma": 0.5}}}
    with pytest.raises(CheckpointError, match=r"hyperparameters.cma.sigma, hyperparameters.seed"):
        CheckpointFolder(tmp_path, other).load()
