"""Datasets, prompts and the trying of them in the browser, on a real service."""

from __future__ import annotations

import io
import itertools
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import FilePayload, Locator, Page, expect

from sharpzo_client.errors import NotFoundError
from sharpzo_client.models import Dataset, Prompt
from sharpzo_engine.prompts.artifact import TunedPrompt
from tests.dashboard.conftest import SCHEMES, WIDTHS, OpenPage, picture
from tests.faults.cluster import Cluster
from tests.helpers import CONFIG

pytestmark = [pytest.mark.needs("chromium"), pytest.mark.timeout(300)]

COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}
#: Folder -> name as it is shown; each is a trap for a page that is careless with text.
HOSTILE = {
    "a": "<script>window.hit = 1</script>",
    "b": "x" * 200,
    "c": "\U0001f98a fox \U0001f98a",
    "d": "\u0301\u0302\u0303\u0304\u0305",
}
HOSTILE_NAMES = (
    "<img src=x onerror='window.hit = 1'>",
    "\u202eesrever si siht",
    "\u0301\u0302\u0303",
    "w" * 200,
)
CLASSES_BEYOND_A_MATRIX = 31

#: What a screen reader would stumble over.
AUDIT = """() => {
    const levels = [...document.querySelectorAll("main :is(h1, h2, h3, h4)")]
        .filter((heading) => heading.checkVisibility())
        .map((heading) => Number(heading.tagName[1]));
    const skipped = levels.some((level, i) => level > (levels[i - 1] ?? 0) + 1);
    const unnamed = [...document.querySelectorAll("main :is(input, select, textarea)")]
        .filter((field) => field.labels.length === 0).length;
    const silent = [...document.querySelectorAll("main :is(button, a)")]
        .filter((e) => !(e.ariaLabel ?? e.title ?? "") && e.textContent.trim() === ""
                       && e.querySelector("img[alt]") === null).length;
    return { h1: levels.filter((level) => level === 1).length, skipped, unnamed, silent };
}"""
CLEAN = {"h1": 1, "skipped": False, "unnamed": 0, "silent": 0}


