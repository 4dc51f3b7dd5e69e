"""Figures of evaluations against values computed by hand, and plainly with numpy."""

import json
import math
import re
from collections.abc import Sequence

import numpy as np
import pytest

from sharpzo_engine.errors import DatasetError, ImageError
from sharpzo_engine.prompts.artifact import TunedPrompt
from sharpzo_engine.prompts.evaluation import BINS, Assessment, Tally
from sharpzo_engine.prompts.interval import wilson_interval
from sharpzo_engine.reports.evaluation_report import LISTED_ERRORS, EvaluationReport
from sharpzo_engine.reports.report_page import interval_text

NAMES = ("cat", "dog", "bird")


def assess(
    logits: Sequence[Sequence[float]], labels: Sequence[int], temperature: float | None = None
) -> Assessment:
    tally = Tally(NAMES, temperature)
    tally.add(np.array(logits, np.float32), np.array(labels, np.int64))
    return tally.result()


def logits_of(*probabilities: Sequence[float]) -> list[list[float]]:
    return np.log(np.array(probabilities)).tolist()


def test_figures_computed_by_hand() -> None:
    found = assess(
        logits_of((0.7, 0.2, 0.1), (0.5, 0.3, 0.2), (0.2, 0.7, 0.1), (0.1, 0.89, 0.01)),
        [0, 1, 1, 0],
    )
    assert found.accuracy == 0.5
    assert found.macro_accuracy == 0.5  # cat 1/2, dog 1/2, no bird
    assert found.top5_accuracy == 1.0
    assert found.confusion == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
    cat, dog, bird = found.classes
    assert (cat.images, cat.predicted, cat.accuracy, cat.precision) == (2, 2, 0.5, 0.5)
    assert (dog.images, dog.predicted, dog.accuracy, dog.precision) == (2, 2, 0.5, 0.5)
    assert (bird.images, bird.predicted, bird.accuracy, bird.precision) == (0, 0, None, None)
    own = (0.7, 0.3, 0.7, 0.1)
    assert found.calibration.nll == pytest.approx(-sum(map(math.log, own)) / 4)
    # Bins: 0.5 wrong in (7/15, 8/15]; two of 0.7, both right, in (10/15, 11/15]; 0.89 wrong.
    assert found.calibration.ece == pytest.approx((0.5 + 2 * 0.3 + 0.89) / 4)
    filled = {index: one for index, one in enumerate(found.calibration.bins) if one.images}
    assert list(filled) == [7, 10, 13]
    assert (filled[10].images, filled[10].accuracy) == (2, 1.0)
    assert filled[10].confidence == pytest.approx(0.7)
    assert filled[10].low == pytest.approx(10 / 15)
    assert found.calibrated is None


def test_precision_is_of_the_column_and_accuracy_of_the_row() -> None:
    found = assess([[9, 0, 0], [9, 0, 0], [9, 0, 0], [0, 9, 0]], [0, 1, 2, 1])
    cat, dog, bird = found.classes
    assert (cat.accuracy, cat.precision) == (1.0, pytest.approx(1 / 3))
    assert (dog.accuracy, dog.precision) == (0.5, 1.0)
    assert (bird.accuracy, bird.precision) == (0.0, None)
    assert found.macro_accuracy == pytest.approx(0.5)


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_the_calibrated_figures_are_those_of_divided_logits(temperature: float) -> None:
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(50, 3)) * 4, rng.integers(0, 3, 50)
    found = assess(logits.tolist(), labels.tolist(), temperature)
    divided = assess((logits / temperature).tolist(), labels.tolist())
    assert found.calibrated is not None
    assert found.calibrated.temperature == temperature
    assert found.calibrated.ece == pytest.approx(divided.calibration.ece, abs=1e-6)
    assert found.calibrated.nll == pytest.approx(divided.calibration.nll, abs=1e-6)
    assert found.calibration.temperature == 1.0


def test_random_figures_against_a_plain_computation() -> None:
    rng = np.random.default_rng(2)
    names = [f"class {index}" for index in range(12)]
    logits, labels = rng.normal(size=(400, 12)).astype(np.float32) * 3, rng.integers(0, 12, 400)
    tally = Tally(names)
    for part in np.array_split(np.arange(400), 7):
        tally.add(logits[part], labels[part])
    found = tally.result()
    probabilities = np.exp(logits.astype(float))
    probabilities /= probabilities.sum(1, keepdims=True)
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    assert found.accuracy == np.mean(predicted == labels)
    best = np.argsort(-logits, axis=1)[:, :5]
    assert found.top5_accuracy == (best == labels[:, None]).any(1).mean()
    assert found.calibration.nll == pytest.approx(-np.log(probabilities[range(400), labels]).mean())
    ece = 0.0
    for index in range(BINS):
        inside = (confidence > index / BINS) & (confidence <= (index + 1) / BINS)
        if inside.any():
            gap = np.mean(predicted[inside] == labels[inside]) - confidence[inside].mean()
            ece += inside.mean() * abs(gap)
    assert found.calibration.ece == pytest.approx(ece)
    confusion = np.zeros((12, 12), int)
    np.add.at(confusion, (labels, predicted), 1)
    assert found.confusion == confusion.tolist()
    recall = confusion.diagonal() / confusion.sum(1)
    assert found.macro_accuracy == pytest.approx(recall.mean())
    assert sum(one.images for one in found.calibration.bins) == 400


