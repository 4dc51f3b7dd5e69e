"""Every benchmark in its smallest form, so that none of them rots; figures are not looked at."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import __main__ as driver
from benchmarks import (
    accuracy,
    base_to_new,
    defaults,
    encoders,
    gpu,
    ingestion,
    memory,
    remote,
    serving,
    sizing,
    time_to_accuracy,
)
from benchmarks.support import few_shots, served
from benchmarks.support.feature_file import FeatureFile
from benchmarks.support.output import DASH, Comparison, Table, percent
from benchmarks.support.results import Results
from benchmarks.support.setting import Setting
from sharpzo_engine import Features

IMAGES = {"train": 5, "val": 2, "test": 2}  # per class
PASSES = 150
SETS = ("small", "digits")
SEARCHED = ("tuned prompt", "Tip-Adapter", "hand-written + head")
RUN = ["--passes", str(PASSES), "--shots", "4", "--seeds", "1"]


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for split, count in IMAGES.items():
        for label in ("cat", "dog", "bird", "fish"):
            (folder / split / label).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def kept_features(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options with which the digits are embedded once for all tests."""
    return ["--cache", str(tmp_path_factory.mktemp("features"))]


@pytest.fixture
def setting(photos: Path, small_backbone: Path, tmp_path: Path) -> Setting:
    backbone = f"local-dir:{small_backbone}"
    return Setting(photos, backbone, None, tmp_path / "cache", shots=4, seeds=(1,), passes=PASSES)