def png(colour: Sequence[int], seed: int = 0) -> bytes:
    noise = np.random.default_rng(seed).integers(-30, 30, (48, 48, 3))
    stream = io.BytesIO()
    Image.fromarray(np.clip(noise + colour, 0, 255).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def archive(
    classes: Mapping[str, Sequence[int]],
    counts: Mapping[str, int] | None = None,
    extra: Mapping[str, bytes] | None = None,
) -> bytes:
    """A .zip of `split/class/*.png`."""
    stream = io.BytesIO()
    seeds = itertools.count()
    with zipfile.ZipFile(stream, "w") as packed:
        for split, images in (counts or {"train": 4, "val": 2, "test": 3}).items():
            for name, colour in classes.items():
                for image in range(images):
                    data = png(colour, next(seeds))
                    packed.writestr(f"{split}/{name}/{image}.png", data)
        for path, data in (extra or {}).items():
            packed.writestr(path, data)
    return stream.getvalue()


def zipped(data: bytes, name: str = "colours.zip") -> FilePayload:
    return {"name": name, "mimeType": "application/zip", "buffer": data}


def picture_file(name: str, data: bytes) -> FilePayload:
    return {"name": name, "mimeType": "image/png", "buffer": data}


def upload(cluster: Cluster, folder: Path, name: str, data: bytes) -> Dataset:
    path = folder / "archive.zip"
    path.write_bytes(data)
    return cluster.client.datasets.upload(path, name=name)


def tune(cluster: Cluster, dataset: Dataset, name: str, **config: Any) -> Prompt:
    job = cluster.client.jobs.create(dataset.id, config=CONFIG | config, name=name)
    ended = cluster.wait_until_ended(job.id)
    assert ended.prompt_id is not None, ended
    return cluster.client.prompts.get(ended.prompt_id)


@dataclass(frozen=True)
class Tuned:
    """A dataset of three colours, and two versions of a prompt for it."""

    dataset: Dataset
    first: Prompt
    second: Prompt

    @property
    def name(self) -> str:
        return self.first.name


@pytest.fixture(scope="module")
def tuned(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    dataset = upload(cluster, tmp_path_factory.mktemp("colours"), "colours", archive(COLOURS))
    prompts = [tune(cluster, dataset, "colours", seed=seed) for seed in (1, 2)]
    return Tuned(dataset, *prompts)


@pytest.fixture
def api(cluster: Cluster) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=cluster.url, timeout=30) as client:
        yield client


def open_prompt(open_page: OpenPage, ref: str, **options: Any) -> Page:
    page = open_page(f"/prompts/{ref.replace(':', '%3A').replace('@', '%40')}", **options)
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    return page


def card(page: Page, title: str) -> Locator:
    return page.locator("section", has=page.get_by_role("heading", name=title))


# Datasets


def test_an_archive_becomes_a_dataset_that_is_looked_at_and_deleted(
    cluster: Cluster, open_page: OpenPage
) -> None:
    page = open_page("/datasets")
    expect(page.get_by_role("button", name="Upload")).to_be_disabled()
    page.locator("input[type=file]").set_input_files(zipped(archive(COLOURS), "sky.zip"))
    expect(page.get_by_label("Name")).to_have_value("sky")
    page.get_by_label("Name").fill("sky & sea")
    page.get_by_role("button", name="Upload").click()
    row = page.get_by_role("row", name="sky & sea")
    expect(row.locator(".status")).to_have_text("ready")
    assert row.locator(".number:not(.corner)").all_inner_texts() == ["3", "12", "6", "9"]

    row.get_by_role("link", name="sky & sea").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("sky & sea")
    classes = card(page, "Classes").get_by_role("row")
    assert [text.split() for text in classes.all_inner_texts()[1:]] == [
        ["blue", "4", "2", "3"],
        ["green", "4", "2", "3"],
        ["red", "4", "2", "3"],
    ]
    expect(card(page, "Pre-flight check")).to_contain_text("fewer than 16 training images")
    expect(card(page, "Images")).to_contain_text("PNG 27")
    sheet = page.get_by_role("img", name="A few images of each class").first
    assert sheet.evaluate("async (image) => (await image.decode(), image.naturalWidth)") > 100
    sheet.click()
    expect(page.get_by_role("dialog", name="Contact sheet")).to_be_visible()
    page.keyboard.press("Escape")
    dataset_id = page.url.rsplit("/", 1)[1]
    link = page.get_by_role("link", name="Tune on this")
    assert (link.get_attribute("href") or "").endswith(f"#/new-job/{dataset_id}")

    page.get_by_role("button", name="Delete").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Cancel").click()
    assert cluster.client.datasets.get(dataset_id).status == "ready"
    page.get_by_role("button", name="Delete").click()
    dialog.get_by_role("button", name="Delete").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Datasets")
    expect(page.get_by_role("row", name="sky & sea")).to_have_count(0)
    with pytest.raises(NotFoundError):
        cluster.client.datasets.get(dataset_id)


def test_an_upload_shows_how_far_it_is_and_can_be_stopped(
    cluster: Cluster, open_page: OpenPage, tmp_path: Path
) -> None:
    page = open_page("/datasets")
    session = page.context.new_cdp_session(page)
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 200_000}
    session.send("Network.enable")
    session.send("Network.emulateNetworkConditions", slow)
    large = tmp_path / "large.zip"
    large.write_bytes(archive(COLOURS, extra={"train/red/noise.png": bytes(4_000_000)}))
    page.locator("input[type=file]").set_input_files(large)
    before = {dataset.id for dataset in cluster.client.datasets.list()}
    page.get_by_role("button", name="Upload").click()
    progress = page.get_by_role("progressbar", name="Sent")
    expect(progress).to_be_visible()
    page.wait_for_function("() => document.querySelector('main progress')?.value > 0")
    expect(page.get_by_text("% of 4.2 MB")).to_be_visible()
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("alert").filter(has_text="Upload cancelled")).to_be_visible()
    expect(progress).to_have_count(0)
    assert {dataset.id for dataset in cluster.client.datasets.list()} == before


