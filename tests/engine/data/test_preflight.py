"""The check before tuning: each finding alone, many at once, and what the report holds."""

import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sharpzo_engine.data.contact_sheet import THUMBNAIL, contact_sheet, thumbnail
from sharpzo_engine.data.diagnostics import CODES, Finding
from sharpzo_engine.data.layout_detection import Layout, detect_layout, read_layout
from sharpzo_engine.data.preflight import ImageFacts, Preflight, examine, inspect
from sharpzo_engine.errors import DatasetError, ImageError

FINE = [
    f"{s}/{c}/{i}.jpg" for s in ("train", "val", "test") for c in ("cat", "dog") for i in range(16)
]


def survey(paths: Iterable[str], texts: Mapping[str, str] | None = None) -> Layout:
    return detect_layout([*paths, *(texts or {})], lambda path: (texts or {})[path])


def facts(path: str, **changed: object) -> ImageFacts:
    values = {"sha256": path, "width": 64, "height": 64, "bytes": 1000, "format": "JPEG"}
    return ImageFacts(path, **{**values, **changed})  # type: ignore[arg-type]


def look(
    paths: Sequence[str], texts: Mapping[str, str] | None = None, **changed: object
) -> Preflight:
    """Inspect a dataset all of whose images are fine, but for those in `changed`."""
    layout = survey(paths, texts)
    known = {entry.path: facts(entry.path) for entry in layout.entries()}
    for path, values in changed.pop("images", {}).items():  # type: ignore[attr-defined]
        known[path] = facts(path, **values)
    return inspect(layout, known, **changed)  # type: ignore[arg-type]


def codes(found: Preflight) -> list[str]:
    return [item.code for item in found.findings]


def only(found: Preflight, code: str) -> Finding:
    assert codes(found) == [code]
    (item,) = found.findings
    assert item.severity == CODES[code][0]
    assert found.ok is (item.severity == "warning")
    assert item.fix
    return item


def test_a_dataset_without_faults_has_no_findings() -> None:
    found = look(FINE)
    assert (found.findings, found.ok, found.images, found.examined) == ((), True, 96, 96)
    assert found.counts["val"] == {"cat": 16, "dog": 16}


def split_file(rows: Mapping[str, Sequence[Sequence[object]]]) -> dict[str, str]:
    return {"split_zhou_X.json": json.dumps({"val": [], "test": [], **rows})}


def test_each_layout_error_has_its_code() -> None:
    assert only(look(["readme.txt"]), "no_images").count == 1
    assert only(look(["1.jpg", "2.jpg"]), "images_at_root").count == 2
    assert only(look([f for f in FINE if "cat" in f]), "one_class").count == 1


def test_a_folder_of_notes_is_no_class_beside_class_folders() -> None:
    folders = [f.removeprefix("train/") for f in FINE if f.startswith("train/")]
    layout = survey([*folders, "annotations/cat.xml", "annotations/"])
    assert layout.class_names == ("cat", "dog")
    assert survey([*folders, "bird/"]).class_names == ("bird", "cat", "dog")
    assert survey([*folders, "bird/x.gif", "bird/"]).class_names == ("bird", "cat", "dog")


def test_files_that_are_not_text_are_findings() -> None:
    def not_text(path: str) -> str:
        raise DatasetError(f"{path} is not UTF-8 (save it as UTF-8)")

    for name in ("classnames.json", "split_zhou_X.json"):
        found = detect_layout([*FINE, name], not_text).findings
        assert f"{name} is not UTF-8" in [item.message for item in found]


@pytest.mark.parametrize("empty", ["train/bird/notes.txt", "train/bird/"])
def test_a_class_folder_without_images_is_an_error(empty: str) -> None:
    assert only(look([*FINE, empty]), "empty_class").examples == ("'bird'",)


def test_test_images_alone_are_nothing_to_train_on() -> None:
    found = look(["test/cat/1.jpg", "test/dog/1.jpg"])
    assert only(found, "no_training_images").count == 1
    assert found.counts["test"] == {"cat": 1, "dog": 1}


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("bird", "'bird'"),
        ("Cat", "'Cat' where train/ has 'cat'"),
        ("cat ", "'cat ' where train/ has 'cat'"),
        ("c-at", "'c-at' where train/ has 'cat'"),
    ],
)
def test_a_label_that_train_lacks_is_shown_beside_what_was_meant(name: str, shown: str) -> None:
    found = look([*FINE, f"test/{name}/x.jpg"])
    item = only(found, "label_mismatch")
    assert item.examples == (shown,)
    assert found.counts["test"] == {"cat": 16, "dog": 16}


