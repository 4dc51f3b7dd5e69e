"""`sharpzo datasets`, and the paper's datasets in the other commands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from sharpzo_cli.dataset_check import token_counter
from sharpzo_engine.data.catalogue import CATALOGUE, find
from sharpzo_engine.data.sources import ROOT_VARIABLE
from tests.miniatures import IMAGES, make_all, make_miniature, rows_of

if TYPE_CHECKING:
    from tests.cli.conftest import Ran

QUICK = ["--set", "shots=4", "--set", "total_steps=4", "--set", "change_point=2", "--no-report"]
QUICK += ["--set", "prompt.intrinsic_dim=8", "--set", "cma.population_size=4"]


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_all(tmp_path_factory.mktemp("root"))


@pytest.fixture
def damaged(squares: Path, tmp_path: Path) -> Path:
    """Ten kinds of damage in one folder."""
    folder = tmp_path / "damaged"
    shutil.copytree(squares, folder)
    train = folder / "train"
    for index in range(4):  # large enough, but for one
        for path in folder.rglob(f"{index}.png"):
            Image.open(path).resize((40, 40)).save(path)
    shutil.copy(train / "red" / "0.png", folder / "test" / "red" / "leak.png")
    shutil.copy(train / "red" / "1.png", train / "red" / "twin.png")
    shutil.copy(train / "red" / "2.png", train / "blue" / "red.png")
    (train / "green" / "torn.png").write_bytes((train / "green" / "0.png").read_bytes()[:60])
    (folder / "test" / "Green").mkdir()
    shutil.copy(train / "green" / "1.png", folder / "test" / "Green" / "1.png")
    (train / "empty").mkdir()
    (train / "[b]odd\x1b[31m").mkdir()
    Image.new("RGB", (8, 90), "black").save(train / "[b]odd\x1b[31m" / "tiny.png")
    (train / "green" / "old.gif").write_bytes(b"GIF89a")
    (folder / ".DS_Store").write_bytes(b"")
    shutil.copy(train / "red" / "3.png", folder / "loose.png")
    return folder


DAMAGE = {
    "error": {"label_mismatch", "class_name_invalid", "empty_class", "image_unreadable"},
    "warning": {
        "images_left_out",
        "unsupported_images",
        "few_images",
        "class_missing_in_split",
        "duplicates_across_splits",
        "duplicates_within_split",
        "duplicates_across_classes",
        "tiny_images",
    },
}


def check(sharpzo: Any, *arguments: object) -> tuple[Ran, dict[str, Any]]:
    ran = sharpzo("datasets", "check", *arguments, "--json")
    return ran, json.loads(ran.out)


def test_a_good_dataset_is_told_at_a_glance(sharpzo: Any, squares: Path) -> None:
    ran = sharpzo("datasets", "check", squares, "--shots", "4")
    assert ran.code == 0
    for part in ("24 images in 3 classes", "red", "█", "24 PNG", "16 px", "✓ 0 errors, 2 warnings"):
        assert part in ran.out
    assert "[tiny_images]" in ran.out
    assert ran.err == ""


def test_all_damage_is_reported_and_ends_with_2(sharpzo: Any, damaged: Path) -> None:
    ran = sharpzo("datasets", "check", damaged)
    assert ran.code == 2
    assert ran.error == f"error: {damaged} has 4 errors (fix the errors listed above)"
    for code in (*DAMAGE["error"], *DAMAGE["warning"]):
        assert f"[{code}]" in ran.out
    assert "'Green' where train/ has 'green'" in ran.out
    assert "train/green/torn.png: the image is damaged" in ran.out
    assert "[b]odd" in ran.out
    assert "\x1b" not in ran.out
    # A fix for each; classes are missing in val and in test.
    assert ran.out.count("→") == len(DAMAGE["error"]) + len(DAMAGE["warning"]) + 1
    assert "not usable for tuning" in ran.out


def test_the_report_is_one_object_for_programs(sharpzo: Any, damaged: Path) -> None:
    ran, report = check(sharpzo, damaged, "--shots", "5")
    assert ran.code == 2
    found = {(item["severity"], item["code"]) for item in report["findings"]}
    expected = {(severity, code) for severity, codes in DAMAGE.items() for code in codes}
    assert found == expected - {("warning", "few_images")} | {("error", "too_few_images")}
    assert (report["ok"], report["errors"], report["skipped"]) == (False, 5, 2)
    assert report["sizes"]["formats"] == {"PNG": report["images"] - 1}


def test_names_alone_are_looked_at_if_it_must_be_fast(sharpzo: Any, damaged: Path) -> None:
    ran, report = check(sharpzo, damaged, "--fast")
    assert ran.code == 2
    assert (report["examined"], report["sizes"]) == (0, None)
    assert "image_unreadable" not in {item["code"] for item in report["findings"]}


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_archives_are_checked_without_being_unpacked(
    sharpzo: Any, damaged: Path, tmp_path: Path, kind: str
) -> None:
    for refused in ("train/[b]odd\x1b[31m", "test/Green"):  # control characters, case alone
        shutil.rmtree(damaged / refused)
    path = tmp_path / f"photos.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in damaged.rglob("*"):
                archive.write(file, f"photos/{file.relative_to(damaged)}")
    else:
        with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w") as archive:
            archive.add(damaged, "photos")
    _, folder = check(sharpzo, damaged)
    before = sorted(tmp_path.rglob("*"))
    _, packed = check(sharpzo, path)
    assert sorted(tmp_path.rglob("*")) == before
    assert packed["sizes"] == folder["sizes"]
    assert packed["bytes"] == folder["bytes"]
    codes = [sorted(item["code"] for item in found["findings"]) for found in (packed, folder)]
    assert codes[0] == codes[1]
    assert "empty_class" in codes[0]


def test_an_archive_is_checked_where_only_the_engine_is_installed(
    squares: Path, tmp_path: Path
) -> None:
    archive = shutil.make_archive(str(tmp_path / "photos"), "zip", squares)
    absent = ["alembic", "celery", "fastapi", "fsspec", "httpx", "limits", "pydantic_settings"]
    absent += ["redis", "sqlalchemy", "tenacity", "uvicorn"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent!r}))\n"
        f"from sharpzo_cli.main import main; sys.exit(main(['datasets', 'check', {archive!r}]))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "photos.zip" in ran.stdout


def test_what_is_no_dataset_is_one_line(sharpzo: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("../../x.jpg", b"")
    (tmp_path / "torn.zip").write_bytes((tmp_path / "bad.zip").read_bytes()[:40])
    for name in ("notes.txt", "bad.zip", "torn.zip", "nothing"):
        ran = sharpzo("datasets", "check", tmp_path / name)
        assert (ran.code, ran.out) == (2, "")
        assert ran.error.startswith("error: ")
        assert name in ran.error


def test_a_contact_sheet_is_drawn(sharpzo: Any, damaged: Path, tmp_path: Path) -> None:
    for options in ((), ("--fast",)):
        sheet = tmp_path / "deeper" / "sheet.png"
        _, report = check(sharpzo, damaged, "--contact-sheet", sheet, *options)
        assert report["contact_sheet"] == str(sheet)
        picture = Image.open(sheet)
        colours = {c for _, c in picture.convert("RGB").getcolors(10**7) or []}
        assert {(220, 20, 30), (20, 200, 40)} <= colours
        sheet.unlink()
    ran = sharpzo("datasets", "check", damaged, "--contact-sheet", tmp_path / "sheet.txt")
    assert (ran.code, ran.out) == (2, "")
    assert ".png" in ran.error


def test_many_classes_show_those_with_the_fewest_images(sharpzo: Any, tmp_path: Path) -> None:
    for label in range(40):
        folder = tmp_path / "train" / f"class {label:02}"
        folder.mkdir(parents=True)
        for index in range(1 if label == 33 else 3):
            (folder / f"{index}.jpg").touch()
    ran = sharpzo("datasets", "check", tmp_path, "--fast")
    rows = [line for line in ran.out.splitlines() if line.startswith("class ")]
    assert len(rows) == 31  # with the header
    assert rows[1].startswith("class 33")
    assert "all, 10 more included" in ran.out
    assert "images were not opened" in ran.out


def test_a_file_that_cannot_be_read_is_named(sharpzo: Any, damaged: Path) -> None:
    (damaged / "train" / "red" / "link.png").symlink_to(damaged / "nowhere.png")
    _, report = check(sharpzo, damaged)
    listed = {row["file"]: row["reason"] for row in report["unreadable"]["listed"]}
    assert "cannot be read" in listed["train/red/link.png"]


def test_names_that_are_not_utf_8_can_be_told(sharpzo: Any, damaged: Path) -> None:
    odd = os.fsencode(damaged / "train" / "red") + b"/\xff\xfe.png"
    Path(os.fsdecode(odd)).write_bytes(b"torn")
    ran, report = check(sharpzo, damaged)
    assert "train/red/\udcff\udcfe.png" in {row["file"] for row in report["unreadable"]["listed"]}
    assert "\\udcff\\udcfe.png" in ran.out
    assert "\\udcff\\udcfe.png" in sharpzo("datasets", "check", damaged).out


@pytest.mark.parametrize("known", CATALOGUE, ids=lambda known: known.key)
def test_datasets_are_checked_by_name(sharpzo: Any, root: Path, known: Any) -> None:
    ran, report = check(sharpzo, known.key, "--root", root)
    assert ran.code == 0
    assert report["dataset"] == known.key
    assert [bool(n) for n in report["splits"].values()] == [bool(size) for size in known.sizes]
    shown = sharpzo("datasets", "check", known.key, "--root", root)
    assert known.title in shown.out  # has other sizes than published


def test_a_part_of_the_classes_is_checked(sharpzo: Any, root: Path) -> None:
    _, base = check(sharpzo, "eurosat", "--root", root, "--classes", "base", "--fast")
    _, new = check(sharpzo, "eurosat", "--root", root, "--classes", "new", "--fast")
    _, every = check(sharpzo, "eurosat", "--root", root, "--fast")
    assert base["classes"]["listed"] + new["classes"]["listed"] == every["classes"]["listed"]
    ran = sharpzo("datasets", "check", "eurosat", "--root", root, "--classes", "old")
    assert ran.code == 2


def test_known_datasets_are_listed(sharpzo: Any, root: Path, monkeypatch: Any) -> None:
    listed = json.loads(sharpzo("datasets", "list", "--json").out)
    assert [item["name"] for item in listed["datasets"]] == [known.key for known in CATALOGUE]
    assert not any(item["here"] for item in listed["datasets"])
    monkeypatch.setenv(ROOT_VARIABLE, str(root))
    listed = json.loads(sharpzo("datasets", "list", "--json").out)
    assert all(item["here"] for item in listed["datasets"])
    shown = sharpzo("datasets", "list", "--root", root.parent)
    assert shown.code == 0
    assert all(known.key in shown.out for known in CATALOGUE)
    assert "yes" not in shown.out


def test_a_split_file_is_written_where_there_is_none(sharpzo: Any, tmp_path: Path) -> None:
    known = find("eurosat")
    assert known is not None
    folder = make_miniature(known, tmp_path)
    original = folder / known.split_file
    ran = sharpzo("datasets", "split", "eurosat", "--root", tmp_path)
    assert ran.code == 2
    assert "--force" in ran.error
    original.unlink()
    ran = sharpzo("datasets", "check", "eurosat", "--root", tmp_path)
    assert ran.code == 2
    assert f"sharpzo datasets split eurosat --root {tmp_path}" in ran.error
    ran = sharpzo("datasets", "split", "eurosat", "--root", tmp_path, "--seed", "3")
    assert ran.code == 0
    assert "10 classes, 40 train, 20 val, 20 test" in ran.out
    ran, report = check(sharpzo, "eurosat", "--root", tmp_path)
    assert ran.code == 0
    assert report["images"] == sum(map(len, rows_of(known).values()))
    rows = json.loads(original.read_text())
    assert {row[2] for row in rows["train"]} == {row[2] for row in rows_of(known)["train"]}
    ran = sharpzo("datasets", "split", "eurosat", "--root", tmp_path, "--force", "--json")
    assert (ran.code, ran.err) == (0, "")
    told = json.loads(ran.out)
    assert told["file"] == str(original)
    assert told["splits"] == {"train": 40, "val": 20, "test": 20}


def test_a_folder_keeps_its_splits_in_its_split_file(
    sharpzo: Any, squares: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "squares"
    shutil.copytree(squares, folder)
    _, before = check(sharpzo, folder)
    ran = sharpzo("datasets", "split", folder, "--out", folder / "mine.json")
    assert ran.code == 2
    ran = sharpzo("datasets", "split", folder)
    assert ran.code == 0
    assert (folder / "split_zhou_squares.json").is_file()
    for subject in (folder, folder / "split_zhou_squares.json"):
        _, after = check(sharpzo, subject)
        assert (before["form"], after["form"]) == ("split folders", "split file")
        assert after["classes"] == before["classes"]
    assert sharpzo("datasets", "split", tmp_path / "none").code == 2


def test_tokens_are_only_counted_where_they_may_be_wrong() -> None:
    assert token_counter(["cat", "F-16A/B", "猫"]) is None
    for name in ("&#32;", "!!", "x" * 71):
        assert token_counter(["cat", name]) is not None
    count = token_counter(["&nbsp;", "word " * 80])
    assert count is not None
    assert (count("&nbsp;"), count("a photo"), count("word " * 80)) == (0, 2, 80)


# --- the other commands


@pytest.fixture(scope="session")
def imagenet_prompt(
    root: Path, small_backbone: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    from sharpzo_cli.main import main

    out = tmp_path_factory.mktemp("prompts") / "imagenet.safetensors"
    options = ["--root", str(root), "--backbone", f"local-dir:{small_backbone}", "--out", str(out)]
    assert main(["tune", "imagenet", *QUICK, "--set", "head=gda", *options]) == 0
    return out


@pytest.mark.parametrize(
    ("variant", "classes"),
    [("imagenet_v2", 5), ("imagenet_sketch", 5), ("imagenet_a", 3), ("imagenet_r", 3)],
)
def test_an_imagenet_prompt_is_measured_on_its_variants(
    sharpzo: Any, imagenet_prompt: Path, root: Path, variant: str, classes: int
) -> None:
    ran = sharpzo("evaluate", imagenet_prompt, variant, "--root", root, "--json")
    assert (ran.code, ran.err) == (0, "")
    answer = json.loads(ran.out)
    assert (answer["dataset"], answer["transferred"]) == (variant, False)
    assert answer["classifier"] == "tuned prompt with head gda"
    assert [sum(row) for row in answer["confusion_matrix"]] == [IMAGES["test"]] * classes
    assert len(answer["classes"]) == classes


def test_base_to_new_by_the_command_line(
    sharpzo: Any, root: Path, small_backbone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "base.safetensors"
    options = ["--root", root, "--backbone", f"local-dir:{small_backbone}", "--out", out, "--json"]
    ran = sharpzo("tune", "eurosat", "--classes", "base", *QUICK, *options)
    assert ran.code == 0
    tuned = json.loads(ran.out)
    evaluate = ["evaluate", out, "eurosat", "--root", root]
    base = json.loads(sharpzo(*evaluate, "--classes", "base", "--json").out)
    assert base["accuracy"] == pytest.approx(tuned["test_accuracy"])
    assert base["transferred"] is False
    new = json.loads(sharpzo(*evaluate, "--classes", "new", "--json").out)
    assert new["transferred"] is True
    assert new["classifier"] == "tuned prompt"
    assert not set(new["classes"]) & set(base["classes"])
    every = json.loads(sharpzo(*evaluate, "--classes", "all", "--json").out)
    assert every["classes"] == base["classes"] + new["classes"]
    refused = sharpzo(*evaluate)
    assert refused.code == 2
    assert "--classes all" in refused.error
    shown = sharpzo(*evaluate, "--classes", "new")
    assert f"test: {new['accuracy']:.1%} of 10 images" in shown.out
    assert "new to the prompt" in shown.out


def test_a_prompt_of_all_classes_may_tell_half_of_them_apart(
    sharpzo: Any, imagenet_prompt: Path, root: Path
) -> None:
    evaluate = ["evaluate", imagenet_prompt, "imagenet", "--root", root, "--json"]
    half = json.loads(sharpzo(*evaluate, "--classes", "new").out)
    assert half["classes"] == ["missile", "projectile"]
    assert half["transferred"] is False
    assert half["classifier"] == "tuned prompt with head gda"


def test_names_and_roots_are_explained(sharpzo: Any, tmp_path: Path, root: Path) -> None:
    ran = sharpzo("tune", "eurosat")
    assert ran.code == 2
    assert "--root" in ran.error
    ran = sharpzo("tune", "eurosat", "--root", tmp_path)
    assert ran.code == 2
    assert "https://github.com/phelber/EuroSAT" in ran.error
    ran = sharpzo("tune", "imagenet_a", "--root", root, *QUICK)
    assert ran.code == 2
    assert "only test images" in ran.err