def test_what_is_wrong_with_an_upload_stands_at_its_field(open_page: OpenPage) -> None:
    page = open_page("/datasets")
    file = page.locator("input[type=file]")
    file.set_input_files(zipped(b"no archive at all"))
    page.get_by_role("button", name="Upload").click()
    expect(page.get_by_role("alert").filter(has_text="archive")).to_be_visible()
    file.set_input_files(zipped(archive(COLOURS)))
    name = page.get_by_role("textbox", name="Name")
    name.fill("bell\u0007")
    page.get_by_role("button", name="Upload").click()
    expect(name).to_have_attribute("aria-invalid", "true")
    expect(page.get_by_role("button", name="Upload")).to_be_enabled()


def test_a_dataset_that_cannot_be_read_says_why(
    cluster: Cluster, open_page: OpenPage, api: httpx.Client
) -> None:
    broken = archive(COLOURS, extra={"train/red/broken.jpg": b"nothing"})
    sent = api.post("/v1/datasets", data={"name": "broken"}, files={"file": ("a.zip", broken)})
    page = open_page(f"/datasets/{sent.json()['id']}")
    expect(page.locator(".title .status")).to_have_text("failed")
    expect(page.get_by_role("alert").first).to_contain_text("broken.jpg")
    expect(card(page, "Pre-flight check")).to_contain_text("not usable")
    unreadable = page.get_by_role("region", name="Images that cannot be read")
    expect(unreadable).to_contain_text("train/red/broken.jpg")
    expect(page.get_by_role("link", name="Tune on this")).to_have_count(0)
    assert page.evaluate(AUDIT) == CLEAN


def test_images_without_labels_are_not_offered_for_tuning(
    cluster: Cluster, open_page: OpenPage
) -> None:
    page = open_page("/datasets")
    page.locator("input[type=file]").set_input_files(zipped(archive(COLOURS), "loose.zip"))
    page.get_by_label("Images without labels").check()
    page.get_by_role("button", name="Upload").click()
    row = page.get_by_role("row", name="loose")
    expect(row).to_contain_text("unlabelled")
    expect(row.locator(".status")).to_have_text("ready")
    row.get_by_role("link", name="loose").click()
    expect(page.get_by_text("none: can only be classified")).to_be_visible()
    expect(page.get_by_role("link", name="Tune on this")).to_have_count(0)


# Text of users


def test_hostile_names_are_text_and_break_no_layout(
    cluster: Cluster, open_page: OpenPage, tmp_path: Path
) -> None:
    names = {"classnames.json": json.dumps(HOSTILE).encode()}
    shades = {folder: (40 * number, 90, 200) for number, folder in enumerate(HOSTILE)}
    data = archive(shades, extra=names)
    datasets = [upload(cluster, tmp_path, name, data) for name in HOSTILE_NAMES]
    prompt = tune(cluster, datasets[0], "hostile")
    cluster.client.aliases.set("hostile@live", prompt.id, comment=HOSTILE_NAMES[0])
    for dataset in datasets:
        evaluated = cluster.client.prompts.evaluate(prompt.id, dataset.id)
        cluster.wait_until_ended(evaluated.id)
    for width in WIDTHS:
        for scheme in SCHEMES:
            page = open_page("/datasets", width=width, scheme=scheme)
            expect(page.get_by_role("link", name=datasets[2].id)).to_be_visible()
            picture(page, f"hostile-datasets-{width}-{scheme}")
            page.goto(f"/#/datasets/{datasets[0].id}")
            expect(page.get_by_role("heading", level=1)).to_have_text(HOSTILE_NAMES[0])
            expect(page.get_by_role("cell", name=HOSTILE["a"])).to_be_visible()
            picture(page, f"hostile-dataset-{width}-{scheme}")
            page.goto("/#/prompts/hostile%40live")
            page.get_by_text("History of live").click()
            expect(page.get_by_role("cell", name=HOSTILE_NAMES[0], exact=True)).to_be_visible()
            expect(page.get_by_role("region", name="Confusion matrix")).to_be_visible()
            expect(
                page.get_by_role("combobox", name="Evaluate on").locator("option")
            ).not_to_have_count(0)
            page.get_by_text("All classes").click()
            picture(page, f"hostile-prompt-{width}-{scheme}")
            page.goto("/#/try/hostile%40live")
            files = [picture_file(f"{name[:60]}.png", png((9, 9, 9))) for name in HOSTILE_NAMES]
            page.locator("input[type=file]").set_input_files(files)
            expect(page.locator(".ranking")).to_have_count(2 * len(files))
            picture(page, f"hostile-try-{width}-{scheme}")
            assert page.evaluate("[window.hit, document.querySelector('main [src=x]')]") == [
                None,
                None,
            ]


