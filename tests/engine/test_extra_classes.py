"""`extra_classes`: from the configuration to the prompt file, its report and its exports."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from sharpzo_engine import (
    Dataset,
    PromptClassifier,
    TunedPrompt,
    TuneResult,
    TuningConfig,
    extract_features,
    load_dataset,
    tune,
)
from sharpzo_engine.clip.level import Level
from sharpzo_engine.clip.torch.backbone import Backbone
from sharpzo_engine.errors import ConfigError, DatasetError
from sharpzo_engine.prompts.evaluation import Tally
from sharpzo_engine.prompts.export import ExportFormat, Origin, export
from sharpzo_engine.reports.evaluation_report import EvaluationReport
from tests.engine.clip.test_residuals import Restricted
from tests.engine.conftest import save_picture

NAMES = ("black", "blue", "green", "red", "white")
EXTRA = ("yellow", "dark grey")
COLOURS = {
    "red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200), "white": (220, 220, 220),
    "black": (40, 40, 40), "yellow": (220, 220, 40), "dark_grey": (80, 80, 80),
}  # fmt: skip


def paint(root: Path, names: tuple[str, ...], counts: dict[str, int]) -> Path:
    for label, name in enumerate(names):
        for split, count in counts.items():
            for i in range(count):
                path = root / split / name / f"{i}.png"
                save_picture(path, COLOURS[name], 1000 * label + 10 * i + len(split))
    return root


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    counts = {"train": 4, "val": 2, "test": 3}
    return paint(tmp_path_factory.mktemp("seen"), NAMES, counts)


def config(**changes: Any) -> TuningConfig:
    values = {
        "shots": 4,
        "max_forward_passes": 60,
        "prompt": {"intrinsic_dim": 16},
        "cma": {"population_size": 6},
        "extra_classes": EXTRA,
    }
    return TuningConfig.parse(values | changes)


@pytest.fixture(scope="module")
def dataset(pictures: Path) -> Dataset:
    return load_dataset(pictures)


@pytest.fixture(scope="module")
def result(dataset: Dataset, clip: Backbone) -> TuneResult:
    return tune(dataset, clip, config())


@pytest.fixture(scope="module")
def prompt(result: TuneResult) -> TunedPrompt:
    return TunedPrompt.load(result.prompt.to_bytes())


# --- configuration


def test_names_are_written_as_folders_are_read() -> None:
    found = TuningConfig.parse({"extra_classes": ["tank_top ", "Belt"]})
    assert found.extra_classes == ("tank top", "Belt")
    assert TuningConfig.model_validate(found.model_dump(mode="json")) == found
    assert TuningConfig().extra_classes == ()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"extra_classes": ["belt", "a_b", "A B"]}, "name 'A B' twice"),
        ({"extra_classes": ["belt"], "head": "none"}, "need the head gda, not none"),
        ({"extra_classes": ["belt"], "head": "linear"}, "need the head gda, not linear"),
        ({"extra_classes": [" "]}, "needs letters"),
        ({"extra_classes": ["a\nb"]}, "no control characters"),
        ({"extra_classes": ["x" * 201]}, "at most 200 characters"),
        ({"extra_classes": "belt"}, "extra_classes: "),
    ],
)
def test_names_that_make_no_classes_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TuningConfig.parse(values)


@pytest.mark.parametrize(
    ("names", "changes", "message"),
    [
        (NAMES, {"extra_classes": ["Red"]}, "name 'Red', and the dataset has images of 'red'"),
        (("dark_grey", *NAMES), {}, "name 'dark grey'"),
        (NAMES[:3], {}, "3 are too few .*4 or more"),
        (NAMES, {"shots": 1, "validation": "holdout"}, "with one per class there are none"),
    ],
)
def test_a_dataset_that_cannot_calibrate_them_is_refused_before_the_search(
    tmp_path: Path, clip: Backbone, names: tuple[str, ...], changes: dict[str, Any], message: str
) -> None:
    folder = paint(tmp_path, names, {"train": 4, "val": 1, "test": 1})
    with pytest.raises(ConfigError, match=f"^extra_classes: .*{message}") as caught:
        tune(load_dataset(folder), clip, config(**changes), on_step=not_expected)
    assert caught.value.errors[0][0] == ("extra_classes",)


def not_expected(progress: object) -> None:
    raise AssertionError(progress)


def test_encoders_that_know_no_texts_are_refused(dataset: Dataset, clip: Backbone) -> None:
    with pytest.raises(ConfigError, match=r"^extra_classes: .*the encoder knows none"):
        tune(dataset, Restricted(clip, Level.IMAGES), config(), on_step=not_expected)


def test_a_name_that_is_too_long_is_found_before_the_search(
    dataset: Dataset, clip: Backbone
) -> None:
    long = " ".join("z" * 95)
    with pytest.raises(DatasetError, match="too long"):
        tune(dataset, clip, config(extra_classes=[long]), on_step=not_expected)


# --- the prompt


def test_the_search_is_the_same_without_them(
    result: TuneResult, dataset: Dataset, clip: Backbone
) -> None:
    alone = tune(dataset, clip, config(extra_classes=()))
    plain, prompt = alone.prompt, result.prompt
    assert [r.loss for r in alone.history] == [r.loss for r in result.history]
    np.testing.assert_array_equal(plain.context, prompt.context)
    np.testing.assert_array_equal(plain.class_embeddings, prompt.class_embeddings[: len(NAMES)])
    assert "calibration" not in plain.metadata["choice"]


def test_all_classes_are_served_by_the_head_alone(
    result: TuneResult, prompt: TunedPrompt, clip: Backbone
) -> None:
    assert prompt.class_names == (*NAMES, *EXTRA)
    assert prompt.weights.shape == (len(prompt.class_names), clip.embed_dim)
    assert prompt.metadata["head"]["name"] == "gda"
    assert prompt.metadata["config"]["extra_classes"] == list(EXTRA)
    choice = prompt.metadata["choice"]
    assert "without images" in choice["reason"]
    shown = choice["calibration"]
    assert shown["seen_accuracy"] <= shown["seen_accuracy_without"]
    assert shown["left_out_accuracy"] >= shown["left_out_accuracy_without"]
    json.dumps(choice, allow_nan=False)
    tuned = clip.prompts("a photo of a", EXTRA).encode(prompt.context[None])[0]
    np.testing.assert_allclose(prompt.class_embeddings[len(NAMES) :], tuned, atol=1e-6)
    assert list(result.comparison) == [
        "zero-shot", "zero-shot, templates", "tuned prompt", "head alone",
    ]  # fmt: skip
    assert result.metrics["test_accuracy"] == result.metrics["head_test_accuracy"]
    assert result.metrics["tip_adapter_test_accuracy"] is None


def test_an_encoder_of_texts_serves_them_as_well(dataset: Dataset, clip: Backbone) -> None:
    found = tune(dataset, Restricted(clip, Level.TEXTS), config()).prompt
    assert found.class_names == (*NAMES, *EXTRA)
    own = clip.prompts("a photo of a", EXTRA)
    written = own.encode(own.initial_context[None])[0]
    np.testing.assert_allclose(found.class_embeddings[len(NAMES) :], written, atol=1e-6)


@pytest.mark.parametrize(
    "changes", [{"shots": 1}, {"shots": 2, "validation": "holdout"}, {"validation": "holdout"}]
)
def test_few_shots_and_every_source_serve_them(
    dataset: Dataset, clip: Backbone, changes: dict[str, Any]
) -> None:
    found = tune(replace(dataset, test=()), clip, config(**changes))
    assert len(found.prompt.bias) == len(NAMES) + len(EXTRA)
    assert found.metrics["test_accuracy"] is None


def test_a_half_of_the_classes_may_have_the_other_half_as_extra_ones(
    tmp_path: Path, clip: Backbone
) -> None:
    names = tuple(sorted(COLOURS))
    folder = paint(tmp_path, names, {"train": 3, "val": 1, "test": 1})
    others = load_dataset(folder, classes="new").class_names
    found = tune(load_dataset(folder), clip, config(shots=3, classes="base", extra_classes=others))
    assert found.prompt.class_names == load_dataset(folder).class_names


def test_a_finished_run_can_be_continued_with_other_names(
    dataset: Dataset, clip: Backbone, tmp_path: Path
) -> None:
    tune(dataset, clip, config(extra_classes=()), checkpoint_dir=tmp_path)
    found = tune(dataset, clip, config(), checkpoint_dir=tmp_path, resume=True)
    assert found.prompt.class_names == (*NAMES, *EXTRA)


# --- what others make of it


def test_a_report_has_no_accuracy_of_classes_without_images(result: TuneResult) -> None:
    shown = result.report.to_json()
    rows = {row["name"]: row for row in shown["classes"]}
    assert list(rows) == [*NAMES, *EXTRA]
    for name in EXTRA:
        assert rows[name] == {"name": name, "images": 0, "zero_shot": None, "tuned": None}
    assert all(rows[name]["tuned"] is not None for name in NAMES)
    assert shown["headline"]["tuned_accuracy"] == result.metrics["test_accuracy"]
    page = result.report.to_html()
    assert all(name in page for name in EXTRA)


def test_an_evaluation_counts_images_of_all_classes(
    prompt: TunedPrompt, clip: Backbone, tmp_path: Path, dataset: Dataset
) -> None:
    classifier = PromptClassifier(prompt, clip)
    tally = Tally(prompt.class_names, prompt.temperature)
    seen = extract_features(dataset.test, clip)
    tally.add(classifier.logits(seen.images), seen.labels)
    names = {figures.name: figures for figures in tally.result().classes}
    assert {name for name in names if names[name].accuracy is None} == set(EXTRA)
    folder = paint(tmp_path, ("yellow", "dark_grey"), {"train": 1, "test": 3})
    other = load_dataset(folder)
    new = extract_features(other.test, clip)
    places = np.array([prompt.class_names.index(name) for name in other.class_names])
    tally.add(classifier.logits(new.images), places[new.labels])
    report = EvaluationReport(tally.result(), None, "test", prompt)
    rows = {row["name"]: row for row in report.to_json()["classes"]}
    assert all(rows[name]["images"] == 3 for name in (*NAMES, *EXTRA))
    assert all(rows[name]["accuracy"] is not None for name in EXTRA)
    assert report.classifier == "tuned prompt with head gda"
    assert "dark grey" in report.to_html()


def test_classes_can_be_selected(prompt: TunedPrompt, clip: Backbone) -> None:
    chosen = PromptClassifier(prompt, clip).among(["yellow", "red"])
    rows = [prompt.class_names.index(name) for name in ("yellow", "red")]
    np.testing.assert_array_equal(chosen.prompt.bias, prompt.bias[rows])


def test_exports_answer_as_the_prompt(prompt: TunedPrompt, clip: Backbone) -> None:
    origin = Origin("colours", 1, "0" * 64)
    matrix = np.load(io.BytesIO(export(prompt, ExportFormat.NPY, origin)))
    assert matrix.shape == (len(NAMES) + len(EXTRA), clip.embed_dim + 1)
    images = np.random.default_rng(0).standard_normal((4, clip.embed_dim)).astype(np.float32)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    session = onnxruntime.InferenceSession(export(prompt, ExportFormat.ONNX, origin))
    (found,) = session.run(None, {"image_embedding": images})
    expected = PromptClassifier(prompt, clip).probabilities(images)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    known = session.get_modelmeta().custom_metadata_map["class_names"]
    assert json.loads(known) == [*NAMES, *EXTRA]
