"""The whole line on a small random CLIP: budgets, selection, resuming, classifying."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sharpzo_engine import (
    FinishSearch,
    PromptClassifier,
    TunedPrompt,
    TuneResult,
    TuningCancelled,
    TuningConfig,
    evaluate,
    load_backbone,
    load_dataset,
    tiny,
    tune,
)
from sharpzo_engine import tuner as tuner_module
from sharpzo_engine.clip import features as features_module
from sharpzo_engine.clip.features import extract_features
from sharpzo_engine.clip.torch.backbone import Backbone
from sharpzo_engine.data.dataset import Example, list_unlabelled
from sharpzo_engine.errors import (
    BackboneError,
    BackboneMismatch,
    CheckpointError,
    ConfigError,
    DatasetError,
    TooFewImages,
)
from sharpzo_engine.heads.fitting import fit_gda
from sharpzo_engine.heads.stacking import accuracy
from sharpzo_engine.prompts.classifier import zero_shot_weights
from sharpzo_engine.prompts.interval import wilson_interval
from sharpzo_engine.search.checkpoint import CheckpointEvent
from sharpzo_engine.search.progress import Progress
from sharpzo_engine.tuner import split_validation
from tests.engine.conftest import ClipMaker

SMALL: dict[str, Any] = {
    "shots": 4,
    "total_steps": 24,
    "change_point": 8,
    "prompt": {"intrinsic_dim": 16},
    "cma": {"population_size": 6, "sharpness_estimator": "zo", "sharpness_interval": 3},
    "zo": {
        "estimator": "rge",
        "queries": 2,
        "learning_rate": 0.05,
        "mask": "gradient",
        "prune_interval": 5,
    },
}


def small(**changes: Any) -> TuningConfig:
    return TuningConfig.parse({**SMALL, **changes})


def run(pictures: Path, clip: Backbone, config: TuningConfig, **options: Any) -> TuneResult:
    return tune(load_dataset(pictures, shots=config.shots), clip, config, **options)


def test_an_anchor_holds_the_prompt_and_is_no_part_of_validation(
    pictures: Path, clip: Backbone
) -> None:
    free, held = (
        run(pictures, clip, small(zo={"anchor": anchor}, selection="last", head="none"))
        for anchor in (0.0, 1e3)
    )
    names = list(held.prompt.class_names)
    prompts = clip.prompts("a photo of a", names)
    written = prompts.encode(prompts.initial_context[None])[0]
    far, near = (
        float(np.square(result.prompt.class_embeddings - written).sum()) for result in (free, held)
    )
    assert near < 0.1 * far
    assert held.metrics["forward_passes"] is not None
    assert held.history[0].val_loss is not None
    images = extract_features(load_dataset(pictures, shots=4).val, clip)
    loss = clip.image_loss(images.images, images.labels).losses(held.prompt.class_embeddings[None])
    assert held.metrics["val_loss"] == pytest.approx(float(loss[0]), rel=1e-5)


def test_tuning_gains_and_the_artifact_gives_the_same_answers(
    pictures: Path, clip: Backbone, tmp_path: Path
) -> None:
    result = run(pictures, clip, small(total_steps=150, change_point=60))
    metrics = result.metrics
    assert metrics["test_accuracy"] > metrics["zero_shot_accuracy"]  # type: ignore[operator]
    path = tmp_path / "prompt.safetensors"
    result.prompt.save(path)
    dataset = load_dataset(pictures)
    classifier = PromptClassifier(TunedPrompt.load(path), clip)
    answers = classifier.predict([example.path for example in dataset.test], top_k=2)
    right = [a[0].index == e.label for a, e in zip(answers, dataset.test, strict=True)]
    assert np.mean(right) == pytest.approx(metrics["test_accuracy"])
    assert all(len(a) == 2 and a[0].score >= a[1].score for a in answers)


def test_the_history_counts_steps_phases_and_passes(pictures: Path, clip: Backbone) -> None:
    result = run(pictures, clip, small())
    history = result.history
    assert [record.step for record in history] == list(range(1, 25))
    assert [record.phase for record in history] == ["stage1"] * 8 + ["stage2"] * 16
    assert result.stopped_by == "completed"
    # Stage 1: 8 x 6 candidates, 3 directions of 2 x 16; 2 validations each. Stage 2: 16 x 4 and
    # 4 refreshes of 2 x 16. Before: the origin. The end: one validation and the training loss.
    assert result.metrics["forward_passes"] == 1 + (48 + 96 + 16) + (64 + 128) + 1 + 1
    assert all(record.sharpness is not None for record in history[:8])
    assert all(record.sigma is None for record in history[8:])


def test_what_is_returned_is_the_best_validated_point(pictures: Path, clip: Backbone) -> None:
    result = run(pictures, clip, small())
    losses = [record.val_loss for record in result.history if record.val_loss is not None]
    assert result.metrics["val_loss"] <= min(losses)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("method", "phases"), [("cma-es", {"stage1"}), ("zo", {"stage2"}), ("sharpzo", None)]
)
def test_methods_differ_in_the_stages_that_run(
    pictures: Path, clip: Backbone, method: str, phases: set[str] | None
) -> None:
    history = run(pictures, clip, small(method=method)).history
    assert {record.phase for record in history} == (phases or {"stage1", "stage2"})


def test_a_change_point_of_0_leaves_stage_1_out(pictures: Path, clip: Backbone) -> None:
    history = run(pictures, clip, small(change_point=0)).history
    assert {record.phase for record in history} == {"stage2"}


@pytest.mark.parametrize("budget", [40, 100, 333])
def test_the_budget_of_passes_is_never_exceeded(
    pictures: Path, clip: Backbone, budget: int
) -> None:
    result = run(pictures, clip, small(max_forward_passes=budget))
    assert result.stopped_by == "max_forward_passes"
    # The training loss of the result is measured after the search, for the record.
    assert result.metrics["forward_passes"] <= budget + 1  # type: ignore[operator]


def test_the_budget_of_seconds_ends_a_run_well(pictures: Path, clip: Backbone) -> None:
    result = run(pictures, clip, small(total_steps=10**6, change_point=10**6, max_seconds=0.5))
    assert result.stopped_by == "max_seconds"
    assert result.prompt.class_names == ("deep blue", "green", "red")


def test_the_automatic_change_point_waits_for_a_plateau(pictures: Path, clip: Backbone) -> None:
    config = small(change_point="auto", patience=3, total_steps=400)
    history = run(pictures, clip, config).history
    switched = next(i for i, record in enumerate(history) if record.phase == "stage2")
    losses = [record.val_loss for record in history[:switched]]
    best = int(np.argmin(losses))
    assert switched - 1 - best == 3 or switched == 200


def test_validation_images_never_steer_and_test_images_are_read_once(
    pictures: Path, clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def spy(examples: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append({e.path.parts[-3] for e in examples}.pop())
        return extract_features(examples, *args, **kwargs)

    monkeypatch.setattr(tuner_module, "extract_features", spy)
    reported: list[Progress] = []
    run(pictures, clip, small(), on_step=reported.append)
    assert seen == ["train", "val", "test"]
    last_step = max(i for i, p in enumerate(reported) if p.record)
    tested = [i for i, p in enumerate(reported) if p.message and "test" in p.message]
    assert min(tested) > last_step
    assert {p.phase for p in reported} == {"preparing", "stage1", "stage2", "evaluating"}


def interrupted(
    pictures: Path, clip: Backbone, config: TuningConfig, folder: Path, at: int
) -> None:
    def stop(progress: Progress) -> None:
        if progress.step == at and progress.record:
            raise TuningCancelled

    with pytest.raises(TuningCancelled):
        run(pictures, clip, config, on_step=stop, checkpoint_dir=folder)


@pytest.fixture(scope="module")
def undisturbed(pictures: Path, clip: Backbone) -> TuneResult:
    return run(pictures, clip, small())


@pytest.mark.parametrize("at", [1, 3, 7, 8, 9, 14, 20, 23])
def test_a_resumed_run_equals_the_undisturbed_one(
    pictures: Path, clip: Backbone, undisturbed: TuneResult, tmp_path: Path, at: int
) -> None:
    interrupted(pictures, clip, small(), tmp_path, at)
    reported: list[Progress] = []
    options = {"checkpoint_dir": tmp_path, "resume": True, "on_step": reported.append}
    resumed = run(pictures, clip, small(), **options)
    assert resumed.prompt.vectors_sha256 == undisturbed.prompt.vectors_sha256
    assert [p.record.step for p in reported if p.record] == list(range(at + 1, 25))
    without_time = [[replace(r, seconds=0.0) for r in x.history] for x in (resumed, undisturbed)]
    assert without_time[0] == without_time[1]


def test_a_run_interrupted_twice_equals_the_undisturbed_one(
    pictures: Path, clip: Backbone, undisturbed: TuneResult, tmp_path: Path
) -> None:
    for at in (5, 15):

        def stop(progress: Progress, at: int = at) -> None:
            if progress.step >= at:
                raise TuningCancelled

        with pytest.raises(TuningCancelled):
            run(pictures, clip, small(), on_step=stop, checkpoint_dir=tmp_path, resume=True)
    resumed = run(pictures, clip, small(), checkpoint_dir=tmp_path, resume=True)
    assert resumed.prompt.vectors_sha256 == undisturbed.prompt.vectors_sha256
    assert resumed.metrics["forward_passes"] == undisturbed.metrics["forward_passes"]


def test_a_checkpoint_of_other_hyperparameters_is_refused(
    pictures: Path, clip: Backbone, tmp_path: Path
) -> None:
    interrupted(pictures, clip, small(), tmp_path, 3)
    with pytest.raises(CheckpointError, match="another run"):
        run(pictures, clip, small(seed=2), checkpoint_dir=tmp_path, resume=True)


@pytest.mark.parametrize("optimizer", ["auto", "adam"])
def test_a_finished_run_goes_on_with_a_larger_budget(
    pictures: Path, clip: Backbone, tmp_path: Path, optimizer: str
) -> None:
    zo = {"optimizer": optimizer}
    first = run(pictures, clip, small(zo=zo), checkpoint_dir=tmp_path)
    told: list[CheckpointEvent] = []
    longer = run(
        pictures,
        clip,
        small(zo=zo, total_steps=40),
        checkpoint_dir=tmp_path,
        resume=True,
        on_checkpoint=told.append,
    )
    assert told[0] == CheckpointEvent("resumed", 24)
    assert [r.step for r in longer.history] == list(range(1, 41))
    assert longer.history[:24] == first.history
    assert longer.metrics["forward_passes"] > first.metrics["forward_passes"]  # type: ignore[operator]
    assert longer.metrics["val_loss"] <= first.metrics["val_loss"]  # type: ignore[operator]


def test_a_run_resumed_at_its_end_does_no_step_again(
    pictures: Path, clip: Backbone, undisturbed: TuneResult, tmp_path: Path
) -> None:
    run(pictures, clip, small(), checkpoint_dir=tmp_path)
    reported: list[Progress] = []
    options = {"checkpoint_dir": tmp_path, "resume": True, "on_step": reported.append}
    again = run(pictures, clip, small(), **options)
    assert not any(p.record for p in reported)
    assert again.prompt.vectors_sha256 == undisturbed.prompt.vectors_sha256
    assert again.metrics["forward_passes"] == undisturbed.metrics["forward_passes"]


def test_equal_seeds_give_equal_prompts(
    pictures: Path, clip: Backbone, undisturbed: TuneResult
) -> None:
    again = run(pictures, clip, small())
    other = run(pictures, clip, small(seed=2))
    assert again.prompt.vectors_sha256 == undisturbed.prompt.vectors_sha256
    assert other.prompt.vectors_sha256 != undisturbed.prompt.vectors_sha256


# --- finishing early


def finishing(phase: str, at: int = 0) -> tuple[list[Progress], Callable[[Progress], None]]:
    """An `on_step` that asks to finish once, and what it was told."""
    told: list[Progress] = []
    asked: list[Progress] = []

    def on_step(progress: Progress) -> None:
        told.append(progress)
        if not asked and progress.phase == phase and progress.step >= at:
            asked.append(progress)
            raise FinishSearch

    return told, on_step


@pytest.mark.parametrize(
    ("phase", "at"), [("stage1", 1), ("stage1", 8), ("stage2", 9), ("stage2", 20)]
)
def test_a_search_that_is_asked_to_finish_takes_no_more_steps(
    pictures: Path, clip: Backbone, phase: str, at: int
) -> None:
    told, on_step = finishing(phase, at)
    result = run(pictures, clip, small(), on_step=on_step)
    assert [p.record.step for p in told if p.record] == list(range(1, at + 1))
    assert (result.stopped_by, len(result.history)) == ("finished", at)
    validated = [r.val_loss for r in result.history if r.val_loss is not None]
    assert result.metrics["val_loss"] <= min(validated, default=np.inf)  # type: ignore[operator]
    assert result.metrics["test_accuracy"] is not None
    assert result.prompt.stacked is not None
    assert result.prompt.metadata["stopped_by"] == "finished"
    assert result.report.to_json()["headline"]["stopped_by"] == "finished"
    assert "finished early, as asked" in result.report.to_html()


def test_the_last_point_is_validated_as_at_the_end_of_a_budget(
    pictures: Path, clip: Backbone
) -> None:
    _, on_step = finishing("stage2", 20)
    result = run(pictures, clip, small(), on_step=on_step)
    assert result.history[-1].val_loss is None  # steps of stage 2 are validated rarely
    # One validation, and the training loss of the result.
    assert result.metrics["forward_passes"] == result.history[-1].forward_passes + 1 + 1


def test_asking_to_finish_at_the_last_step_changes_nothing(
    pictures: Path, clip: Backbone, undisturbed: TuneResult
) -> None:
    _, on_step = finishing("stage2", 24)
    result = run(pictures, clip, small(), on_step=on_step)
    assert result.stopped_by == "completed"
    assert result.prompt.vectors_sha256 == undisturbed.prompt.vectors_sha256


def test_a_run_asked_to_finish_while_it_prepares_gives_the_hand_written_prompt_and_a_head(
    pictures: Path, clip: Backbone, tmp_path: Path
) -> None:
    told, on_step = finishing("preparing")
    options = {"checkpoint_dir": tmp_path / "kept", "cache_dir": tmp_path / "cache"}
    result = run(pictures, clip, small(), on_step=on_step, **options)
    assert [p.message for p in told if p.phase == "preparing"] == [
        "embedding training images: 12 of 12",
        "embedding validation images: 6 of 6",
    ]
    assert (result.stopped_by, result.history) == ("finished", ())
    assert (result.metrics["steps"], result.metrics["selected_step"]) == (0, 0)
    assert result.metrics["prompt_test_accuracy"] == result.metrics["zero_shot_accuracy"]
    assert result.prompt.stacked is not None
    assert result.report.to_html()


def test_asking_to_finish_while_the_result_is_measured_changes_nothing(
    pictures: Path, clip: Backbone, undisturbed: TuneResult
) -> None:
    def on_step(progress: Progress) -> None:
        if progress.phase == "evaluating":
            raise FinishSearch

    result = run(pictures, clip, small(), on_step=on_step)
    assert result.stopped_by == "completed"
    assert result.metrics["test_accuracy"] == undisturbed.metrics["test_accuracy"]
    assert result.prompt.vectors_sha256 == undisturbed.prompt.vectors_sha256


@pytest.mark.parametrize(
    ("phase", "at"), [("preparing", 0), ("stage1", 5), ("stage1", 8), ("stage2", 17)]
)
def test_a_run_that_finished_early_can_be_continued_as_if_it_had_not(
    pictures: Path, clip: Backbone, undisturbed: TuneResult, tmp_path: Path, phase: str, at: int
) -> None:
    _, on_step = finishing(phase, at)
    early = run(pictures, clip, small(), on_step=on_step, checkpoint_dir=tmp_path)
    assert len(early.history) == at
    told: list[Progress] = []
    options = {"checkpoint_dir": tmp_path, "resume": True, "on_step": told.append}
    resumed = run(pictures, clip, small(), **options)
    assert [p.record.step for p in told if p.record] == list(range(at + 1, 25))
    assert resumed.stopped_by == "completed"
    assert resumed.prompt.vectors_sha256 == undisturbed.prompt.vectors_sha256


def test_a_resumed_run_finishes_at_once_with_what_the_checkpoint_holds(
    pictures: Path, clip: Backbone, tmp_path: Path
) -> None:
    interrupted(pictures, clip, small(), tmp_path, 14)
    told, on_step = finishing("preparing")
    options = {"checkpoint_dir": tmp_path, "resume": True, "on_step": on_step}
    result = run(pictures, clip, small(), **options)
    assert not any(p.record for p in told)
    assert (result.stopped_by, len(result.history)) == ("finished", 14)
    validated = [r.val_loss for r in result.history if r.val_loss is not None]
    assert result.metrics["val_loss"] <= min(validated)  # type: ignore[operator]


@pytest.mark.parametrize("method", ["cma-es", "zo", "sharpzo"])
def test_every_method_can_finish_before_its_first_step(
    pictures: Path, clip: Backbone, method: str
) -> None:
    _, on_step = finishing("preparing")
    result = run(pictures, clip, small(method=method), on_step=on_step)
    assert (result.stopped_by, result.history) == ("finished", ())
    assert result.metrics["val_loss"] is not None
    assert result.metrics["prompt_test_accuracy"] == result.metrics["zero_shot_accuracy"]


# --- heads


def test_a_result_compares_what_could_have_been_served(undisturbed: TuneResult) -> None:
    metrics, rows = undisturbed.metrics, undisturbed.comparison
    names = [
        "zero-shot", "zero-shot, templates", "tuned prompt", "head alone", "prompt + head",
        "hand-written + head", "Tip-Adapter",
    ]  # fmt: skip
    assert (list(rows), undisturbed.comparison_split) == (names, "test")
    assert metrics["zero_shot_accuracy"] == rows["zero-shot"]
    assert metrics["prompt_test_accuracy"] == rows["tuned prompt"]
    assert metrics["head_test_accuracy"] == rows["head alone"]
    assert metrics["tip_adapter_test_accuracy"] == rows["Tip-Adapter"]
    for name in ("zero_shot_accuracy", "test_accuracy"):
        interval = wilson_interval(metrics[name], metrics["test_images"])  # type: ignore[arg-type]
        assert (metrics[f"{name}_low"], metrics[f"{name}_high"]) == interval
    head = undisturbed.prompt.metadata["head"]
    assert head.keys() == {"name", "kind", "alpha", "prompt_weight", "temperature", "penalty"}
    choice = undisturbed.prompt.metadata["choice"]
    assert head["name"] in choice["reason"]
    assert {"gda", "tuned prompt"} <= {c["name"] for c in choice["candidates"]}
    json.dumps(choice, allow_nan=False)


def test_without_test_images_validation_images_compare(pictures: Path, clip: Backbone) -> None:
    dataset = replace(load_dataset(pictures, shots=4), test=())
    result = tune(dataset, clip, small())
    assert result.comparison_split == "validation"
    assert result.metrics["test_accuracy"] is result.metrics["prompt_test_accuracy"] is None
    assert result.metrics["test_accuracy_low"] is result.metrics["zero_shot_accuracy_low"] is None
    assert result.comparison["tuned prompt"] == pytest.approx(result.metrics["val_accuracy"])


def test_held_out_images_compare_heads_that_were_not_fitted_to_them(
    pictures: Path, clip: Backbone
) -> None:
    dataset = replace(load_dataset(pictures, shots=6), test=())
    config = small(shots=6, validation="holdout", head="gda")
    result = tune(dataset, clip, config)
    seen, judged, _ = split_validation(dataset, config)
    head = fit_gda(extract_features(seen, clip), len(dataset.class_names))
    expected = accuracy(head, extract_features(judged, clip))
    assert result.comparison["head alone"] == expected
    assert result.comparison_split == "validation"


def test_training_images_are_called_so_where_nothing_else_is_left(
    pictures: Path, clip: Backbone
) -> None:
    dataset = replace(load_dataset(pictures, shots=2), test=())
    result = tune(dataset, clip, small(shots=2, validation="holdout"))
    assert result.comparison_split == "training"


def test_without_a_head_the_prompt_answers_alone(pictures: Path, clip: Backbone) -> None:
    result = run(pictures, clip, small(head="none"))
    assert result.prompt.stacked is None
    assert result.prompt.metadata["head"]["kind"] == "none"
    assert result.metrics["test_accuracy"] == result.metrics["prompt_test_accuracy"]
    assert list(result.comparison) == ["zero-shot", "zero-shot, templates", "tuned prompt"]
    assert result.metrics["head_test_accuracy"] is None


@pytest.mark.parametrize("shots", [1, 2, 6])
@pytest.mark.parametrize("head", ["gda", "linear", "auto"])
def test_heads_of_every_kind_and_source_answer(
    pictures: Path, clip: Backbone, head: str, shots: int
) -> None:
    config = small(head=head, shots=shots, validation="holdout", total_steps=2, change_point=1)
    result = run(pictures, clip, config)
    assert result.validation_source == ("holdout" if shots >= 4 else "training")
    if head != "auto":
        assert result.prompt.metadata["head"]["kind"] == head
    features = extract_features(load_dataset(pictures).test, clip)
    rows = PromptClassifier(result.prompt, clip).probabilities(features.images)
    right = (rows.argmax(1) == features.labels).mean()
    assert right == pytest.approx(result.metrics["test_accuracy"])


@pytest.mark.slow
def test_on_real_photos_a_head_beats_the_prompt_by_far(real_data: Path) -> None:
    backbone = load_backbone(f"local-dir:{real_data / 'lite'}", device="cpu")
    dataset = load_dataset(real_data / "clothing", shots=16, seed=1)
    result = tune(dataset, backbone, TuningConfig(max_forward_passes=300))
    rows, answered = result.comparison, result.metrics["test_accuracy"]
    assert answered is not None
    assert answered >= max(0.74, rows["head alone"] - 0.01, rows["tuned prompt"] + 0.1)
    assert result.prompt.metadata["head"]["temperature"] > 0


# --- features, backbone, classifier


@pytest.fixture
def embeddings_made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    made: list[int] = []
    original = features_module._embed

    def counting(examples: Any, *args: Any) -> Any:
        made.append(len(examples))
        return original(examples, *args)

    monkeypatch.setattr(features_module, "_embed", counting)
    return made


def test_features_are_cached_by_content(
    pictures: Path, clip: Backbone, tmp_path: Path, embeddings_made: list[int]
) -> None:
    test = load_dataset(pictures).test
    first = extract_features(test, clip, cache_dir=tmp_path)
    second = extract_features(test, clip, cache_dir=tmp_path)
    assert embeddings_made == [9]
    np.testing.assert_array_equal(first.images, second.images)
    np.testing.assert_allclose(
        np.linalg.norm(first.images, axis=1), np.ones(9), rtol=1.3e-6, atol=1e-5
    )


def test_a_damaged_cache_file_is_made_anew(
    pictures: Path, clip: Backbone, tmp_path: Path, embeddings_made: list[int]
) -> None:
    test = load_dataset(pictures).test
    extract_features(test, clip, cache_dir=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"damaged")
    extract_features(test, clip, cache_dir=tmp_path)
    assert embeddings_made == [9, 9]


def test_another_backbone_does_not_hit_the_cache(
    pictures: Path, random_clip: ClipMaker, tmp_path: Path, embeddings_made: list[int]
) -> None:
    for seed in (1, 2):
        extract_features(load_dataset(pictures).test, random_clip(seed=seed), cache_dir=tmp_path)
    assert embeddings_made == [9, 9]


def test_an_unreadable_image_is_named(pictures: Path, clip: Backbone, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    example = replace(load_dataset(pictures).test[0], path=bad)
    with pytest.raises(DatasetError, match=r"bad\.jpg: .*not JPEG"):
        extract_features([example], clip)


def test_another_backbone_is_refused(undisturbed: TuneResult, random_clip: ClipMaker) -> None:
    with pytest.raises(BackboneMismatch, match="tuned on random"):
        PromptClassifier(undisturbed.prompt, random_clip(seed=5))


def test_predictions_are_probabilities(undisturbed: TuneResult, clip: Backbone) -> None:
    classifier = PromptClassifier(undisturbed.prompt, clip)
    (answer,) = classifier.predict([Image.new("RGB", (9, 9))], top_k=50)
    assert sum(p.score for p in answer) == pytest.approx(1)
    assert {p.label for p in answer} == set(undisturbed.prompt.class_names)


def test_evaluation_counts(undisturbed: TuneResult, clip: Backbone, pictures: Path) -> None:
    prompt = undisturbed.prompt
    features = extract_features(load_dataset(pictures).test, clip)
    result = evaluate(prompt.weights, features, prompt.class_names, prompt.bias)
    assert result.accuracy == pytest.approx(undisturbed.metrics["test_accuracy"])
    alone = evaluate(prompt.class_embeddings, features, prompt.class_names)
    assert alone.accuracy == pytest.approx(undisturbed.metrics["prompt_test_accuracy"])
    assert sum(map(sum, result.confusion)) == result.images == 9
    assert [sum(row) for row in result.confusion] == [3, 3, 3]


@pytest.mark.parametrize(
    ("name", "pretrained", "message"),
    [
        ("ViT-X-99", None, "unknown backbone"),
        ("ViT-B-16", None, "needs weights .*openai"),
        ("ViT-B/16", "no-such-tag", "neither a file nor a known tag"),
        ("local-dir:/no/such/folder", None, "no open_clip_config.json"),
        ("tiny", "openai", "includes its weights"),
    ],
)
def test_unloadable_backbones_say_why(name: str, pretrained: str | None, message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        load_backbone(name, pretrained, device="cpu")


def test_an_alias_hides_the_path_of_a_backbone() -> None:
    backbone = load_backbone(f"local-dir:{tiny.PATH}", device="cpu", alias="mine")
    assert backbone.describe()["name"] == "mine"
    assert backbone.fingerprint == load_backbone("tiny", device="cpu").fingerprint


def test_weights_that_are_missing_never_become_random(tmp_path: Path) -> None:
    config = '{"model_cfg": {"embed_dim": 8, "vision_cfg": {"layers": 1, "width": 16}, '
    config += '"text_cfg": {"width": 16, "heads": 1, "layers": 1}}, "preprocess_cfg": {}}'
    (tmp_path / "open_clip_config.json").write_text(config)
    with pytest.raises(BackboneError, match="cannot be loaded"):
        load_backbone(f"local-dir:{tmp_path}", device="cpu")


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(BackboneError, match="device 'abacus'"):
        load_backbone("tiny", device="abacus")


# --- images without labels


def test_unlabelled_images_refine_the_head_alone(
    pictures: Path, clip: Backbone, tmp_path: Path
) -> None:
    dataset = load_dataset(pictures, shots=1)
    config = small(shots=1, head="gda", validation="holdout")
    more = list_unlabelled(pictures)  # the shots are among them
    assert len(more) == 18
    said: list[str] = []
    plain = tune(dataset, clip, config)
    helped = tune(
        dataset,
        clip,
        config,
        unlabelled=[more[0], *(Example(path, 2) for path in more[1:])],
        on_step=lambda progress: said.append(progress.message or ""),
        cache_dir=tmp_path,
    )
    assert "embedding unlabelled images: 15 of 15" in said
    assert plain.prompt.metadata["unlabelled_images"] == 0
    assert helped.prompt.metadata["unlabelled_images"] == 15
    assert helped.prompt.metadata["point"] == plain.prompt.metadata["point"]
    assert helped.comparison["tuned prompt"] == plain.comparison["tuned prompt"]
    own = {example.path for example in dataset.train}
    rest = [Example(path, 0) for path in more if path not in own]
    texts = zero_shot_weights(clip, config.prompt.context, dataset.class_names)
    expected = fit_gda(
        extract_features(dataset.train, clip), 3, texts, extract_features(rest, clip).images
    )
    test = extract_features(dataset.test, clip)
    assert helped.comparison["head alone"] == accuracy(expected, test)


@pytest.mark.parametrize("changes", [{"head": "linear"}, {"extra_classes": ("scarf",)}])
def test_unlabelled_images_that_nothing_learns_from_are_refused(
    pictures: Path, clip: Backbone, changes: dict[str, Any]
) -> None:
    dataset = load_dataset(pictures, shots=1)
    with pytest.raises(ConfigError, match="unlabelled images"):
        tune(dataset, clip, small(shots=1, **changes), unlabelled=list_unlabelled(pictures))


def test_a_run_is_resumed_with_other_unlabelled_images(
    pictures: Path, clip: Backbone, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"checkpoint_dir": tmp_path, "resume": True}
    first = run(pictures, clip, small(), **options)
    more = list_unlabelled(pictures / "test")
    dataset = replace(load_dataset(pictures, shots=4), test=(), val=())
    with pytest.raises(TooFewImages, match="9 unlabelled images are too few for 3 classes"):
        tune(dataset, clip, small(), unlabelled=more)
    again = tune(
        replace(load_dataset(pictures, shots=4), test=()),
        clip,
        small(),
        unlabelled=[*more, *list_unlabelled(pictures)],
        **options,
    )
    assert again.prompt.metadata["unlabelled_images"] == 9 + 6
    assert again.history == first.history


def test_images_are_listed_in_all_folders_below(tmp_path: Path, pictures: Path) -> None:
    for name in ("b.png", "deep/er/a.JPG", "notes.txt", ".hidden/c.png"):
        path = tmp_path / "any" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    found = list_unlabelled(tmp_path / "any")
    assert [path.name for path in found] == ["b.png", "a.JPG"]
    assert all(path.relative_to(pictures / "train") for path in list_unlabelled(pictures))
    with pytest.raises(DatasetError, match=r"nowhere is not a folder \(name"):
        list_unlabelled(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="empty: no images found"):
        list_unlabelled(tmp_path / "empty")