# Prompts


def test_prompts_are_listed_by_name(tuned: Tuned, open_page: OpenPage) -> None:
    page = open_page("/prompts")
    group = page.locator("tbody", has=page.get_by_role("rowheader", name=tuned.name, exact=True))
    rows = group.locator("tr:not(.group)")
    expect(rows).to_have_count(2)
    assert [row.split()[0] for row in rows.all_inner_texts()] == ["v2", "v1"]
    metrics = tuned.second.metrics
    before, after = metrics.zero_shot_accuracy, metrics.test_accuracy
    assert before is not None
    assert after is not None
    for share in (before, after):
        expect(rows.first).to_contain_text(f"{100 * share:.1f} %")
    rows.first.get_by_role("link", name="v2").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(f"{tuned.name} v2")
    assert page.evaluate(AUDIT) == CLEAN


def test_an_alias_is_promoted_through_a_gate_rolled_back_and_deleted(
    cluster: Cluster, tuned: Tuned, open_page: OpenPage
) -> None:
    ref = f"{tuned.name}@staging"
    page = open_prompt(open_page, f"{tuned.name}:1")
    page.get_by_role("combobox", name="Alias").fill("staging")
    page.get_by_label("Only if").select_option("test_accuracy")
    promote = page.get_by_role("button", name="Promote v1")
    expect(promote).to_be_disabled()
    page.get_by_label("is at least").fill("1.5")
    promote.click()
    expect(page.locator(".notice.bad")).to_contain_text("test_accuracy")
    page.locator(".notice.bad").get_by_role("button", name="Dismiss").click()
    page.get_by_label("is at least").fill("0")
    page.get_by_label("Comment").fill("good <b>enough</b>")
    promote.click()
    expect(page.get_by_text("v1, this one")).to_be_visible()
    assert cluster.client.aliases.get(ref).prompt_id == tuned.first.id

    page = open_prompt(open_page, f"{tuned.name}:2")
    page.get_by_role("combobox", name="Alias").fill("staging")
    page.get_by_role("button", name="Promote v2").click()
    expect(page.get_by_text("v2, this one")).to_be_visible()
    assert cluster.client.aliases.get(ref).prompt_id == tuned.second.id
    page.get_by_role("button", name="Roll back staging").click()
    page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
    expect(page.get_by_text("v2, this one")).to_have_count(0)
    assert cluster.client.aliases.get(ref).prompt_id == tuned.first.id
    page.get_by_text("History of staging").click()
    history = page.get_by_role("region", name="History of staging").locator("tbody tr")
    expect(history).to_have_count(3)
    told = [row.split("\t")[1:3] for row in history.all_inner_texts()]
    assert told == [["rolled back", "v1"], ["promoted", "v2"], ["promoted", "v1"]]
    expect(history.last).to_contain_text("good <b>enough</b>")

    page.get_by_role("button", name="Delete the alias staging").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_text("History of staging")).to_have_count(0)
    with pytest.raises(NotFoundError):
        cluster.client.aliases.get(ref)


