"""Datasets by name: every layout in small, what is missing of them, sampling as CoOp does it."""

import json
import math
import random
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from open_clip import IMAGENET_CLASSNAMES

from sharpzo_engine import PromptClassifier, TuningConfig, load_dataset, tune
from sharpzo_engine.clip.torch.backbone import Backbone
from sharpzo_engine.config import PRESETS
from sharpzo_engine.data.catalogue import CATALOGUE, KnownDataset, find
from sharpzo_engine.data.catalogue_readers import read_known, split_known
from sharpzo_engine.data.class_names import check_names
from sharpzo_engine.data.dataset import Dataset, Example, few_shot, select_classes
from sharpzo_engine.data.layout import SPLITS, Form, Part, labels_of
from sharpzo_engine.data.preflight import examine, inspect
from sharpzo_engine.data.sources import ROOT_VARIABLE, open_source, open_unsplit
from sharpzo_engine.data.split_file import (
    Row,
    SplitFile,
    read_split_file,
    write_split_file,
)
from sharpzo_engine.errors import DatasetError, TooFewImages
from tests.miniatures import (
    IMAGES,
    OF_200,
    SYNSETS,
    VARIANT_NAMES,
    class_folders,
    make_all,
    make_miniature,
    rows_of,
)

KEYS = [known.key for known in CATALOGUE]
TRAINED = [known.key for known in CATALOGUE if known.sizes[0]]
TESTED_ONLY = [known.key for known in CATALOGUE if not known.sizes[0]]
QUICK = {
    "shots": 4,
    "total_steps": 2,
    "change_point": 1,
    "head": "none",
    "prompt": {"intrinsic_dim": 4},
    "cma": {"population_size": 4},
}


def entry(key: str) -> KnownDataset:
    known = find(key)
    assert known is not None
    return known


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_all(tmp_path_factory.mktemp("datasets"))


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """A root for datasets that are damaged by a test."""
    return tmp_path


# --- the table


def test_the_paper_has_a_preset_for_each_dataset_that_is_trained_on() -> None:
    assert set(TRAINED) == PRESETS.keys() - {"default", "fast", "paper", "reference"}


def test_names_folders_and_files_are_unique() -> None:
    for field in ("key", "title", "folder", "url"):
        assert len({getattr(known, field) for known in CATALOGUE}) == len(CATALOGUE) == 15
    with_files = [known.split_file for known in CATALOGUE if known.form is Form.SPLIT_FILE]
    assert len(set(with_files)) == len(with_files) == 9
    assert all(known.template.count("{}") == 1 for known in CATALOGUE)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("eurosat", "eurosat"),
        ("EuroSAT", "eurosat"),
        ("Oxford-Pets", "oxford_pets"),
        ("caltech-101", "caltech101"),
        ("FGVCAircraft", "fgvc"),
        ("fgvc_aircraft", "fgvc"),
        ("DescribableTextures", "dtd"),
        ("ImageNet V2", "imagenet_v2"),
        ("imagenet-rendition", "imagenet_r"),
        ("photos", None),
        ("", None),
    ],
)
def test_a_dataset_is_found_by_each_of_its_names(name: str, key: str | None) -> None:
    known = find(name)
    assert (known and known.key) == key


# --- every layout


def expected_names(known: KnownDataset) -> list[str]:
    if known.form is Form.SPLIT_FILE:
        return [known.renamed.get(f, f).replace("_", " ") for f in class_folders(known)]
    if known.form is Form.LISTS:
        return list(VARIANT_NAMES)
    synsets = OF_200 if known.classes == 200 else tuple(SYNSETS)
    return [{"n04008634": "projectile"}.get(s, SYNSETS[s]).replace("_", " ") for s in synsets]


@pytest.mark.parametrize("key", KEYS)
def test_every_dataset_is_loaded_by_its_name(root: Path, key: str) -> None:
    known, dataset = entry(key), load_dataset(key, root=root)
    assert (dataset.name, list(dataset.class_names)) == (key, expected_names(known))
    classes = len(dataset.class_names)
    sizes = [len(dataset.split(split)) for split in SPLITS]
    present = [bool(size) for size in known.sizes]
    assert sizes == [IMAGES[s] * classes * there for s, there in zip(SPLITS, present, strict=True)]
    assert all(e.path.is_file() for split in SPLITS for e in dataset.split(split))
    assert dataset.test_only is (key in TESTED_ONLY)