def test_unicode_forms_that_look_the_same_are_told_apart() -> None:
    paths = [f.replace("cat", "caf\u00e9") for f in FINE]
    item = only(look([*paths, "val/cafe\u0301/x.jpg"]), "label_mismatch")
    assert item.examples == ("'cafe\\u0301' where train/ has 'caf\\xe9'",)


@pytest.mark.parametrize("twin", ["CAT", "cat ", "c\u0430t"])
def test_names_that_clip_reads_as_one_are_an_error(twin: str) -> None:
    found = look([*FINE, *(f.replace("cat", twin) for f in FINE if "cat" in f)])
    latin = twin != "c\u0430t"  # a Cyrillic a is another letter to the tokenizer too
    assert ("class_names_alike" in codes(found)) or (
        "duplicate_class_name" in codes(found)
    ) is latin


def test_names_are_judged() -> None:
    renamed = {"classnames.json": json.dumps({"cat": "dog"})}
    assert "2 classes are called 'dog'" in only(look(FINE, renamed), "duplicate_class_name").message
    renamed = {"classnames.json": json.dumps({"cat": "  "})}
    assert "empty" in only(look(FINE, renamed), "class_name_invalid").message
    renamed = {"classnames.json": json.dumps({"cat": "a\nb"})}
    assert only(look(FINE, renamed), "class_name_invalid").examples == ("'a\\nb'",)
    renamed = {"classnames.json": json.dumps({"bird": "parrot"})}
    assert only(look(FINE, renamed), "classnames_unused").examples == ("'bird'",)
    assert only(look(FINE, {"classnames.json": "["}), "metadata_invalid").fix == "fix the file"


def test_tokens_are_counted_where_somebody_can() -> None:
    def count(name: str) -> int:
        return {"cat": 0, "dog": 71}[name]

    found = look(FINE, count_tokens=count)
    assert codes(found) == ["class_name_without_tokens", "class_name_too_long"]
    assert found.findings[1].examples == ("'dog' (71 tokens)",)


def test_more_classes_than_can_be_served_are_an_error() -> None:
    paths = [f"train/c{i}/1.jpg" for i in range(10_001)]
    assert "too_many_classes" in codes(look(paths))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"train": [["a.jpg", 0, "x"], ["b.jpg", 2, "y"]]}, "without gaps"),
        ({"train": [["a.jpg", 0, "x"], ["b.jpg", 0, "y"]]}, "label 0 both 'x' and 'y'"),
        ({"train": [["a.jpg", True, "x"]]}, "must contain train, val and test"),
        ({"train": [["a.jpg", 0]]}, "must contain train, val and test"),
    ],
)
def test_a_split_file_that_contradicts_itself_is_an_error(
    rows: dict[str, list[list[object]]], message: str
) -> None:
    found = look(["a.jpg", "b.jpg"], split_file(rows))
    assert found.errors[0].code == "split_file_invalid"
    assert message in found.errors[0].message


def test_images_that_a_split_file_lists_must_be_there() -> None:
    rows = {"train": [["gone.jpg", 0, "x"], ["a.jpg", 0, "x"], ["b.jpg", 1, "y"]]}
    found = look(["images/a.jpg", "images/b.jpg"], split_file(rows))
    assert found.errors[0].code == "split_file_images_missing"
    assert found.errors[0].count == 1
    assert found.counts["train"] == {"x": 1, "y": 1}
    nowhere = look(["images/c.jpg"], split_file(rows))
    assert "not in any folder" in nowhere.errors[0].message


def test_of_several_split_files_the_first_is_read() -> None:
    rows = [[f"{c}{i}.jpg", c, f"class {c}"] for c in range(2) for i in range(16)]
    texts = split_file({"train": rows, "val": rows, "test": rows})
    texts["split_zhou_Y.json"] = "{}"
    found = look([str(row[0]) for row in rows], texts)
    assert "several_split_files" in codes(found)
    assert found.ok


def test_shots_decide_whether_few_images_are_an_error() -> None:
    few = [f for f in FINE if f != "train/cat/0.jpg"]
    assert only(look(few), "few_images").examples == ("'cat' has 15",)
    assert look(few, shots=15).findings == ()
    item = only(look(few, shots=16), "too_few_images")
    assert "lower shots to 15" in item.fix