def test_extreme_logits_stay_finite() -> None:
    found = assess([[1e4, 0, -1e4], [0, 1e4, 0]], [0, 0], temperature=100.0)
    assert found.calibration.nll == pytest.approx(5e3)
    assert found.calibration.ece == pytest.approx(0.5)
    assert [one.images for one in found.calibration.bins][-1] == 2


def test_no_images_are_no_evaluation() -> None:
    tally = Tally(NAMES)
    tally.add(np.empty((0, 3), np.float32), np.empty(0, np.int64))
    with pytest.raises(DatasetError):
        tally.result()


def a_report(
    classes: int = 3, *, compared: bool = True, names: Sequence[str] = (), errors: int = 0
) -> EvaluationReport:
    rng = np.random.default_rng(3)
    names = names or [f"class {index}" for index in range(classes)]
    labels = np.repeat(np.arange(len(names)), 20)
    tallies = Tally(names, 1.7), Tally(names)
    for tally, sure in zip(tallies, (4.0, 2.0), strict=True):
        logits = rng.normal(size=(len(labels), len(names)))
        logits[np.arange(len(labels)), labels] += sure * rng.random(len(labels))
        tally.add(2.5 * logits, labels)
    prompt = TunedPrompt(
        tuple(names),
        np.eye(len(names), 8 + len(names), dtype=np.float32),
        np.zeros((4, 8), np.float32),
        100.0,
        {
            "backbone": {"name": "ViT-B-16", "pretrained": "openai", "fingerprint": "f" * 64},
            "head": {"kind": "gda", "temperature": 1.7},
        },
    )
    return EvaluationReport(
        tallies[0].result(),
        tallies[1].result() if compared else None,
        "test",
        prompt,
        tuple((f"{index}.png", ImageError("it is damaged")) for index in range(errors)),
        {"prompt": "pets:3", "dataset_name": "my <pets>", "job_name": None},
    )


@pytest.mark.parametrize("classes", [3, 30, 60])
@pytest.mark.parametrize("compared", [True, False])
def test_the_page_is_made_of_the_json_alone(classes: int, compared: bool) -> None:
    report = a_report(classes, compared=compared, errors=2)
    data = json.loads(report.to_json_bytes())
    page = report.to_html()
    assert page == a_report(classes, compared=compared, errors=2).to_html()
    assert f"{data['figures']['accuracy']:.1%}" in page
    assert page.count("<svg") == (3 if compared else 2)
    assert "my &lt;pets&gt;" in page
    assert "0.png" in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert ("zero-shot" in page.lower()) == compared


def test_the_report_lists_some_errors_and_counts_all() -> None:
    data = a_report(errors=LISTED_ERRORS + 5).to_json()
    assert data["errors"]["count"] == LISTED_ERRORS + 5
    assert len(data["errors"]["examples"]) == LISTED_ERRORS
    assert data["errors"]["examples"][0] == {
        "file": "0.png",
        "code": "image_undecodable",
        "message": "it is damaged",
    }


def test_the_summary_has_both_sides() -> None:
    figures = a_report().figures()
    assert {"accuracy", "ece", "calibrated_ece", "zero_shot_accuracy", "errors"} <= set(figures)
    alone = a_report(compared=False).figures()
    assert alone["zero_shot_accuracy"] is alone["zero_shot_accuracy_low"] is None


def test_accuracies_have_their_intervals_in_the_figures_and_on_the_page() -> None:
    report = a_report()
    figures, data, page = report.figures(), report.to_json(), report.to_html()
    for name, found in (("accuracy", data["figures"]), ("zero_shot_accuracy", data["zero_shot"])):
        bounds = (found["accuracy_low"], found["accuracy_high"])
        assert bounds == wilson_interval(found["accuracy"], 60)
        assert bounds == (figures[f"{name}_low"], figures[f"{name}_high"])
        assert page.count(interval_text(bounds)) == 2  # in the headline and in the table
    assert "on 60 images" in page
    (row,) = re.findall(r"<tr><td>… 95% interval</td>.*?</tr>", page, re.DOTALL)
    assert row.count("<td") == 3
    (row,) = re.findall(
        r"<tr><td>… 95% interval</td>.*?</tr>", a_report(compared=False).to_html(), re.DOTALL
    )
    assert row.count("<td") == 2


def test_names_that_are_no_characters_are_written_all_the_same() -> None:
    a_report(names=("a\ud800", "<b>", "日本")).to_html().encode()
