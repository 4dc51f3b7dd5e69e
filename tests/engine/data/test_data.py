"""Dataset forms, few-shot sampling and image decoding."""

import io
import json
import random
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from sharpzo_engine.config import TuningConfig
from sharpzo_engine.data.dataset import Dataset, Example, few_shot, load_dataset
from sharpzo_engine.data.folders import list_files, list_folder
from sharpzo_engine.data.images import decode_image
from sharpzo_engine.data.layout_detection import Layout, read_layout
from sharpzo_engine.errors import DatasetError, ImageError, TooFewImages
from sharpzo_engine.tuner import split_validation

SPLIT_FOLDERS = ["train/cat/1.jpg", "train/dog/2.png", "val/cat/3.webp", "test/dog/4.JPEG"]


def layout_of(paths: Sequence[str], texts: dict[str, str] | None = None, seed: int = 1) -> Layout:
    return read_layout([*paths, *(texts or {})], lambda path: (texts or {})[path], seed)


@pytest.mark.parametrize("top", ["", "photos/"])
def test_split_folders_with_or_without_a_top_folder(top: str) -> None:
    layout = layout_of([top + path for path in SPLIT_FOLDERS])
    assert layout.class_names == ("cat", "dog")
    assert [(e.path, e.label) for e in layout.splits["train"]] == [
        (f"{top}train/cat/1.jpg", 0),
        (f"{top}train/dog/2.png", 1),
    ]
    assert [e.label for e in layout.splits["test"]] == [1]


def test_valid_is_another_word_for_val() -> None:
    layout = layout_of(["train/a/1.jpg", "train/b/1.jpg", "valid/a/2.jpg"])
    assert len(layout.splits["val"]) == 1


@pytest.mark.parametrize("top", ["", "photos/"])
def test_class_folders_alone_are_split_by_seed_and_class(top: str) -> None:
    paths = [f"{top}{c}/{i}.jpg" for c in ("cat", "dog") for i in range(10)]
    layout = layout_of(paths)
    assert {s: [e.label for e in entries] for s, entries in layout.splits.items()} == {
        "train": [0] * 6 + [1] * 6,
        "val": [0] * 2 + [1] * 2,
        "test": [0] * 2 + [1] * 2,
    }
    entries = [entry.path for split in layout.splits.values() for entry in split]
    assert sorted(entries) == sorted(paths)
    assert layout_of(paths) == layout
    assert layout_of(paths, seed=2) != layout


def test_display_names_come_from_classnames_json() -> None:
    layout = layout_of(SPLIT_FOLDERS, {"classnames.json": json.dumps({"cat": "house_cat"})})
    assert layout.class_names == ("house cat", "dog")


def test_coop_split_files_are_read() -> None:
    rows = {
        "train": [["a/1.jpg", 0, "tabby_cat"], ["b/1.jpg", 1, "dog"]],
        "val": [],
        "test": [["a/2.jpg", 0, "tabby_cat"]],
    }
    images = ["root/images/a/1.jpg", "root/images/b/1.jpg", "root/images/a/2.jpg"]
    layout = layout_of(images, {"root/split_zhou_Pets.json": json.dumps(rows)})
    assert layout.class_names == ("tabby cat", "dog")
    assert layout.splits["test"][0].path == "root/images/a/2.jpg"


def test_litter_and_other_files_are_skipped_and_counted() -> None:
    litter = ["__MACOSX/train/cat/._1.jpg", "train/cat/.DS_Store", "train/Thumbs.db"]
    assert layout_of([*SPLIT_FOLDERS, *litter, "train/readme.txt"]).skipped == 4