@pytest.mark.parametrize("key", KEYS)
def test_every_dataset_is_checked(root: Path, key: str) -> None:
    source = open_source(key, root)
    paths = [e.path for e in source.layout.entries()]
    facts = {path: examine(path, (source.folder / path).read_bytes())[0] for path in paths}
    found = inspect(source.layout, facts)
    assert found.ok
    assert found.examined == found.images == len(paths)
    expected = {"unlike_published"}
    if key in TRAINED:
        expected.add("few_images")
    if key == "imagenet":
        expected.add("no_val_split")
    assert {item.code for item in found.findings} == expected


@pytest.mark.parametrize("key", TRAINED)
def test_every_dataset_is_tuned_on(root: Path, key: str, clip: Backbone) -> None:
    dataset = load_dataset(key, root=root)
    result = tune(dataset, clip, TuningConfig.parse(QUICK))
    assert result.prompt.class_names == dataset.class_names
    assert result.prompt.metadata["dataset"]["name"] == key
    assert result.metrics["test_images"] == len(dataset.test)
    assert 0 <= (result.metrics["test_accuracy"] or 0) <= 1


@pytest.mark.parametrize("key", TESTED_ONLY)
def test_the_variants_are_classified_among_their_own_classes(
    root: Path, key: str, clip: Backbone
) -> None:
    result = tune(load_dataset("imagenet", root=root), clip, TuningConfig.parse(QUICK))
    dataset = load_dataset(key, root=root)
    part = result.prompt.among(dataset.class_names)
    images = [example.path for example in dataset.test]
    embeddings = PromptClassifier(result.prompt, clip).embed(images)
    whole = PromptClassifier(result.prompt, clip).logits(embeddings)
    rows = [result.prompt.class_names.index(name) for name in dataset.class_names]
    logits = PromptClassifier(part, clip).logits(embeddings)
    assert logits.shape == (len(images), len(rows))
    np.testing.assert_allclose(logits, whole[:, rows], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("key", TESTED_ONLY)
def test_nothing_can_be_tuned_on_test_images(root: Path, key: str, clip: Backbone) -> None:
    with pytest.raises(DatasetError, match="only test images"):
        tune(load_dataset(key, root=root), clip, TuningConfig.parse(QUICK))


def test_numbers_of_imagenet_v2_are_places_in_the_list(root: Path) -> None:
    dataset = load_dataset("imagenet_v2", root=root)
    example = dataset.test[-1]
    assert example.path.parent.name == "4"
    assert dataset.class_names[example.label] == "projectile"


def test_a_variant_may_bring_its_own_list(root: Path, alone: Path) -> None:
    folder = make_miniature(entry("imagenet_sketch"), alone)
    shutil.copy(root / "imagenet" / "classnames.txt", folder)
    assert load_dataset("imagenet_sketch", root=alone).class_names[0] == "tench"


def test_published_sizes_raise_no_doubt(root: Path) -> None:
    known = entry("eurosat")
    layout = read_known(known, root)
    (found,) = (item for item in layout.findings if item.code == "unlike_published")
    assert "13,500 / 5,400 / 8,100" in found.message
    assert "40 / 20 / 20" in found.message


def test_clips_names_of_imagenet_differ_once_two_are_renamed() -> None:
    """CLIP's list of names is open_clip's too; its places are those of the sorted synsets."""
    names = list(IMAGENET_CLASSNAMES)
    twice = {
        n: [i for i, m in enumerate(names) if m == n] for n, c in Counter(names).items() if c > 1
    }
    assert twice == {"missile": [657, 744], "sunglasses": [836, 837]}
    names[744], names[836] = entry("imagenet").renamed.values()
    assert list(check_names(names)) == []


# --- where they are looked for


def test_the_root_may_come_from_the_environment(
    root: Path, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DatasetError, match=ROOT_VARIABLE):
        load_dataset("dtd")
    monkeypatch.setenv(ROOT_VARIABLE, str(root))
    assert load_dataset("dtd").name == "dtd"
    monkeypatch.setenv(ROOT_VARIABLE, str(alone))
    assert load_dataset("dtd", root=root).name == "dtd"


def test_a_folder_of_that_name_wins_unless_there_is_a_root(
    root: Path, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in ("dtd/cat/1.jpg", "dtd/dog/1.jpg"):
        (alone / path).parent.mkdir(parents=True, exist_ok=True)
        (alone / path).touch()
    monkeypatch.chdir(alone)
    monkeypatch.setenv(ROOT_VARIABLE, str(root))
    assert open_source("dtd").layout.class_names == ("cat", "dog")
    assert open_source("dtd", root).layout.class_names[0] == "red fox"


def test_a_name_that_nobody_knows_is_answered_with_those_that_are_known(root: Path) -> None:
    with pytest.raises(DatasetError, match=r"neither a folder.*caltech101"):
        load_dataset("calltech")
    with pytest.raises(DatasetError, match=r"not the name of a known dataset.*eurosat"):
        load_dataset("calltech", root=root)


def removals(known: KnownDataset) -> list[str]:
    """What a dataset cannot do without, below its folder."""
    needed = {
        Form.SPLIT_FILE: [known.split_file],
        Form.LISTS: ["variants.txt", *(f"images_variant_{split}.txt" for split in SPLITS)],
        Form.SPLIT_FOLDERS: ["classnames.txt", "images/train", "images/val"],
        Form.TEST_FOLDERS: [],
    }[known.form]
    return ["", *needed, *([known.images] if known.images and known.key != "imagenet" else [])]


@pytest.mark.parametrize(
    ("key", "missing"), [(known.key, part) for known in CATALOGUE for part in removals(known)]
)
def test_what_is_missing_is_named_with_where_to_get_it(alone: Path, key: str, missing: str) -> None:
    known = entry(key)
    place = make_miniature(known, alone) / missing
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    with pytest.raises(DatasetError) as caught:
        load_dataset(key, root=alone)
    message = str(caught.value)
    assert str(place).rstrip("/") in message
    assert "does not exist" in message
    assert known.url in message or "github.com/KaiyangZhou/CoOp" in message
    assert known.title in message


def test_a_variant_needs_imagenets_list(alone: Path) -> None:
    make_miniature(entry("imagenet_a"), alone)
    with pytest.raises(DatasetError, match=r"classnames\.txt does not exist"):
        load_dataset("imagenet_a", root=alone)


def test_folders_that_the_list_does_not_name_are_an_error(alone: Path) -> None:
    make_miniature(entry("imagenet"), alone)
    folder = make_miniature(entry("imagenet_r"), alone)
    (folder / "imagenet-r" / "README.txt").touch()  # as the original has one
    assert load_dataset("imagenet_r", root=alone).class_names
    shutil.copytree(folder / "imagenet-r" / OF_200[0], folder / "imagenet-r" / "n99999999")
    with pytest.raises(DatasetError, match="'n99999999'"):
        load_dataset("imagenet_r", root=alone)
    shutil.copytree(
        alone / "imagenet/images/train" / OF_200[0], alone / "imagenet/images/train/n99999999"
    )
    with pytest.raises(DatasetError, match="'n99999999'"):
        load_dataset("imagenet", root=alone)


def test_lines_and_images_of_lists_are_checked(alone: Path) -> None:
    folder = make_miniature(entry("fgvc"), alone)
    with (folder / "images_variant_val.txt").open("a") as file:
        file.write("0000000 747-100\n\n7777777 707-320\n")
    found = read_known(entry("fgvc"), alone)
    assert {item.code: item.examples for item in found.findings if item.severity == "error"} == {
        "split_file_images_missing": ("e.g. 'images/7777777.jpg'",),
        "metadata_invalid": ("images/0000000.jpg: '747-100'",),
    }


# --- split files


text = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)


@given(
    st.lists(text, max_size=5).flatmap(
        lambda names: st.lists(
            st.tuples(st.sampled_from(SPLITS), text, st.sampled_from(range(len(names) or 1))),
            max_size=20,
        ).map(lambda rows: (names, rows))
    )
)
def test_any_split_file_comes_back(drawn: tuple[list[str], list[tuple[str, str, int]]]) -> None:
    names, rows = drawn
    used = sorted({label for _, _, label in rows if names})
    splits = {
        split: tuple(
            Row(path, used.index(label), names[label])
            for s, path, label in rows
            if names and s == split
        )
        for split in SPLITS
    }
    with TemporaryDirectory() as folder:
        path = Path(folder) / "split_zhou_X.json"
        write_split_file(path, SplitFile(splits))
        assert read_split_file(path) == SplitFile(splits)


def test_a_split_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    rows = SplitFile(
        {
            "train": (Row("b/2.jpg", 1, "Straße"), Row("a/1.jpg", 0, "猫 / cat")),
            "val": (),
            "test": (Row("a/3.jpg", 0, "猫 / cat"),),
        }
    )
    path = tmp_path / "split_zhou_X.json"
    write_split_file(path, rows)
    assert read_split_file(path) == rows
    assert json.loads(path.read_text(encoding="utf-8"))["train"][0] == ["b/2.jpg", 1, "Straße"]
    assert rows.class_names == ("猫 / cat", "Straße")
    with pytest.raises(DatasetError, match="cannot be read"):
        read_split_file(tmp_path / "nothing.json")


def test_a_split_file_may_be_named_itself(alone: Path) -> None:
    folder = make_miniature(entry("eurosat"), alone)
    other = {split: rows[::2] for split, rows in rows_of(entry("eurosat")).items()}
    (folder / "split_zhou_half.json").write_text(json.dumps(other))
    half = load_dataset(folder / "split_zhou_half.json")
    assert len(half.train) == len(load_dataset("eurosat", root=alone).train) / 2


@pytest.mark.parametrize("key", ["eurosat", "caltech101", "dtd", "food101", "ucf101"])
def test_class_folders_are_split_in_coops_shares(alone: Path, key: str) -> None:
    known = entry(key)
    folder = make_miniature(known, alone)
    for label, name in enumerate(class_folders(known)):
        for number in range(100, 112):  # 20 in all
            shutil.copy(
                folder / known.images / rows_of(known)["train"][label * 4][0],
                folder / known.images / name / f"{number}.jpg",
            )
    (folder / known.split_file).unlink()
    with pytest.raises(DatasetError, match=f"sharpzo datasets split {key} --root"):
        load_dataset(key, root=alone)
    layout = split_known(known, alone, seed=1)
    assert sorted(layout.class_names) == sorted(expected_names(known))
    for split, count in {"train": 10, "val": 4, "test": 6}.items():
        assert set(layout.counts()[split].values()) == {count}
    assert split_known(known, alone, seed=1) == layout != split_known(known, alone, seed=2)


@pytest.mark.parametrize("key", ["oxford_pets", "stanford_cars", "fgvc", "sun397"])
def test_images_without_class_folders_cannot_be_split(alone: Path, key: str) -> None:
    known = entry(key)
    folder = make_miniature(known, alone)
    if known.split_file:
        (folder / known.split_file).unlink()
        with pytest.raises(DatasetError) as caught:
            load_dataset(key, root=alone)
        assert "datasets split" not in str(caught.value)
    with pytest.raises(DatasetError, match="cannot be split here"):
        open_unsplit(key, alone)


# --- sampling


def coop_few_shot(items: Sequence[Example], shots: int, seed: int) -> list[Example]:
    """`DatasetBase.generate_fewshot_dataset` of Dassl, upon which CoOp is built."""
    random.seed(seed)
    groups: dict[int, list[Example]] = {}
    for item in items:
        groups.setdefault(item.label, []).append(item)
    chosen: list[Example] = []
    for group in groups.values():
        if len(group) >= shots:
            chosen += random.sample(group, shots)
        else:
            chosen += random.choices(group, k=shots)
    return chosen


def coop_subsample(
    items: Sequence[Example], which: str, selected: Sequence[int] = ()
) -> list[Example]:
    """`OxfordPets.subsample_classes` of CoOp, whose labels are those of its training images."""
    if which == "all":
        return list(items)
    if not selected:
        labels = sorted({item.label for item in items})
        half = math.ceil(len(labels) / 2)
        selected = labels[:half] if which == "base" else labels[half:]
    relabeler = {label: new for new, label in enumerate(selected)}
    return [Example(i.path, relabeler[i.label]) for i in items if i.label in selected]


def shuffled(counts: Sequence[int], seed: int = 0) -> Dataset:
    examples = [Example(Path(f"{c}-{i}.jpg"), c) for c, n in enumerate(counts) for i in range(n)]
    random.Random(seed).shuffle(examples)
    names = tuple(f"class {c}" for c in range(len(counts)))
    return Dataset("made", names, tuple(examples), test=tuple(examples[::3]))


@given(
    counts=st.lists(st.integers(1, 20), min_size=4, max_size=9),
    shots=st.integers(1, 20),
    seed=st.integers(0, 2**31 - 1),
    which=st.sampled_from(["all", "base", "new"]),
)
def test_samples_are_those_of_coop(counts: list[int], shots: int, seed: int, which: Part) -> None:
    """Whatever the list, the shots and the seed; or a class that is wanted has too few images."""
    dataset = shuffled(counts, seed)
    expected = coop_subsample(coop_few_shot(dataset.train, shots, seed), which)
    labels = labels_of(which, len(counts))
    if min(counts[label] for label in labels) < shots:
        with pytest.raises(TooFewImages):
            few_shot(dataset, shots, seed, which)
        return
    drawn = few_shot(dataset, shots, seed, which)
    assert list(drawn.train) == expected
    assert list(drawn.test) == coop_subsample(dataset.test, which, labels)
    assert drawn.class_names == dataset.class_names[labels.start : labels.stop]


def test_a_class_that_is_left_out_may_be_short_and_moves_the_draw_as_in_coop() -> None:
    dataset = shuffled([20, 3, 20, 20])
    expected = coop_subsample(coop_few_shot(dataset.train, 8, 5), "new")
    assert list(few_shot(dataset, 8, 5, "new").train) == expected
    with pytest.raises(TooFewImages, match="'class 1' has 3"):
        few_shot(dataset, 8, 5, "base")


def test_a_known_subset_of_a_split_file(root: Path) -> None:
    """The same list and seed give the same images, whatever happens to this code."""
    dataset = load_dataset("dtd", root=root, shots=2, seed=1)
    assert [e.path.name for e in dataset.train] == [
        "1.jpg",
        "2.jpg",
        "8.jpg",
        "9.jpg",
        "16.jpg",
        "17.jpg",
    ]


def test_classes_are_selected_once() -> None:
    dataset = shuffled([5] * 5)
    base = select_classes(dataset, "base")
    assert select_classes(base, "base") is base
    assert select_classes(base, "all") is base
    assert few_shot(base, 2, 1, "base").class_names == base.class_names
    with pytest.raises(DatasetError, match="only its base classes"):
        select_classes(base, "new")
    with pytest.raises(DatasetError, match="the new half of 3 classes has 1"):
        select_classes(shuffled([5] * 3), "new")


def test_a_prompt_is_tuned_on_base_and_applied_to_new_classes(root: Path, clip: Backbone) -> None:
    config = TuningConfig.parse({**QUICK, "classes": "base", "head": "gda"})
    dataset = load_dataset("eurosat", root=root)
    result = tune(dataset, clip, config)
    assert result.prompt.class_names == dataset.class_names[:5]
    assert result.metrics["test_images"] == 10
    loaded = load_dataset("eurosat", root=root, shots=4, classes="base")
    assert tune(loaded, clip, config).prompt.vectors_sha256 == result.prompt.vectors_sha256
    new = load_dataset("eurosat", root=root, classes="new")
    assert new.class_names == dataset.class_names[5:]
    classifier = PromptClassifier(result.prompt, clip)
    moved = classifier.with_classes(new.class_names)
    assert moved.prompt.class_names == new.class_names
    assert (moved.prompt.stacked, moved.prompt.temperature) == (None, None)
    assert moved.prompt.context is result.prompt.context
    # Among the classes that it was tuned on, this is the prompt without its head.
    again = classifier.with_classes(result.prompt.class_names).prompt
    assert again.class_embeddings == pytest.approx(result.prompt.class_embeddings, abs=1e-5)
    assert moved.predict([e.path for e in new.test[:2]], top_k=9)[0][0].label in new.class_names