def test_an_alias_that_somebody_else_moved_stays_where_it_is(
    cluster: Cluster, tuned: Tuned, open_page: OpenPage
) -> None:
    page = open_prompt(open_page, f"{tuned.name}:2")
    page.get_by_role("combobox", name="Alias").fill("contested")
    promote = page.get_by_role("button", name="Promote v2")
    expect(promote).to_be_enabled()
    cluster.client.aliases.set(f"{tuned.name}@contested", tuned.first.id)
    promote.click()
    expect(page.locator(".notice.bad")).to_be_visible()
    assert cluster.client.aliases.get(f"{tuned.name}@contested").prompt_id == tuned.first.id


def test_a_long_history_is_shown_in_pages(
    cluster: Cluster, tuned: Tuned, open_page: OpenPage
) -> None:
    ref = f"{tuned.name}@busy"
    for turn in range(53):
        cluster.client.aliases.set(ref, (tuned.first, tuned.second)[turn % 2].id)
    page = open_prompt(open_page, ref)
    page.get_by_text("History of busy").click()
    history = page.get_by_role("region", name="History of busy").locator("tbody tr")
    expect(history).to_have_count(50)
    page.get_by_role("button", name="Load more").click()
    expect(history).to_have_count(53)
    expect(page.get_by_role("button", name="Load more")).to_have_count(0)


def test_classes_and_confusions_are_those_of_the_report(
    tuned: Tuned, open_page: OpenPage, api: httpx.Client
) -> None:
    accept = {"Accept": "application/json"}
    report = api.get(f"/v1/jobs/{tuned.first.job_id}/report", headers=accept).json()
    page = open_prompt(open_page, tuned.first.id)
    rows = page.get_by_role("region", name="Accuracy by class").locator("tbody tr")
    expect(rows).to_have_count(len(COLOURS))
    gains = {row["name"]: row["tuned"] - row["zero_shot"] for row in report["classes"]}
    shown = [text.split()[0] for text in rows.all_inner_texts()]
    assert sorted(shown) == sorted(gains)
    assert [gains[name] for name in shown] == sorted(gains.values(), reverse=True)
    for row in report["classes"]:
        line = rows.filter(has_text=row["name"])
        expect(line).to_contain_text(f"{100 * row['zero_shot']:.1f} %")
        expect(line).to_contain_text(f"{100 * row['tuned']:.1f} %")
    matrix = page.get_by_role("region", name="Confusion matrix").locator("tbody tr")
    cells = [
        [actual, predicted, int(text)]
        for actual, row in enumerate(matrix.all())
        for predicted, text in enumerate(row.locator("td").all_inner_texts())
        if text
    ]
    assert cells == report["confusion"]
    shade = "(cell) => getComputedStyle(cell).backgroundColor"
    full, empty = (matrix.locator(f"td:text-is('{text}')").first for text in ("3", ""))
    assert full.evaluate(shade) != empty.evaluate(shade)


def test_many_classes_show_the_most_confused_pairs(
    cluster: Cluster, open_page: OpenPage, tmp_path: Path
) -> None:
    shades = {
        f"shade {number:02}": (8 * number, 120, 255 - 8 * number)
        for number in range(CLASSES_BEYOND_A_MATRIX)
    }
    counts = {"train": 1, "val": 1, "test": 2}
    dataset = upload(cluster, tmp_path, "shades", archive(shades, counts))
    prompt = tune(cluster, dataset, "shades", shots=1, total_steps=12, change_point=6)
    page = open_prompt(open_page, prompt.id)
    pairs = page.get_by_role("region", name="Most frequent confusions")
    expect(pairs).to_be_visible()
    images = [int(text) for text in pairs.locator("tbody td:nth-child(3)").all_inner_texts()]
    assert images == sorted(images, reverse=True)
    expect(page.get_by_role("region", name="Confusion matrix")).to_have_count(0)
    rows = page.get_by_role("region", name="Accuracy by class").locator("tbody tr")
    expect(rows).to_have_count(20)
    page.get_by_role("button", name=f"Show all {CLASSES_BEYOND_A_MATRIX}").click()
    expect(rows).to_have_count(CLASSES_BEYOND_A_MATRIX)
    picture(page, "prompt-many-classes-1280-light")