def test_classes_and_splits_are_weighed() -> None:
    many = [f"train/cat/more{i}.jpg" for i in range(150)]
    assert "'cat' has 166" in only(look([*FINE, *many]), "unbalanced_classes").examples[0]
    assert only(look([f for f in FINE if "val/" not in f]), "no_val_split").count == 1
    assert only(look([f for f in FINE if "test/" not in f]), "no_test_split").count == 1
    lacking = [f for f in FINE if not f.startswith("test/dog")]
    assert only(look(lacking), "class_missing_in_split").message == "classes have no test images"


def test_files_that_are_left_out_are_told() -> None:
    assert only(look([*FINE, "train/x.jpg", "y.jpg"]), "images_left_out").count == 2
    found = look([*FINE, "train/cat/x.GIF", "train/cat/notes.txt"])
    assert only(found, "unsupported_images").examples == ("train/cat/x.GIF",)
    assert found.skipped == 2
    litter = ["__MACOSX/train/cat/._1.jpg", "train/cat/.DS_Store", "train/Thumbs.db"]
    found = look([*FINE, *litter])
    assert (found.findings, found.skipped) == ((), 3)


def test_images_are_judged() -> None:
    torn = ImageError("the image is damaged or incomplete (save it again)")
    found = look(FINE, images={"val/cat/3.jpg": {"error": torn, "width": 0, "height": 0}})
    item = only(found, "image_unreadable")
    assert item.examples == ("val/cat/3.jpg: the image is damaged or incomplete",)
    assert found.as_json()["unreadable"] == {
        "total": 1,
        "listed": [{"file": "val/cat/3.jpg", "code": "image_undecodable", "reason": str(torn)}],
    }
    item = only(look(FINE, images={"val/cat/3.jpg": {"width": 31}}), "tiny_images")
    assert item.examples == ("val/cat/3.jpg (31 x 64)",)


def test_equal_images_are_told_by_where_they_are() -> None:
    def twins(a: str, b: str) -> list[str]:
        return codes(look(FINE, images={a: {"sha256": "same"}, b: {"sha256": "same"}}))

    assert twins("train/cat/1.jpg", "test/cat/1.jpg") == ["duplicates_across_splits"]
    assert twins("train/cat/1.jpg", "train/cat/2.jpg") == ["duplicates_within_split"]
    assert twins("train/cat/1.jpg", "train/dog/1.jpg") == [
        "duplicates_within_split",
        "duplicates_across_classes",
    ]
    assert twins("train/cat/1.jpg", "val/dog/1.jpg") == [
        "duplicates_across_splits",
        "duplicates_across_classes",
    ]


def test_a_file_that_a_list_has_twice_is_found_without_looking_at_it() -> None:
    rows = [[f"{c}{i}.jpg", c, f"class {c}"] for c in range(2) for i in range(16)]
    texts = split_file({"train": rows, "val": rows[:1], "test": rows[1:2]})
    found = inspect(survey([str(row[0]) for row in rows], texts), {})
    leak = next(item for item in found.findings if item.code == "duplicates_across_splits")
    assert (leak.count, leak.examples) == (2, ("00.jpg", "01.jpg"))


def test_all_problems_are_told_at_once() -> None:
    paths = [*(f for f in FINE if "val/" not in f), "train/CAT/1.jpg", "test/Dog/1.jpg"]
    paths += ["train/bird/", "loose.jpg", "train/cat/x.gif"]
    found = look(
        paths,
        {"classnames.json": '{"bird": "dog"}'},
        images={"train/cat/1.jpg": {"error": ImageError()}, "train/cat/2.jpg": {"width": 1}},
        shots=16,
    )
    assert codes(found) == [
        "label_mismatch",
        "duplicate_class_name",
        "class_names_alike",
        "empty_class",
        "image_unreadable",
        "too_few_images",
        "images_left_out",
        "unsupported_images",
        "unbalanced_classes",
        "no_val_split",
        "class_missing_in_split",
        "tiny_images",
    ]
    with pytest.raises(DatasetError) as caught:
        read_layout([*paths, "classnames.json"], lambda _: '{"bird": "dog"}')
    for part in ("'Dog'", "2 classes are called 'dog'", "'CAT' and 'cat'", "'dog'"):
        assert part in str(caught.value)


names = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=12)
paths = st.lists(
    st.tuples(
        st.sampled_from(["", "train", "val", "test", "Valid", "extra"]),
        names,
        st.sampled_from(["1.jpg", "2.PNG", "3.gif", "notes.txt", ".DS_Store", ""]),
    ).map(lambda parts: "/".join(part for part in parts if part) + ("" if parts[2] else "/")),
    max_size=12,
    unique=True,
)