@pytest.mark.parametrize("benchmark", [accuracy, time_to_accuracy])
def test_benchmark_on_photos_prints_and_writes_and_resumes(
    benchmark: Any,
    setting: Setting,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(time_to_accuracy, "PLAIN_PASSES", 1)
    file = tmp_path / "results.json"
    arguments = [str(setting.folder), "--backbone", setting.backbone_spec, *RUN]
    arguments += ["--cache", str(setting.cache), "--json", str(file)]
    benchmark.main(arguments)
    first = json.loads(file.read_text())
    assert first["rows"]
    assert first["machine"]["torch"]
    assert "seconds" in capsys.readouterr().out
    benchmark.main([*arguments, "--resume"])
    assert json.loads(file.read_text())["rows"] == first["rows"]


def test_defaults_are_judged_on_several_datasets(
    setting: Setting, kept_features: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    read = few_shots.read(setting.folder, setting.backbone, setting.cache)
    file = tmp_path / "results.json"
    arguments = [str(_saved(read, tmp_path / "small.npz")), "digits", *RUN, *kept_features]
    arguments += ["--backbone", setting.backbone_spec, "--json", str(file)]
    arguments += ["--variants", "memory 0", "paper"]
    defaults.main(arguments)
    first = json.loads(file.read_text())
    assert [[row["row"], row["dataset"]] for row in first["rows"]] == [
        [name, dataset] for name in ("default", "memory 0", "paper") for dataset in SETS
    ]
    assert all(row["forward_passes"] <= PASSES for row in first["rows"])
    assert [each["backbone"] for each in first["setting"]["sets"]] != ["tiny", "tiny"]
    assert "memory 0" in capsys.readouterr().out
    defaults.main([*arguments, "--resume"])
    assert json.loads(file.read_text())["rows"] == first["rows"]


@pytest.mark.fast
def test_differences_to_the_default_are_paired() -> None:
    found = [
        ("default", "a", 1, 0.50), ("default", "a", 2, 0.70), ("default", "b", 1, 0.40),
        ("memory 0", "a", 1, 0.52), ("memory 0", "a", 2, 0.76), ("memory 0", "b", 1, 0.34),
        ("memory 4", "a", 3, 0.90), ("memory 4", "b", 1, 0.45),
    ]  # fmt: skip
    keys = ("row", "dataset", "seed", "test_accuracy")
    (table,) = defaults.tables([dict(zip(keys, row, strict=True)) for row in found], 1_000)
    assert table.header == ("variant", "a", "b", "mean")
    assert [list(line) for line in table.rows] == [
        ["default", "60.0% ± 14.1", "40.0%", ""],
        ["memory 0", "+4.0 ± 2.0", "-6.0", "-1.0 ± 5.0"],
        ["memory 4", DASH, "+5.0", "+5.0"],
    ]


@pytest.mark.fast
def test_defaults_look_at_what_there_is() -> None:
    assert defaults.known_sets(None) == [Path("digits")]
    assert [path.stem for path in defaults.known_sets(Path("real"))] == [
        "clothing", "flowers", "scenes", "digits",
    ]  # fmt: skip


def test_accuracy_has_every_row(setting: Setting) -> None:
    results = Results(None, {})
    accuracy.measure(setting, results)
    assert {row["row"] for row in results.rows} == set(accuracy.ROWS)
    by_name = {row["row"]: row for row in results.rows}
    assert by_name["first-order"]["backward_passes"] > 0
    assert by_name["default"]["backward_passes"] == 0
    table, differences = accuracy.tables(results.rows, "small")
    assert [line[0] for line in table.rows] == list(accuracy.ROWS)
    assert all(line[-1] in ("met", "missed") for line in differences.rows)


def test_base_to_new_scores_classes_that_were_not_learned_from(
    setting: Setting, tmp_path: Path
) -> None:
    results = Results(None, {})
    base_to_new.measure(setting, results, ["first", "odd"])
    (table,) = base_to_new.tables(results.rows, "small")
    assert len(table.rows) == 2 * 6
    assert {row["split"] for row in results.rows} == {"first", "odd"}
    assert all(0 <= row["base"] <= 1 and 0 <= row["new"] <= 1 for row in results.rows)
    file = few_shots.read(setting.folder, setting.backbone, setting.cache)
    on_features = replace(setting, folder=_saved(file, tmp_path / "small.npz"))
    again = Results(None, {})
    base_to_new.measure(on_features, again, ["odd"])
    kept = [row for row in results.rows if row["split"] == "odd"]
    assert _without_seconds(again.rows) == _without_seconds(kept)


def test_together_all_images_are_classified_among_all_classes(setting: Setting) -> None:
    apart, together = Results(None, {}), Results(None, {})
    for results, option in ((apart, False), (together, True)):
        base_to_new.measure(setting, results, ["odd"], together=option)
    (table,) = base_to_new.tables(together.rows, "small", together=True)
    assert table.title.startswith("One label space")
    assert [row[0] for row in table.rows][-2:] == [
        "odd: head, not calibrated",
        "odd: head, calibrated",
    ]
    own, all_ = ({row["row"]: row for row in r.rows} for r in (apart, together))
    for name in own.keys() & all_.keys():  # more classes never make an image easier
        assert all_[name]["base"] <= own[name]["base"]
        assert all_[name]["new"] <= own[name]["new"]


@pytest.mark.parametrize(
    ("split", "base", "new"),
    [
        ("first", [0, 1, 2], [3, 4]),
        ("last", [2, 3, 4], [0, 1]),
        ("even", [0, 2, 4], [1, 3]),
        ("odd", [1, 3], [0, 2, 4]),
    ],
)
def test_splits_of_the_classes(
    setting: Setting, split: str, base: list[int], new: list[int]
) -> None:
    features = Features(np.eye(5, dtype=np.float32), np.arange(5))
    file = FeatureFile(tuple("abcde"), "", features, features, features)
    task = base_to_new.Task(file, setting.backbone, split)
    assert (task.base.labels, task.new.labels) == (base, new)
    part = task.new.of(features)
    assert part.images.argmax(1).tolist() == new
    assert part.labels.tolist() == list(range(len(new)))


def _without_seconds(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_encoders_without_derivatives_are_tuned_on(setting: Setting, tmp_path: Path) -> None:
    named = encoders.encoders(setting, tmp_path)
    assert list(named) == ["torch", "fp32", "fp16", "int8", "rounded"]
    rows = [row for name in named for row in encoders.run(setting, named, 1, name)]
    assert len({row["zero_shot_accuracy"] for row in rows[:3]}) == 1
    (table,) = encoders.tables(rows, encoders.images_per_second(named), "small")
    assert [line[0] for line in table.rows] == list(named)
    assert table.rows[0][-1] == "1.0"


def test_heads_at_few_shots_are_compared(setting: Setting, tmp_path: Path) -> None:
    file = few_shots.read(setting.folder, setting.backbone, tmp_path)
    rows = few_shots.measure("small", file, setting.backbone, (1, 2), draws=2)
    assert [line[:2] for line in few_shots.table(rows).rows] == [["small", "1"], ["small", "2"]]
    again = few_shots.read(_saved(file, tmp_path / "small.npz"), setting.backbone, tmp_path)
    assert few_shots.measure("small", again, setting.backbone, (1, 2), draws=2) == rows


def test_heads_are_compared_with_what_is_served_on_several_datasets(
    setting: Setting,
    kept_features: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(served, "SHOTS", (1, 2))
    monkeypatch.setattr(few_shots, "SHOTS", (1,))
    monkeypatch.setattr(few_shots, "DRAWS", 2)
    read = few_shots.read(setting.folder, setting.backbone, setting.cache)
    file = tmp_path / "results.json"
    arguments = [str(_saved(read, tmp_path / "small.npz")), "digits", "--few-shots"]
    arguments += [*RUN, *kept_features]
    arguments += ["--backbone", setting.backbone_spec, "--json", str(file)]
    accuracy.main(arguments)
    first = json.loads(file.read_text())
    assert [row["key"] for row in first["rows"]] == [
        [dataset, shots, 1] for dataset in SETS for shots in (1, 2)
    ]
    for row in first["rows"]:
        assert all(0 <= row[name] <= 1 for name in (*served.OTHERS, served.SERVED)), row
        assert 0 < row["forward_passes"] <= PASSES
    assert "worst" in capsys.readouterr().out
    accuracy.main([*arguments, "--resume"])
    assert json.loads(file.read_text())["rows"] == first["rows"]


def test_what_is_measured_on_features_is_what_tuning_serves(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One shot: of the two validation images per class, one may be looked at."""
    setting = replace(setting, shots=1)
    tuned = setting.tune(setting.config(1, {"head": "auto"}))
    drawn = setting.features(setting.dataset(1).train)
    monkeypatch.setattr(FeatureFile, "few_shot", lambda *_: drawn)
    file = few_shots.read(setting.folder, setting.backbone, setting.cache)
    (row,) = served.run(setting, file, 1)
    assert row[served.SERVED] == tuned.metrics["test_accuracy"]
    assert row[served.SERVES] == tuned.prompt.metadata["head"]["name"]
    assert row["forward_passes"] == tuned.metrics["forward_passes"]
    shared = tuned.comparison.keys() & row.keys()
    assert shared == {"zero-shot", "zero-shot, templates", *SEARCHED}
    assert {name: row[name] for name in shared} == {n: tuned.comparison[n] for n in shared}


@pytest.mark.fast
def test_what_is_served_is_held_against_the_best_of_each_dataset() -> None:
    def row(dataset: str, seed: int, best: str, served_is: float) -> dict[str, Any]:
        others = dict.fromkeys(served.OTHERS, 0.5) | {best: 0.8}
        return {"dataset": dataset, "shots": 4, "seed": seed, **others, served.SERVED: served_is}

    rows = [
        row("a", 1, "GDA", 0.82), row("a", 2, "GDA", 0.80),
        row("b", 1, "Tip-Adapter", 0.77), row("b", 2, "GDA", 0.62),
    ]  # fmt: skip
    by_method, compared = served.tables(rows, 1_000)
    assert [line[-2:] for line in by_method.rows] == [
        ["81.0% ± 1.4", "+1.0"],
        ["69.5% ± 10.6", "+4.5"],  # the best means are 65
    ]
    assert [list(line) for line in compared.rows] == [
        ["shots 4: mean", "+2.8 points", "≥ -0.5 points", "met"],
        ["shots 4: worst, a", "+1.0 points", "≥ -2.0 points", "met"],
    ]
    lost = [{**each, served.SERVED: 0.6} for each in rows]
    verdicts = [line[-1] for line in served.tables(lost, 1_000)[1].rows]
    assert verdicts == ["missed", "missed"]


@pytest.mark.fast
def test_several_datasets_without_few_shots_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        accuracy.main(["a", "digits"])
    assert "--few-shots" in capsys.readouterr().err


def _saved(file: FeatureFile, path: Path) -> Path:
    splits = {"train": file.train, "val": file.validation, "test": file.test}
    arrays = {f"{split}_images": part.images for split, part in splits.items()}
    arrays |= {f"{split}_labels": part.labels for split, part in splits.items()}
    about = {"class_names": file.class_names, "backbone_fingerprint": file.fingerprint}
    np.savez(path, **arrays, **about)
    return path


def test_a_server_with_the_weights_is_compared_with_none(setting: Setting) -> None:
    table = remote.measure(replace(setting, backbone_spec="tiny"), turns=1)
    assert [line[0] for line in table.rows] == [remote.LOCAL, remote.REMOTE]
    assert table.rows[0][2] == "1.00"
    assert "the same to the bit" in table.note


def test_a_device_is_compared_with_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "make_backbone", partial(gpu.make_backbone, 64, 2))
    monkeypatch.setattr(gpu, "ROUNDS", 1)
    cpu = torch.device("cpu")
    found = gpu.exactness(cpu)
    assert found == {"loss": 0, "embedding": 0, "tangent": 0, "resumed_identical": True}
    row = gpu.text_speed(cpu, 3)
    assert row["classes"] == 3
    assert row["ratio"] > 1
    exact, text = gpu.tables({"Exactness": [found], "Text side": [row], "Image side": []}, "cpu")
    assert "resumed identical" in exact.header
    assert text.rows[0][0] == "3"


@pytest.mark.fast
def test_a_device_that_is_not_there_is_said(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    gpu.main(["--device", "cuda:77", "--json", str(tmp_path / "x.json")])
    assert "nothing to measure: no device cuda:77" in capsys.readouterr().out
    assert not (tmp_path / "x.json").exists()


def test_search_that_never_gets_there_says_so(setting: Setting) -> None:
    reached = time_to_accuracy.run_until(setting, setting.config(1, {}), accuracy=1.1)
    assert not reached.in_time
    assert reached.passes <= PASSES


@pytest.mark.slow
def test_memory_of_processes(small_backbone: Path) -> None:
    cases = ("inference", "tuning (default)", "backpropagation (open_clip)")
    rows = memory.run([3], f"local-dir:{small_backbone}", cases=cases)
    assert [row["case"] for row in rows] == list(cases)
    assert all(row["peak_mib"] > 50 for row in rows)
    peaks, ratios = memory.tables(rows)
    assert len(peaks.rows) == 3
    assert len(ratios.rows) == 1


def test_objective_on_a_small_text_tower(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import objective

    small, run = objective.make_backbone(width=64, layers=2), objective.run
    monkeypatch.setattr(objective, "make_backbone", lambda: small)
    monkeypatch.setattr(objective, "peak_memory", lambda *_: 1.0)
    monkeypatch.setattr(objective, "run", lambda **_: run(classes=[3], repeats=1))
    section = driver.measure_objective(driver.SHORT)
    assert len(section.rows) == len(section.tables[0].rows) == 1


def test_driver_writes_one_json_and_markdown(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"backbone": "b", "classes": 10, "case": case, "peak_mib": 1.0}
        for case in ("inference", "tuning (default)")
    ]
    monkeypatch.setattr(memory, "run", lambda _: rows)
    variants = ("default", "8 directions")
    least = serving.Budget(1, {serving.TINY: 0.5}, cold=2, mixed={serving.TINY: 60}, prompts=40)
    budget = replace(
        driver.SHORT,
        passes=100,
        defaults_passes=100,
        variants=variants,
        serving=least,
        megabytes=1,
        visits=1,
    )
    file, markdown = tmp_path / "all.json", tmp_path / "all.md"
    arguments = ["--dataset", str(setting.folder), "--backbone", setting.backbone_spec]
    arguments += ["--json", str(file), "--markdown", str(markdown)]
    monkeypatch.setattr(ingestion, "CASES", ingestion.CASES[:1])
    sections = [name for name in driver.SECTIONS if name != "objective"]
    driver.main([*arguments, "--sections", *sections], replace(budget, shots=4, plain_passes=1))
    found = json.loads(file.read_text())
    assert list(found) == ["machine", *sections]
    assert markdown.read_text().count("### ") == 12
    assert all(row["ratio"] > 0 and row["all_mib"] > row["api_mib"] for row in found["ingestion"])
    (mixed,) = (row for row in found["serving"] if row["figure"] == "mixed")
    assert (mixed["requests"], mixed["wrong"], mixed["server_errors"]) == (60, 0, 0)


def test_serving_knows_a_wrong_answer() -> None:
    rows = np.eye(4, dtype=np.float32)[None].repeat(2, 0)
    prompts = serving.Prompts(rows, 5.0, {}, 1)
    embeddings = np.eye(4, dtype=np.float32)
    scores = prompts.probabilities(1, embeddings[2])
    named = [{"label": f"bench-1 class {i}", "index": i, "score": scores[i]} for i in range(4)]
    body = {"name": "bench-1", "results": [{"predictions": named}]}
    right = {"ref": "bench-1", "image": 2, "status": 200, "body": body}
    assert serving.is_right(right, prompts, embeddings)
    assert not serving.is_right({**right, "image": 1}, prompts, embeddings)
    assert not serving.is_right({**right, "ref": "bench-0"}, prompts, embeddings)
    assert not serving.is_right({**right, "image": -1}, prompts, embeddings)
    assert not serving.is_right({**right, "status": 500}, prompts, embeddings)
    broken = {"name": "bench-1", "results": [{"error": {}}]}
    assert serving.is_right({**right, "image": -1, "body": broken}, prompts, embeddings)
    assert not serving.is_right({**right, "body": broken}, prompts, embeddings)


def test_digits_where_there_is_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHARPZO_REAL_DATA", raising=False)
    with driver.find_photos(driver.parse([])) as (folder, backbone):
        assert backbone == "tiny"
        assert (folder / "train").is_dir()


@pytest.mark.fast
def test_every_variant_of_the_defaults_is_a_configuration(setting: Setting) -> None:
    for values in defaults.VARIANTS.values():
        setting.config(1, {**values, "head": "none"})


@pytest.mark.fast
def test_results_of_another_setting_are_refused(tmp_path: Path) -> None:
    Results.open(tmp_path / "r.json", {"passes": 1}, resume=False)
    with pytest.raises(SystemExit, match="another setting"):
        Results.open(tmp_path / "r.json", {"passes": 2}, resume=True)


def test_two_processes_may_share_a_file(tmp_path: Path) -> None:
    def rows(value: int) -> Callable[[], list[dict[str, Any]]]:
        return lambda: [{"value": value}]

    first = Results.open(tmp_path / "r.json", {}, resume=False)
    second = Results.open(tmp_path / "r.json", {}, resume=True)
    first.measure(["a", 1], rows(1))
    second.measure(["b", 1], rows(2))
    stored = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert sorted(row["value"] for row in stored) == [1, 2]


@pytest.mark.fast
def test_table_as_markdown() -> None:
    table = Table("Title", ("a", "b"), [("x", "1")], "A note.")
    assert table.to_markdown() == "### Title\n\n| a | b |\n| --- | --: |\n| x | 1 |\n\nA note."


@pytest.mark.fast
@pytest.mark.parametrize(
    ("value", "at_most", "verdict"),
    [(1.2, True, "met"), (1.4, True, "missed"), (1.4, False, "met"), (None, False, "")],
)
def test_verdicts(value: float | None, at_most: bool, verdict: str) -> None:
    assert Comparison("ratio", value, 1.3, at_most=at_most).verdict == verdict


@pytest.mark.fast
def test_percent_of_several_has_a_deviation() -> None:
    assert percent([0.5, 0.7]) == "60.0% ± 14.1"
    assert percent([0.5]) == "50.0%"


def test_sizing_looks_at_every_process_and_folder(
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sizing, "CONFIG", {"shots": 4})
    file = tmp_path / "sizing.json"
    few = ["--photos", str(photos), "--steps", "3", "--images", "2", "--backbones", "tiny"]
    sizing.main([*few, "--json", str(file)])
    (row,) = json.loads(file.read_text())["rows"]
    assert row["images"] == 4 * sum(IMAGES.values())
    assert row["job_steps"] == 3
    for figure in ("weights", "idle", "api", "parent", "child", "dataset", "job", "prompt"):
        assert row[figure] > 0, figure
    assert "Rows of one job" in capsys.readouterr().out