def test_a_prompt_is_measured_on_a_dataset(
    cluster: Cluster, tuned: Tuned, open_page: OpenPage
) -> None:
    page = open_prompt(open_page, tuned.second.id)
    evaluations = card(page, "Evaluations")
    evaluations.get_by_role("combobox", name="Evaluate on").select_option(tuned.dataset.id)
    evaluations.get_by_label("Split").select_option("val")
    evaluations.get_by_role("button", name="Evaluate").click()
    expect(evaluations.get_by_role("link", name="open the job")).to_be_visible()
    href = evaluations.get_by_role("link", name="open the job").get_attribute("href") or ""
    job = cluster.wait_until_ended(href.rsplit("/", 1)[1])
    assert (job.kind, job.config["split"], job.prompt_id) == ("evaluation", "val", tuned.second.id)
    row = evaluations.get_by_role("row", name=tuned.dataset.name)
    expect(row).to_contain_text(f"{100 * (job.metrics.accuracy or 0):.1f} %")
    low, high = job.metrics.accuracy_low or 0, job.metrics.accuracy_high or 0
    expect(row).to_contain_text(f"{100 * low:.1f}\u2013{100 * high:.1f}")
    expect(row).to_contain_text(f"{job.metrics.images} val")
    figure = page.get_by_role("img", name="Calibration error")
    expect(figure).to_have_accessible_name(
        f"Calibration error. Tuned: {100 * (job.metrics.ece or 0):.1f} %, "
        f"Calibrated: {100 * (job.metrics.calibrated_ece or 0):.1f} %, "
        f"Zero-shot: {100 * (job.metrics.zero_shot_ece or 0):.1f} %"
    )
    assert page.evaluate(AUDIT) == CLEAN


def test_artifacts_are_downloaded_and_imported_again(
    cluster: Cluster, tuned: Tuned, open_page: OpenPage, tmp_path: Path
) -> None:
    page = open_prompt(open_page, tuned.first.id)
    saved = {}
    for suffix in ("safetensors", "npy", "onnx"):
        with page.expect_download() as download:
            page.get_by_role("button", name=f".{suffix}").click()
        assert download.value.suggested_filename == f"{tuned.name}-v1.{suffix}"
        saved[suffix] = download.value.path().read_bytes()
    matrix = np.load(io.BytesIO(saved["npy"]))
    assert matrix.shape[0] == len(COLOURS)
    assert len(saved["onnx"]) > matrix.nbytes
    file = tmp_path / "taken.safetensors"
    file.write_bytes(saved["safetensors"])
    assert TunedPrompt.load(file).class_names == tuple(tuned.first.classes)

    page.goto("/#/prompts")
    chooser = page.locator("input[type=file]")
    for version in (1, 2):
        chooser.set_input_files(file)
        page.get_by_label("Name").fill("taken-along")
        page.get_by_role("button", name="Import").click()
        expect(page.get_by_text(f"Imported as taken-along, version {version}")).to_be_visible()
    imported = cluster.client.prompts.get("taken-along")
    assert (imported.version, imported.job_id) == (2, None)
    page.get_by_role("link", name="taken-along").click()
    expect(page.get_by_text("Not measured yet")).to_be_visible()
    expect(page.get_by_text("imported", exact=True)).to_be_visible()
    page.goto("/#/prompts")
    chooser.set_input_files({"name": "x.safetensors", "mimeType": "", "buffer": b"nonsense"})
    page.get_by_role("button", name="Import").click()
    expect(page.get_by_role("alert").filter(has_text="file")).to_be_visible()


