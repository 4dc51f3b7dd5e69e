"""The run report: its numbers, its page, and what must never be on it."""

import json
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

from sharpzo_engine import Backbone, TuneResult, TuningConfig, load_dataset, tune
from sharpzo_engine.prompts.interval import wilson_interval
from sharpzo_engine.reports.report_page import percent, points, render
from sharpzo_engine.search.landscape import ACROSS, ALONG, Landscape, NoLandscape
from tests.engine.reports.pages import a_history, a_report

HOSTILE = (
    "<script>alert(1)</script>",
    "</style><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)',
    "&amp; &lt;",
    "$\\frac{1}{0$ $x_{",
    "under__score_",
    "\u05e9\u05dc\u05d5\u05dd",
    "\u202eevil",
    "\U0001f98a",
    "\u65e5\u672c\u8a9e",
    "x" * 200,
    "nul\x00 and \x1b[31m",
    "\udcff not UTF-8",
    "{{ 7 * 7 }}",
)


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def values(self, name: str) -> list[str]:
        return [value or "" for key, value in self.attributes if key == name]


@pytest.fixture(scope="module")
def html() -> str:
    return a_report([f"class {i}" for i in range(10)]).to_html()


def test_the_page_is_made_from_the_json_and_nothing_else(html: str) -> None:
    report = a_report([f"class {i}" for i in range(10)])
    assert render(json.loads(report.to_json_bytes())) == html == report.to_html()


def test_the_headline_says_what_was_reached(html: str) -> None:
    report = a_report([f"class {i}" for i in range(10)])
    head = report.to_json()["headline"]
    text = re.sub(r"\s+", " ", "".join(Page(html).text))
    assert f"{percent(report.before.accuracy)} → {percent(report.after.accuracy)}" in text
    assert "on 200 test images" in text
    assert (head["forward_passes"], head["seconds"], head["landscape_passes"]) == (4800, 31.25, 187)
    assert "4,800" in text


def test_the_choice_is_explained_with_all_candidates(html: str) -> None:
    text = re.sub(r"\s+", " ", " ".join(Page(html).text))
    assert "clearly better than gda on 40 images" in text
    assert "0.500 -0.250 ± 0.125 75.0%" in text
    assert a_report().to_json()["choice"]["images"] == 40


def test_nothing_outside_the_page_is_referred_to(html: str) -> None:
    page = Page(html)
    assert "http" not in html.replace("http-equiv", "")
    assert "//" not in html
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & set(page.tags)
    assert not page.values("src")
    assert all(target.startswith("#") for target in page.values("href"))
    assert all(url.startswith("#") for url in re.findall(r"url\(([^)]*)", html))
    assert "@import" not in html


def test_ids_are_unique_and_every_reference_meets_one(html: str) -> None:
    page = Page(html)
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    used = [target[1:] for target in page.values("href")]
    used += [url[1:] for url in re.findall(r"url\(([^)]*)", html)]
    assert used
    assert set(used) <= set(ids)


def test_every_figure_is_well_formed(html: str) -> None:
    figures = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(figures) == 5
    for figure in figures:
        ET.fromstring(figure)


def test_names_are_shown_and_do_nothing() -> None:
    changes = {"dataset": {"name": HOSTILE[0], "shots": 1}}
    report = a_report(HOSTILE, **changes).labelled(job_name=HOSTILE[1])
    report = replace(report, comparison={HOSTILE[1]: 0.5})
    page = Page(report.to_html())
    assert not {"script", "img"} & set(page.tags)
    assert not any(key.startswith("on") for key, _ in page.attributes)
    shown = set(page.text) | {text.strip() for text in page.text}
    for name in HOSTILE[:-2]:
        assert name.replace("\x00", "\ufffd") in shown or name in shown, name
    assert "? not UTF-8" in shown
    assert "{{ 7 * 7 }}" in shown
    json.loads(report.to_json_bytes())