@pytest.mark.parametrize(
    ("paths", "texts", "message"),
    [
        ([], {}, "no training images"),
        (["1.jpg", "2.jpg"], {}, "no training images"),
        (["cat/1.jpg", "cat/2.jpg", "cat/3.jpg"], {}, "only one class"),
        (["train/cat/1.jpg", "test/dog/1.jpg", "train/x/1.jpg"], {}, "train/ does not have: 'dog'"),
        (["train/Cat/1.jpg", "train/x/1.jpg", "test/cat/1.jpg"], {}, "including letter case"),
        (SPLIT_FOLDERS, {"classnames.json": "[1]"}, "must map folder names"),
        (SPLIT_FOLDERS, {"classnames.json": "{"}, "not valid JSON"),
        (SPLIT_FOLDERS, {"classnames.json": '{"cat": "dog"}'}, "2 classes are called 'dog'"),
        (SPLIT_FOLDERS, {"classnames.json": '{"cat": " "}'}, "empty name"),
        (["a/1.jpg"], {"split_zhou_X.json": "{}"}, "must contain train, val and test"),
        (
            ["a/1.jpg"],
            {"split_zhou_X.json": '{"train": [["b/9.jpg", 0, "x"]], "val": [], "test": []}'},
            "not in any folder",
        ),
    ],
)
def test_faults_are_named(paths: list[str], texts: dict[str, str], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        layout_of(paths, texts)


def test_a_folder_is_loaded(pictures: Path) -> None:
    dataset = load_dataset(pictures, shots=4)
    assert dataset.class_names == ("deep blue", "green", "red")
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (12, 6, 9)
    assert dataset.shots == 4


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="neither a folder"):
        load_dataset(tmp_path / "nothing")


def test_folders_are_listed_through_links_and_once(tmp_path: Path) -> None:
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for path in ("photos/cat/1.jpg", "elsewhere/2.jpg"):
        (tmp_path / path).touch()
    (tmp_path / "photos" / "dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "cat" / "back").symlink_to(tmp_path / "photos")
    found = list_folder(tmp_path / "photos")
    assert sorted(found) == ["cat/", "cat/1.jpg", "cat/back/", "dog/", "dog/2.jpg"]
    assert sorted(list_files(tmp_path / "photos")) == ["cat/1.jpg", "dog/2.jpg"]
    with pytest.raises(DatasetError, match="nowhere cannot be listed"):
        list_files(tmp_path / "nowhere")


def make_dataset(counts: Sequence[int], val: int = 0) -> Dataset:
    train = [Example(Path(f"{c}-{i}.jpg"), c) for c, n in enumerate(counts) for i in range(n)]
    val_examples = [Example(Path(f"v{c}-{i}"), c) for c in range(len(counts)) for i in range(val)]
    names = tuple(f"class {c}" for c in range(len(counts)))
    return Dataset("made", names, tuple(train), tuple(val_examples))


def test_few_shot_draws_the_subset_that_coop_draws() -> None:
    """CoOp: random.seed(seed), then random.sample per label in order of first appearance."""
    dataset = make_dataset([20, 30, 25])
    random.seed(3)
    expected = []
    for label in range(3):
        expected += random.sample([e for e in dataset.train if e.label == label], 16)
    assert list(few_shot(dataset, 16, seed=3).train) == expected


def test_too_few_images_are_refused_with_the_mend() -> None:
    with pytest.raises(TooFewImages, match=r"'class 1' has 3 .*lower shots to 3"):
        few_shot(make_dataset([5, 3, 9]), 4, seed=1)


def test_validation_is_held_out_of_the_shots() -> None:
    config = TuningConfig(shots=16)
    train, validation, source = split_validation(make_dataset([20, 20]), config)
    assert (len(train), len(validation), source) == (24, 8, "holdout")
    assert not set(train) & set(validation)


def test_an_official_split_is_used_up_to_as_many_as_shots() -> None:
    dataset = make_dataset([20, 20], val=30)
    train, validation, source = split_validation(dataset, TuningConfig(shots=16))
    assert (len(train), len(validation), source) == (32, 32, "official")
    assert split_validation(dataset, TuningConfig(validation="holdout"))[2] == "holdout"


def test_one_shot_leaves_nothing_to_hold_out() -> None:
    train, validation, source = split_validation(make_dataset([5, 5]), TuningConfig(shots=1))
    assert (train, source) == (validation, "training")


def test_official_validation_needs_a_split() -> None:
    with pytest.raises(DatasetError, match="no val split"):
        split_validation(make_dataset([20, 20]), TuningConfig(validation="official"))


# --- images


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_three_formats_decode_to_rgb(kind: str, mode: str) -> None:
    image = decode_image(encoded(Image.new(mode, (5, 4)), kind))
    assert (image.mode, image.size) == ("RGB", (5, 4))


@pytest.mark.parametrize(
    ("image", "colour"),
    [
        (Image.new("RGBA", (2, 2), (255, 0, 0, 0)), (255, 255, 255)),
        (Image.new("I;16", (2, 2), 0x8000), (128, 128, 128)),
        (Image.new("P", (2, 2), 0), (0, 0, 0)),
        (Image.new("1", (2, 2), 1), (255, 255, 255)),
    ],
)
def test_unusual_modes_keep_the_picture(image: Image.Image, colour: tuple[int, ...]) -> None:
    assert decode_image(encoded(image, "PNG")).getpixel((0, 0)) == colour


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    data = encoded(Image.new("RGB", (8, 4)), "JPEG", exif=exif)
    assert decode_image(data).size == (4, 8)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    ("tag", "of_other_type"),
    [
        (b"\x01\x0e\x00\x02", b"\x01\x1c\x00\x02"),  # text in the place of a number
        (b"\x01\x1a\x00\x05", b"\x01\x1a\x00\x02"),  # text in the place of a fraction
    ],
)
def test_exif_of_another_type_is_a_fault_of_the_image(
    kind: str, tag: bytes, of_other_type: bytes
) -> None:
    exif = Image.Exif()
    exif.endian = ">"
    exif[0x0112], exif[0x010E], exif[0x011A] = 6, "a description", 72.5
    original = exif.tobytes()
    assert tag in original
    exif_bytes = original.replace(tag, of_other_type)
    data = encoded(Image.new("RGB", (8, 4)), kind, exif=exif_bytes)
    with pytest.raises(ImageError) as caught:
        decode_image(data)
    assert caught.value.code == "image_undecodable"