def test_a_prompt_is_pinned_and_deleted_but_not_from_under_an_alias(
    cluster: Cluster, tuned: Tuned, open_page: OpenPage, tmp_path: Path
) -> None:
    file = cluster.client.prompts.download(tuned.first.id, tmp_path / "spare.safetensors")
    prompt = cluster.client.prompts.upload(file, name="spare")
    cluster.client.aliases.set("spare@live", prompt.id)
    page = open_prompt(open_page, "spare")
    page.get_by_role("button", name="Pin").click()
    expect(page.get_by_role("button", name="Unpin")).to_be_visible()
    assert cluster.client.prompts.get(prompt.id).pinned
    page.get_by_role("button", name="Unpin").click()
    expect(page.get_by_role("button", name="Pin", exact=True)).to_be_visible()
    assert not cluster.client.prompts.get(prompt.id).pinned

    delete = page.locator(".title").get_by_role("button", name="Delete")
    delete.click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.locator(".notice.bad")).to_contain_text("live")
    assert cluster.client.prompts.get(prompt.id).id == prompt.id
    cluster.client.aliases.delete("spare@live")
    delete.click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Prompts")
    with pytest.raises(NotFoundError):
        cluster.client.prompts.get(prompt.id)


def test_a_reference_that_leads_nowhere_is_told(open_page: OpenPage) -> None:
    page = open_page("/prompts/%E0%A4%A")
    expect(page.get_by_role("alert")).to_be_visible()
    page = open_page("/prompts/nobody%40live")
    expect(page.get_by_role("alert")).to_contain_text("no such prompt")


# Trying


def rankings(page: Page, title: str) -> list[list[str]]:
    """Labels in the order shown, of each image."""
    answers = page.locator(".answers").all()
    return [
        answer.get_by_role("region", name=title).locator("bdi").all_inner_texts()
        for answer in answers
    ]


def test_images_are_classified_as_the_api_does(
    cluster: Cluster, tuned: Tuned, open_page: OpenPage, tmp_path: Path
) -> None:
    cluster.client.aliases.set(f"{tuned.name}@tried", tuned.first.id)
    ref = f"{tuned.name}@tried"
    images = {name: png(colour, 7) for name, colour in COLOURS.items()}
    paths = []
    for name, data in images.items():
        path = tmp_path / f"{name}.png"
        path.write_bytes(data)
        paths.append(path)
    page = open_page(f"/try/{ref.replace('@', '%40')}")
    expect(page.get_by_label("Prompt")).to_have_value(ref)
    broken = {"name": "broken.png", "mimeType": "image/png", "buffer": b"no image"}
    files = [picture_file(path.name, path.read_bytes()) for path in paths]
    page.locator("input[type=file]").set_input_files([*files, broken])
    expect(page.locator(".outcome")).to_contain_text(
        f"3 images classified with {tuned.name} v1, 1 could not be read"
    )
    expect(page.locator(".tried", has_text="broken.png")).to_contain_text("not JPEG, PNG or WebP")
    answer = cluster.client.prompts.classify(ref, paths, zero_shot=True)
    for title, found in (
        ("Tuned", [result.predictions for result in answer.results]),
        ("Zero-shot", [result.zero_shot for result in answer.results]),
    ):
        expected = [[each.label for each in predictions or ()] for predictions in found]
        assert rankings(page, title) == expected
    assert page.evaluate(AUDIT) == CLEAN

    with page.expect_request(lambda request: "calibrated=true" in request.url):
        page.get_by_label("Calibrated scores").check()
    expect(page.locator(".outcome")).to_contain_text("3 images classified")
    page.get_by_label("Prompt").select_option(f"{tuned.name}:2")
    expect(page.locator(".outcome")).to_contain_text(f"with {tuned.name} v2")
    assert page.url.endswith(f"/try/{tuned.name}%3A2")
    page.get_by_role("button", name="Remove this image").first.click()
    expect(page.locator(".tried")).to_have_count(3)
    page.get_by_role("button", name="Clear").click()
    expect(page.locator(".tried")).to_have_count(0)