@given(paths)
def test_any_list_of_files_gives_a_report(listed: list[str]) -> None:
    layout = survey(listed)
    found = inspect(layout, {e.path: facts(e.path) for e in layout.entries()})
    assert json.loads(json.dumps(found.as_json())) == found.as_json()
    assert all(entry.path in listed for entry in layout.entries())
    assert all(item.severity == CODES[item.code][0] for item in found.findings)
    assert layout.skipped <= sum(not path.endswith("/") for path in listed)
    if found.ok:
        assert read_layout(listed, str) == layout
    else:
        assert "\n" not in str(found.errors[0])


def test_the_report_is_cut_but_counts_all() -> None:
    rows = [f"train/{c:05}/{i}.jpg" for c in range(1200) for i in range(2)]
    report = look(rows).as_json()
    assert (report["classes"]["total"], len(report["classes"]["listed"])) == (1200, 1000)
    (few,) = (item for item in report["findings"] if item["code"] == "few_images")
    assert (few["count"], len(few["examples"])) == (1200, 5)
    assert report["splits"] == {"train": 2400, "val": 0, "test": 0}
    assert report["sizes"]["width"] == {"min": 64, "median": 64, "max": 64}
    assert report["classes"]["listed"][0] == {"name": "00000", "train": 2, "val": 0, "test": 0}


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_image_is_examined_from_its_bytes(kind: str) -> None:
    data = encoded(Image.new("RGB", (50, 40), "red"), kind)
    known, image = examine("a.jpg", data)  # the content tells the format, not the name
    assert (known.width, known.height, known.bytes, known.format) == (50, 40, len(data), kind)
    assert image is not None
    assert image.size == (50, 40)
    broken, nothing = examine("a.jpg", data[:30])
    assert nothing is None
    assert broken.error is not None
    assert broken.sha256 != known.sha256


# --- the contact sheet


@pytest.fixture
def tile() -> Callable[[str], Image.Image]:
    return lambda colour: thumbnail(Image.new("RGB", (300, 150), colour))


def test_thumbnails_keep_their_aspect(tile: Callable[[str], Image.Image]) -> None:
    assert tile("red").size == (THUMBNAIL, THUMBNAIL // 2)


def colours_of(sheet: Image.Image) -> set[tuple[int, ...]]:
    return {colour for _, colour in sheet.getcolors(sheet.width * sheet.height) or []}  # type: ignore[misc]


def test_a_sheet_shows_a_few_images_of_each_class(tile: Callable[[str], Image.Image]) -> None:
    shown = {"cat": [tile("#ff0000")] * 3, "dog": [tile("#00ff00")], "bird": []}
    sheet = contact_sheet(shown, per_class=2)
    assert sheet.mode == "RGB"
    counts = {c: n for n, c in sheet.getcolors(sheet.width * sheet.height) or []}
    area = THUMBNAIL * (THUMBNAIL // 2)
    assert (counts[255, 0, 0], counts[0, 255, 0]) == (2 * area, area)
    assert min(sheet.getpixel((0, 0))) > 240  # type: ignore[arg-type]


def test_a_sheet_says_how_many_classes_it_leaves_out(tile: Callable[[str], Image.Image]) -> None:
    many = {f"class {i}": [tile("red")] for i in range(70)}
    all_of_them = contact_sheet(many, max_classes=70)
    cut = contact_sheet(many, max_classes=3)
    assert cut.height < all_of_them.height / 10
    just_three = contact_sheet(dict(list(many.items())[:3]))
    assert cut.height > just_three.height  # the line that says so
    assert contact_sheet({}).size > (0, 0)


@pytest.mark.parametrize(
    "name",
    ["", "a\nb\nc", "\u202egnp.exe", "\0\x1b[31m", "\ud800", "x" * 10_000, "猫", "\U0001f408" * 40],
)
def test_hostile_names_stay_in_their_place(name: str, tile: Callable[[str], Image.Image]) -> None:
    plain = contact_sheet({"cat": [tile("red")]})
    sheet = contact_sheet({name: [tile("red")]})
    assert sheet.size == plain.size
    # The name may change what is left of the images, and nothing else.
    box = (plain.width - 6 * (THUMBNAIL + 6) - 16, 0, plain.width, plain.height)
    assert sheet.crop(box).tobytes() == plain.crop(box).tobytes()