def parts_of_an_image(kind: str) -> bytes:
    """An image in a file of so many parts that to read it takes long."""
    if kind == "scans":
        image = Image.effect_noise((64, 64), 50)
        data = encoded(image, "JPEG", progressive=True)
        last = data.rindex(b"\xff\xda")
        return data[:-2] + 100 * data[last:-2] + data[-2:]
    if kind == "segments":
        data = encoded(Image.new("RGB", (8, 8)), "JPEG")
        return data[:2] + 300_000 * b"\xff\xfe\x00\x02" + data[2:]
    data = encoded(Image.new("RGB", (8, 8)), "PNG")
    return (
        data[:33]
        + 300_000 * (b"\x00\x00\x00\x00teSt" + zlib.crc32(b"teSt").to_bytes(4, "big"))
        + data[33:]
    )


@pytest.mark.parametrize("kind", ["scans", "segments", "chunks"])
def test_files_of_too_many_parts_are_refused(kind: str) -> None:
    data = parts_of_an_image(kind)
    with pytest.raises(ImageError, match="too many parts") as caught:
        decode_image(data)
    assert caught.value.code == "image_undecodable"


def test_what_only_looks_like_scans_counts_for_nothing() -> None:
    data = encoded(Image.new("RGB", (8, 4)), "JPEG", progressive=True)
    film = 1000 * b"\xff\xda\x00\x0c"
    own = b"\xff\xe5" + (len(film) + 2).to_bytes(2, "big") + film
    assert decode_image(data[:2] + own + data[2:] + film).size == (8, 4)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "image_undecodable"),
        (b"not an image", "image_format_not_allowed"),
        (encoded(Image.new("RGB", (64, 64)), "PNG")[:-40], "image_undecodable"),
        (encoded(Image.new("RGB", (64, 64)), "JPEG")[:300], "image_undecodable"),
        (encoded(Image.new("RGB", (4, 4)), "TIFF"), "image_format_not_allowed"),
        (encoded(Image.new("RGB", (4, 4)), "EPS"), "image_format_not_allowed"),
        (encoded(Image.new("1", (2000, 2000)), "PNG"), "image_too_large"),
    ],
)
def test_bad_images_have_a_code(data: bytes, code: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode_image(data, max_pixels=1_000_000)
    assert caught.value.code == code