def test_images_are_dropped_and_pasted(tuned: Tuned, open_page: OpenPage) -> None:
    page = open_page(f"/try/{tuned.name}")
    expect(page.get_by_label("Prompt")).to_be_visible()
    transfer = page.evaluate_handle(
        """(bytes) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], "red.png", {type: "image/png"}));
            return transfer;
        }""",
        list(png(COLOURS["red"])),
    )
    place = page.locator(".drop")
    place.dispatch_event("dragover", {"dataTransfer": transfer})
    expect(place).to_have_class("drop over")
    place.dispatch_event("drop", {"dataTransfer": transfer})
    expect(page.locator(".outcome")).to_contain_text("1 image classified")
    page.evaluate(
        """(transfer) => document.dispatchEvent(
            new ClipboardEvent("paste", {clipboardData: transfer, bubbles: true}))""",
        transfer,
    )
    expect(page.locator(".outcome")).to_contain_text("2 images classified")


def test_what_a_prompt_cannot_tell_is_left_out_with_a_note(
    cluster: Cluster, tuned: Tuned, open_page: OpenPage, tmp_path: Path
) -> None:
    prompt = TunedPrompt.load(
        cluster.client.prompts.download(tuned.first.id, tmp_path / "a.safetensors")
    )
    config = prompt.metadata["config"]
    wordy = config | {"prompt": config["prompt"] | {"context": "word " * 90}}
    metadata = {key: value for key, value in prompt.metadata.items() if key != "head"}
    bare = replace(prompt, metadata=metadata | {"config": wordy}, stacked=None)
    bare.save(tmp_path / "bare.safetensors")
    cluster.client.prompts.upload(tmp_path / "bare.safetensors", name="bare")
    page = open_page("/try/bare")
    page.locator("input[type=file]").set_input_files(picture_file("a.png", png((9, 9, 200))))
    expect(page.get_by_text("No zero-shot predictions")).to_be_visible()
    expect(page.locator(".ranking")).to_have_count(1)
    page.get_by_label("Calibrated scores").check()
    expect(page.get_by_text("scores are not calibrated")).to_be_visible()
    expect(page.get_by_text("No zero-shot predictions")).to_be_visible()
    expect(page.locator(".outcome")).to_contain_text("1 image classified with bare v1")


# A service that holds nothing


def test_empty_pages_say_what_to_do_first(
    open_page: OpenPage, tmp_path: Path, small_backbone: Path
) -> None:
    empty = Cluster(tmp_path, small_backbone)
    try:
        empty.start_api()
        for width, scheme in ((1280, "light"), (390, "dark")):
            page = open_page(width=width, scheme=scheme)
            for path, told in (
                ("datasets", "No dataset yet"),
                ("prompts", "No prompt yet"),
                ("try", "no prompt to try yet"),
            ):
                page.goto(f"{empty.url}/#/{path}")
                expect(page.get_by_text(told)).to_be_visible()
                picture(page, f"empty-{path}-{width}-{scheme}")
                assert page.evaluate(AUDIT) == CLEAN
    finally:
        empty.close()


def test_pages_with_data_fit_every_window(
    cluster: Cluster, tuned: Tuned, open_page: OpenPage
) -> None:
    pages = {
        "datasets": ("/datasets", "region"),
        "dataset": (f"/datasets/{tuned.dataset.id}", "region"),
        "prompts": ("/prompts", "region"),
        "prompt": (f"/prompts/{tuned.name}%3A1", "region"),
        "try": (f"/try/{tuned.name}", "combobox"),
    }
    for width in WIDTHS:
        for scheme in SCHEMES:
            for name, (path, role) in pages.items():
                page = open_page(path, width=width, scheme=scheme)
                expect(page.get_by_role(role).first).to_be_visible()  # type: ignore[arg-type]
                page.wait_for_load_state("networkidle")
                picture(page, f"{name}-{width}-{scheme}")
                assert page.evaluate(AUDIT) == CLEAN, name
