from __future__ import annotations

import json
import re
import shutil
import signal
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from sharpzo_cli.formatting import interval_text
from sharpzo_cli.tuning import FINISHING, TuningView, finish_on_interrupt
from sharpzo_engine.errors import FinishSearch, TuningInterrupted
from sharpzo_engine.prompts.artifact import TunedPrompt
from sharpzo_engine.prompts.interval import wilson_interval

if TYPE_CHECKING:
    from pathlib import Path

QUICK = ["--shots", "4", "--set", "total_steps=6", "--set", "change_point=3"]
QUICK += ["--set", "prompt.intrinsic_dim=8", "--set", "cma.population_size=4"]


@pytest.fixture(scope="session")
def tuned(squares: Path, small_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prompt file, written by the command itself."""
    from sharpzo_cli.main import main

    path = tmp_path_factory.mktemp("prompt") / "deeper" / "prompt.safetensors"
    options = ["--backbone", f"local-dir:{small_backbone}", "--out", str(path)]
    assert main(["tune", str(squares), *QUICK, *options]) == 0
    return path


def test_tune_writes_a_prompt_and_prints_one_object(
    sharpzo: Any, squares: Path, small_backbone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "p.safetensors"
    options = ["--backbone", f"local-dir:{small_backbone}", "--out", out, "--json"]
    ran = sharpzo("tune", squares, *QUICK, *options)
    assert ran.code == 0
    answer = json.loads(ran.out)
    assert answer["artifact"] == str(out)
    assert out.stat().st_size > 0
    assert answer["report"] == str(tmp_path / "p.html")
    assert answer["report_json"] == str(tmp_path / "p.json")
    assert "red" in (tmp_path / "p.html").read_text()
    report = json.loads((tmp_path / "p.json").read_text())
    assert report["headline"]["tuned_accuracy"] == answer["test_accuracy"]
    assert report["labels"] == {"preset": "default"}
    assert 0 <= answer["zero_shot_accuracy"] <= 1
    assert 0 <= answer["test_accuracy"] <= 1
    assert answer["comparison"]["tuned prompt"] == answer["prompt_test_accuracy"]
    assert answer["comparison_split"] == "test"
    assert answer["head"]["kind"] in ("none", "gda", "linear")
    assert (answer["steps"], answer["stopped_by"]) == (6, "completed")
    assert "Traceback" not in ran.err


def test_tune_prints_a_table_for_people(
    sharpzo: Any, squares: Path, small_backbone: Path, tmp_path: Path
) -> None:
    options = ["--backbone", f"local-dir:{small_backbone}", "--out", tmp_path / "p.safetensors"]
    ran = sharpzo("tune", squares, *QUICK, *options)
    assert ran.code == 0
    names = (
        "zero-shot", "zero-shot, templates", "tuned prompt", "head alone", "prompt + head",
        "hand-written + head", "Tip-Adapter",
    )  # fmt: skip
    for row in names:
        assert row in ran.out
    assert "classifier: " in ran.out
    assert "chosen: " in ran.out
    assert "Accuracy on 6 images (test)" in ran.out
    shares = re.findall(r"(\d+\.\d)%[^\d]+(\d+\.\d)-(\d+\.\d)", ran.out)
    assert len(shares) == len(names)
    for share, low, high in shares:
        right = round(float(share) / 100 * 6)
        assert [low, high] == [f"{100 * bound:.1f}" for bound in wilson_interval(right / 6, 6)]
    for name in ("p.safetensors", "p.html", "p.json"):
        assert str(tmp_path / name) in ran.out.replace("\n", "")


def test_the_report_goes_where_it_is_told_or_nowhere(
    sharpzo: Any, squares: Path, small_backbone: Path, tmp_path: Path
) -> None:
    command = ["tune", squares, *QUICK, "--backbone", f"local-dir:{small_backbone}", "--json"]
    out = ["--out", tmp_path / "p.safetensors"]
    ran = sharpzo(*command, *out, "--no-report")
    assert ran.code == 0
    assert "report" not in json.loads(ran.out)
    assert [file.name for file in tmp_path.iterdir()] == ["p.safetensors"]
    ran = sharpzo(*command, *out, "--report", tmp_path / "reports" / "run.html")
    assert ran.code == 0
    written = sorted(file.name for file in (tmp_path / "reports").iterdir())
    assert written == ["run.html", "run.json"]


def test_a_report_never_replaces_another_file(sharpzo: Any, squares: Path, tmp_path: Path) -> None:
    config = tmp_path / "p.json"
    config.write_text("{}")
    command = ["tune", squares, "--config", config, "--out", tmp_path / "p.safetensors"]
    for options in ([], ["--report", tmp_path / "r.json"], ["--report", tmp_path]):
        ran = sharpzo(*command, *options)
        assert ran.code == 2
        assert ran.error.startswith("error: ")
    assert config.read_text() == "{}"
    assert list(tmp_path.iterdir()) == [config]


def test_evaluate_measures_what_is_served(
    sharpzo: Any, squares: Path, small_backbone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "p.safetensors"
    options = ["--set", "head=gda", "--backbone", f"local-dir:{small_backbone}", "--out", out]
    tuned = json.loads(sharpzo("tune", squares, *QUICK, *options, "--json").out)
    evaluated = json.loads(sharpzo("evaluate", out, squares, "--json").out)
    assert tuned["head"]["kind"] == "gda"
    assert evaluated["accuracy"] == pytest.approx(tuned["test_accuracy"])


def test_classes_without_images_are_evaluated_and_classified(
    sharpzo: Any, squares: Path, small_backbone: Path, tmp_path: Path
) -> None:
    folder, out = tmp_path / "four", tmp_path / "p.safetensors"
    shutil.copytree(squares, folder)
    for split in ("train", "val", "test"):  # a fourth class
        shutil.copytree(folder / split / "red", folder / split / "crimson")
    options = ["--set", "extra_classes=[bright_yellow, grey]", "--out", out, "--json"]
    ran = sharpzo("tune", folder, *QUICK, *options, "--backbone", f"local-dir:{small_backbone}")
    assert json.loads(ran.out)["head"]["kind"] == "gda"
    evaluated = json.loads(sharpzo("evaluate", out, squares, "--json").out)
    assert evaluated["per_class_accuracy"]["grey"] is None
    assert evaluated["per_class_accuracy"]["bright yellow"] is None
    assert sharpzo("evaluate", out, squares).code == 0
    image = next(squares.glob("test/*/0.png"))
    ran = sharpzo("classify", out, image, "--top-k", "9", "--json")
    (answer,) = json.loads(ran.out)["results"]
    assert {"grey", "bright yellow", "crimson"} < {p["label"] for p in answer["predictions"]}
    assert sharpzo("export", out, "--format", "onnx", "--out", tmp_path / "p.onnx").code == 0
    refused = sharpzo(
        "tune", squares, *QUICK, *options, "--backbone", f"local-dir:{small_backbone}"
    )
    assert refused.code != 0
    assert "3 are too few (add images of more classes: 4 or more)" in refused.err


def test_classify_labels_each_image(sharpzo: Any, tuned: Path, squares: Path) -> None:
    images = sorted(squares.glob("test/*/0.png"))
    ran = sharpzo("classify", tuned, *images, "--top-k", "2", "--json")
    assert (ran.code, ran.err) == (0, "")
    results = json.loads(ran.out)["results"]
    assert [result["image"] for result in results] == [str(image) for image in images]
    for result in results:
        assert len(result["predictions"]) == 2
        assert result["predictions"][0]["score"] >= result["predictions"][1]["score"]
    assert sharpzo("classify", tuned, images[0]).out.count("0.png") == 1


def test_classify_shows_the_hand_written_prompt_beside_the_tuned_one(
    sharpzo: Any, tuned: Path, squares: Path, small_backbone: Path
) -> None:
    from sharpzo_engine import PromptClassifier, TunedPrompt, load_backbone

    images = sorted(squares.glob("test/*/0.png"))
    answer = json.loads(sharpzo("classify", tuned, *images, "--zero-shot", "--json").out)
    backbone = load_backbone(f"local-dir:{small_backbone}", device="cpu")
    written = PromptClassifier(TunedPrompt.load(tuned), backbone).zero_shot()
    for result, expected in zip(answer["results"], written.predict(images), strict=True):
        assert result["zero_shot"] == [pytest.approx(vars(p)) for p in expected]
        assert result["zero_shot"] != result["predictions"]
    plain = json.loads(sharpzo("classify", tuned, *images, "--json").out)["results"]
    assert [r["predictions"] for r in answer["results"]] == [r["predictions"] for r in plain]
    assert all("zero_shot" not in result for result in plain)
    shown = sharpzo("classify", tuned, images[0], "--zero-shot").out
    assert "zero-shot" in shown
    assert shown.count("%") == 6


def test_classify_calibrates_where_it_can(
    sharpzo: Any, tuned: Path, squares: Path, tmp_path: Path
) -> None:
    from sharpzo_engine import TunedPrompt

    prompt, image = TunedPrompt.load(tuned), squares / "test" / "red" / "0.png"

    def best(temperature: float | None, *options: str) -> Any:
        head = {**prompt.metadata["head"], "temperature": temperature}
        changed = replace(prompt, metadata={**prompt.metadata, "head": head})
        changed.save(tmp_path / "p.safetensors")
        return sharpzo("classify", tmp_path / "p.safetensors", image, "--json", *options)

    (plain, hot) = (best(50.0), best(50.0, "--calibrated"))
    scores = [json.loads(r.out)["results"][0]["predictions"][0]["score"] for r in (plain, hot)]
    assert scores[0] > scores[1] > 1 / 3
    ran = best(None, "--calibrated")
    assert (ran.code, ran.out) == (2, "")
    assert "no temperature" in ran.error


@pytest.mark.parametrize("form", ["npy", "onnx"])
def test_export_writes_what_the_engine_exports(
    sharpzo: Any, tuned: Path, tmp_path: Path, form: str
) -> None:
    from sharpzo_engine import TunedPrompt
    from sharpzo_engine.prompts.export import ExportFormat, Origin, export

    prompt = TunedPrompt.load(tuned)
    head = {**prompt.metadata["head"], "temperature": 2.0}
    prompt = replace(prompt, metadata={**prompt.metadata, "head": head})
    copy = tmp_path / "colours.safetensors"
    origin = Origin("colours", None, prompt.save(copy))
    ran = sharpzo("export", copy, "--format", form, "--json")
    assert (ran.code, ran.err) == (0, "")
    answer = json.loads(ran.out)
    assert answer["classes"] == list(prompt.class_names)
    assert answer["file"] == str(tmp_path / f"colours.{form}")
    assert answer["prompt_sha256"] == origin.sha256
    plain = export(prompt, ExportFormat(form), origin)
    assert (tmp_path / f"colours.{form}").read_bytes() == plain
    out = tmp_path / "deep" / "file"
    ran = sharpzo("export", copy, "--format", form, "--calibrated", "--out", out)
    assert ran.code == 0
    assert all(name in ran.out for name in prompt.class_names)
    expected = export(prompt, ExportFormat(form), origin, calibrated=True)
    assert out.read_bytes() == expected != plain


def test_export_never_replaces_the_prompt(sharpzo: Any, tuned: Path) -> None:
    before = tuned.read_bytes()
    ran = sharpzo("export", tuned, "--out", tuned)
    assert ran.code == 2
    assert "the prompt file itself" in ran.error
    assert tuned.read_bytes() == before


def test_evaluate_counts_every_image(sharpzo: Any, tuned: Path, squares: Path) -> None:
    ran = sharpzo("evaluate", tuned, squares, "--json")
    assert (ran.code, ran.err) == (0, "")
    answer = json.loads(ran.out)
    assert answer["images"] == 6
    assert [sum(row) for row in answer["confusion_matrix"]] == [2, 2, 2]
    right = sum(answer["confusion_matrix"][index][index] for index in range(3))
    assert answer["accuracy"] == pytest.approx(right / 6)
    assert set(answer["per_class_accuracy"]) == set(answer["classes"]) == {"red", "green", "blue"}
    shown = sharpzo("evaluate", tuned, squares, "--split", "val").out
    assert "of 6 images" in shown
    assert "... 95% interval" in shown
    assert interval_text(answer["accuracy"], 6) == "-".join(
        f"{100 * answer[name]:.1f}" for name in ("accuracy_low", "accuracy_high")
    )
    assert "Confusion" in shown


def test_a_damaged_image_is_named(sharpzo: Any, tuned: Path, tmp_path: Path) -> None:
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    ran = sharpzo("classify", tuned, tmp_path / "torn.png")
    assert ran.code == 2
    assert "torn.png" in ran.error


def test_a_damaged_prompt_is_refused(sharpzo: Any, tuned: Path, tmp_path: Path) -> None:
    content = bytearray(tuned.read_bytes())
    content[-1] ^= 1
    (tmp_path / "p.safetensors").write_bytes(content)
    ran = sharpzo("classify", tmp_path / "p.safetensors", tuned)
    assert ran.code == 2
    assert ran.error.startswith("error: ")


def test_another_dataset_is_refused(
    sharpzo: Any, tuned: Path, squares: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    for name in ("cat", "dog"):
        (other / "test" / name).mkdir(parents=True)
        (other / "train" / name).mkdir(parents=True)
        for split in ("test", "train"):
            source = squares / "test" / "red" / "0.png"
            (other / split / name / "0.png").write_bytes(source.read_bytes())
    ran = sharpzo("evaluate", tuned, other)
    assert ran.code == 2
    assert "classes" in ran.error


def test_ctrl_c_finishes_with_the_best_prompt_so_far(
    sharpzo: Any, squares: Path, small_backbone: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    out, kept = tmp_path / "p.safetensors", tmp_path / "kept"
    command = ["tune", squares, *QUICK, "--backbone", f"local-dir:{small_backbone}"]
    command += ["--out", out, "--checkpoint-dir", kept]
    show = TuningView.show
    shown: list[int] = []

    def press_ctrl_c_at_step_3(view: TuningView, step: Any) -> None:
        shown.append(step.step)
        if shown.count(3) == 1 and step.step == 3:
            signal.raise_signal(signal.SIGINT)
        show(view, step)

    monkeypatch.setattr(TuningView, "show", press_ctrl_c_at_step_3)
    usual = signal.getsignal(signal.SIGINT)
    ran = sharpzo(*command)
    assert ran.code == 0, ran.err
    assert signal.getsignal(signal.SIGINT) is usual
    assert max(shown) == 3
    assert ran.err.splitlines().count(FINISHING) == 1
    assert "seconds, finished early after step 3" in ran.out
    assert f"prompt file: {out}" in ran.out
    assert TunedPrompt.load(out).metadata["stopped_by"] == "finished"
    assert out.with_suffix(".html").exists()
    ran = sharpzo(*command, "--resume", "--json")
    assert ran.code == 0
    answer = json.loads(ran.out)
    assert (answer["steps"], answer["stopped_by"]) == (6, "completed")
    assert shown.count(1) == 1


def test_two_ctrl_c_leave_a_checkpoint_to_resume(
    sharpzo: Any, squares: Path, small_backbone: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    out, kept = tmp_path / "p.safetensors", tmp_path / "kept"
    command = ["tune", squares, *QUICK, "--backbone", f"local-dir:{small_backbone}"]
    command += ["--out", out, "--checkpoint-dir", kept, "--json"]
    show = TuningView.show
    shown: list[int] = []

    def press_ctrl_c_twice_at_step_3(view: TuningView, step: Any) -> None:
        shown.append(step.step)
        if shown.count(3) == 1 and step.step == 3:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        show(view, step)

    monkeypatch.setattr(TuningView, "show", press_ctrl_c_twice_at_step_3)
    usual = signal.getsignal(signal.SIGINT)
    ran = sharpzo(*command)
    assert (ran.code, ran.out) == (130, "")
    assert ran.err.splitlines()[-1].endswith(f"--checkpoint-dir {kept} --resume to continue")
    assert not out.exists()
    assert signal.getsignal(signal.SIGINT) is usual
    assert max(shown) == 3
    ran = sharpzo(*command, "--resume")
    assert ran.code == 0
    assert shown[-1] == json.loads(ran.out)["steps"] == 6
    assert 4 in shown
    assert shown.count(1) == 1


def test_the_third_ctrl_c_does_not_wait() -> None:
    told: list[str] = []
    with finish_on_interrupt(lambda: told.append("finishing")) as end_if_interrupted:
        end_if_interrupted()
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(FinishSearch):
            end_if_interrupted()
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(TuningInterrupted):
            end_if_interrupted()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert told == ["finishing"]


def test_ctrl_c_in_the_middle_of_a_line_finishes_all_the_same() -> None:
    def tell() -> None:
        raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stderr>'>")

    with finish_on_interrupt(tell) as end_if_interrupted:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(FinishSearch):
            end_if_interrupted()


def test_tune_learns_from_unlabelled_images(
    sharpzo: Any, squares: Path, small_backbone: Path, tmp_path: Path
) -> None:
    options = ["--backbone", f"local-dir:{small_backbone}", "--no-report", "--json"]
    options += ["--out", tmp_path / "p.safetensors"]
    refused = sharpzo("tune", squares, *QUICK, *options, "--unlabelled", squares)
    assert refused.code != 0
    assert "0 unlabelled images are too few for 3 classes" in refused.err
    refused = sharpzo("tune", squares, *QUICK, *options, "--unlabelled", tmp_path / "nowhere")
    assert "nowhere is not a folder" in refused.err
    more = tmp_path / "more" / "below"
    shutil.copytree(squares / "train", more / "a")
    shutil.copytree(squares / "val", more / "b")
    ran = sharpzo("tune", squares, *QUICK, *options, "--unlabelled", more)
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["unlabelled_images"] == 18