def test_equal_reports_give_equal_bytes_in_any_process(html: str) -> None:
    code = (
        "from tests.engine.reports.pages import a_report\nimport sys\n"
        "page = a_report([f'class {i}' for i in range(10)]).to_html()\n"
        "sys.stdout.buffer.write(page.encode())\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    assert subprocess.check_output([sys.executable, "-c", code]).decode() == html


def test_a_users_plot_settings_are_left_alone_and_do_not_matter(html: str) -> None:
    with mpl.rc_context({"font.size": 30, "text.usetex": True, "svg.fonttype": "path"}):
        assert a_report([f"class {i}" for i in range(10)]).to_html() == html
        assert mpl.rcParams["font.size"] == 30


@pytest.mark.parametrize(("classes", "steps"), [(2, 1), (10, 100), (100, 2000), (1000, 20_000)])
def test_large_runs_give_small_files_soon(classes: int, steps: int) -> None:
    report = a_report([f"a class with a name of its own {i}" for i in range(classes)], steps)
    began = time.process_time()
    html = report.to_html()
    assert time.process_time() - began < 8  # about 1 on an idle machine
    assert len(html) < 400_000
    data = report.to_json_bytes()
    assert len(data) < 1_500_000
    assert len(json.loads(data)["classes"]) == classes
    assert len(json.loads(data)["history"]["step"]) == steps


def test_many_classes_are_shown_by_the_most_telling_ones() -> None:
    few, many = (a_report([f"class {i}" for i in range(n)]).to_html() for n in (20, 50))
    assert "Most improved" not in few
    assert few.count('class="track"') == 20
    for title in (
        "Most improved",
        "Most worsened",
        "Least accurate after tuning",
        "Most confused classes",
    ):
        assert title in many
    assert many.count('class="track"') <= 36
    assert 'class="matrix"' in few
    assert 'class="matrix"' not in many


def test_the_confusions_are_all_in_the_json() -> None:
    report = a_report([f"class {i}" for i in range(30)])
    cells = report.to_json()["confusion"]
    matrix = [[0] * 30 for _ in range(30)]
    for true, predicted, images in cells:
        matrix[true][predicted] = images
    assert matrix == report.after.confusion


def test_what_is_no_number_is_null() -> None:
    report = a_report()
    row = replace(report.history[0], loss=float("inf"), val_loss=float("nan"))
    report = replace(report, history=(row,))
    data = json.loads(report.to_json_bytes())
    assert data["metrics"]["loss"] is None
    assert data["history"]["loss"] == data["history"]["val_loss"] == [None]
    report.to_html()


def test_a_run_of_very_many_steps_is_thinned() -> None:
    report = replace(a_report(), history=a_history(50_001, 100, np.random.default_rng(0)))
    history = report.to_json()["history"]
    assert len(history["step"]) <= 20_000
    assert history["step"][-1] == 50_001
    assert [(s["name"], s["last_step"]) for s in history["stages"]] == [
        ("stage1", 100),
        ("stage2", 50_001),
    ]


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_run_of_hardly_any_steps_has_a_page(steps: int) -> None:
    html = a_report(steps=steps).to_html()
    assert ("No steps were run" in html) is (steps == 0)


def test_a_missing_landscape_says_why() -> None:
    report = replace(a_report(), landscape=NoLandscape("it would have taken a week"))
    assert "it would have taken a week" in report.to_html()
    assert report.landscape_passes == 0


@pytest.mark.parametrize(("value", "drawn"), [(1.0, True), (float("nan"), False)])
def test_a_flat_landscape_is_drawn_and_an_empty_one_explained(value: float, drawn: bool) -> None:
    flat = Landscape(ALONG, ACROSS, np.full((ACROSS.size, ALONG.size), value))
    html = replace(a_report(), landscape=flat).to_html()
    assert (html.count("<svg") == 5) is drawn
    assert ("not finite at any point" in html) is not drawn


def test_losses_that_were_never_numbers_leave_empty_curves() -> None:
    report = a_report()
    nan = float("nan")
    history = tuple(replace(row, loss=nan, val_loss=nan, sigma=nan) for row in report.history)
    assert replace(report, history=history).to_html().count("<svg") == 4


def test_a_class_without_images_has_no_accuracy() -> None:
    report = a_report(("cat", "dog", "unicorn"))
    confusion = [row[:] for row in report.after.confusion]
    confusion[2] = [0, 0, 0]
    before = replace(report.before, per_class=report.before.per_class | {"unicorn": None})
    after = replace(
        report.after, per_class=report.after.per_class | {"unicorn": None}, confusion=confusion
    )
    html = replace(report, before=before, after=after).to_html()
    assert html.count('class="track"') == 2


def test_the_split_is_said() -> None:
    untested = a_report().metadata["metrics"] | {"test_images": 0}
    assert a_report().split == "test"
    assert a_report(metrics=untested).split == "validation"
    trained = a_report(metrics=untested, validation_source="training")
    assert trained.split == "training"
    assert "the training images (the dataset" in trained.to_html()


def test_every_compared_accuracy_has_its_interval_and_a_whisker() -> None:
    report = replace(a_report(), comparison={"head alone": 1.0, "nothing": None})
    data, html = report.to_json(), report.to_html()
    measured = {name: value for name, value in data["comparison"].items() if value is not None}
    assert len(measured) == 3
    assert data["intervals"] == {
        name: list(wilson_interval(value, 40)) for name, value in measured.items()
    }
    assert "91.2\u2013100.0%" in html
    left, width = (f"{100 * share:.2f}%" for share in (0.91238, 1 - 0.91238))
    assert f'<b style="left:{left};width:{width}"></b>' in html
    assert html[html.index("Comparison</h2>") : html.index("Search</h2>")].count("</b></div>") == 3
    head = data["headline"]
    assert (head["tuned_accuracy_low"], head["tuned_accuracy_high"]) == wilson_interval(
        report.after.accuracy, 40
    )
    assert "All on the same 40 test images" in html


def test_images_that_chose_the_prompt_give_no_interval() -> None:
    untested = a_report().metadata["metrics"] | {"test_images": 0, "validation_images": 40}
    report = a_report(metrics=untested)
    data, html = report.to_json(), report.to_html()
    assert data["intervals"] == {}
    assert data["headline"]["tuned_accuracy_low"] is None
    assert "95%" not in html
    assert "All on the same 40 validation images" in html
    assert "no intervals are given" in html
    assert "Accuracy on 40 validation images" in html


def test_both_files_are_written(tmp_path: Path) -> None:
    report = a_report()
    written = report.save(tmp_path / "deep" / "run.html")
    assert written == (tmp_path / "deep" / "run.html", tmp_path / "deep" / "run.json")
    assert written[0].read_text(encoding="utf-8") == report.to_html()
    assert json.loads(written[1].read_bytes()) == json.loads(report.to_json_bytes())


def test_differences_carry_their_sign() -> None:
    assert [points(x) for x in (0.125, -0.125, 0.0, None)] == [
        "+12.5",
        "\u221212.5",
        "+0.0",
        "\u2013",
    ]


# --- the report of a real run

SMALL: dict[str, Any] = {
    "shots": 4,
    "total_steps": 12,
    "change_point": 6,
    "prompt": {"intrinsic_dim": 16},
    "cma": {"population_size": 6},
    "zo": {"queries": 2},
}


@pytest.fixture(scope="module")
def run(pictures: Path, clip: Backbone) -> TuneResult:
    return tune(load_dataset(pictures, shots=4), clip, TuningConfig.parse(SMALL))


def test_a_run_reports_itself(run: TuneResult) -> None:
    data = run.report.to_json()
    head = data["headline"]
    assert head["zero_shot_accuracy"] == run.metrics["zero_shot_accuracy"]
    assert head["tuned_accuracy"] == run.metrics["test_accuracy"]
    assert head["split"] == "test"
    assert data["metrics"] == run.metrics
    assert data["history"]["step"] == [record.step for record in run.history]
    assert data["provenance"]["backbone"] == run.prompt.metadata["backbone"]
    assert [row["name"] for row in data["classes"]] == list(run.prompt.class_names)
    json.dumps(data, allow_nan=False)


def test_the_landscape_is_not_on_the_bill(run: TuneResult) -> None:
    assert run.report.landscape_passes == 187
    assert run.metrics["forward_passes"] == run.history[-1].forward_passes + 1 + 1


def test_the_landscape_holds_the_training_losses(run: TuneResult) -> None:
    slice_ = run.report.to_json()["landscape"]
    middle = slice_["loss"][len(slice_["y"]) // 2]
    assert middle[slice_["x"].index(1.0)] == pytest.approx(run.metrics["loss"], rel=1e-5)


def test_without_a_test_split_validation_is_shown(pictures: Path, clip: Backbone) -> None:
    dataset = replace(load_dataset(pictures, shots=4), test=())
    result = tune(dataset, clip, TuningConfig.parse(SMALL))
    assert result.report.split == "validation"
    assert result.metrics["test_accuracy"] is None
    assert result.report.after.accuracy == pytest.approx(result.metrics["val_accuracy"])
    assert "has no test split" in result.report.to_html()


def test_importing_the_report_loads_no_plotting_library() -> None:
    code = (
        "import sys, sharpzo_engine.reports.report; "
        "print({'matplotlib', 'jinja2'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
