"""The whole story in the browser, on real handwritten digits: from upload to answers."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from sharpzo_cli.demo.digits import HeldOut, write_digits
from tests.dashboard.conftest import SCHEMES, WIDTHS, OpenPage, picture
from tests.dashboard.test_job_pages import wait_for_steps
from tests.faults.cluster import Cluster

pytestmark = [pytest.mark.needs("chromium"), pytest.mark.timeout(600)]

NAME = "digits"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[HeldOut]]:
    """The archive of a dataset, and images that are not in it."""
    folder = tmp_path_factory.mktemp("digits")
    held_out = write_digits(folder)
    archive = shutil.make_archive(str(folder / "upload"), "zip", folder / "dataset")
    return Path(archive), held_out


def tune(page: Page, seed: int) -> str:
    """Fill in the form for a new job, watch its curves until it has succeeded; its id."""
    page.get_by_label("Name of the prompt").fill(NAME)
    page.get_by_label("Maximum forward passes").fill("4000")
    page.get_by_label("Seed").fill(str(seed))
    page.get_by_role("button", name="Start tuning").click()
    first = wait_for_steps(page, 0)
    assert wait_for_steps(page, first) > first
    expect(page.locator(".status")).to_have_text("succeeded", timeout=120_000)
    return page.url.rsplit("/", 1)[1]


def promote(page: Page, version: int) -> None:
    page.get_by_role("button", name=f"Promote v{version}").click()
    expect(
        page.get_by_role("status").get_by_text(f"live points to version {version}")
    ).to_be_visible()


def test_from_an_upload_to_answers(
    cluster: Cluster, open_page: OpenPage, digits: tuple[Path, list[HeldOut]]
) -> None:
    archive, held_out = digits
    page = open_page("/datasets")
    page.get_by_label("Drop an archive here").set_input_files(archive)
    page.get_by_label("Name").fill(NAME)
    page.get_by_role("button", name="Upload", exact=True).click()
    row = page.get_by_role("row", name=re.compile(f"^{NAME} ready 10 400 200 1,097"))
    row.get_by_role("link", name=NAME).click()
    expect(page.get_by_role("img", name="A few images of each class")).to_be_visible()
    dataset_id = page.url.rsplit("/", 1)[1]

    page.get_by_role("link", name="Tune on this").click()
    job_id = tune(page, seed=1)
    job = cluster.client.jobs.get(job_id)
    assert job.dataset_id == dataset_id
    metrics = job.metrics
    assert metrics.test_accuracy is not None
    assert metrics.zero_shot_accuracy is not None
    shown = page.get_by_label("Summary")
    expect(shown).to_contain_text(f"{100 * metrics.test_accuracy:.1f} %")
    expect(shown).to_contain_text(f"{100 * metrics.zero_shot_accuracy:.1f} %")
    tested = (metrics.test_accuracy_low, metrics.test_accuracy_high)
    plain = (metrics.zero_shot_accuracy_low, metrics.zero_shot_accuracy_high)
    for low, high in (tested, plain):  # the page computes what the engine does
        bounds = f"{100 * (low or 0):.1f}\u2013{100 * (high or 0):.1f}"
        expect(shown).to_contain_text(f"{bounds} (95 %), 1,097 images")

    page.get_by_role("link", name="Prompt", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("v1")
    promote(page, 1)
    page.goto(f"/#/new-job/{dataset_id}")
    tune(page, seed=2)
    page.get_by_role("link", name="Prompt", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("v2")
    promote(page, 2)
    assert cluster.client.prompts.get(f"{NAME}@live").version == 2
    page.get_by_role("button", name="Roll back live").click()
    page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
    expect(page.get_by_text("points to the version before again")).to_be_visible()
    assert cluster.client.prompts.get(f"{NAME}@live").version == 1

    page.goto("/#/try")
    page.get_by_role("combobox", name="Prompt").select_option(f"{NAME}@live")
    chosen = held_out[:8]
    page.get_by_label("Drop images here").set_input_files([image.path for image in chosen])
    expect(page.get_by_text(f"8 images classified with {NAME} v1")).to_be_visible()
    answer = cluster.client.prompts.classify(f"{NAME}@live", [image.path for image in chosen])
    for image, result in zip(chosen, answer.results, strict=True):
        assert result.predictions is not None
        best = result.predictions[0]
        tried = page.get_by_role("listitem").filter(has_text=image.path.name)
        expect(tried).to_contain_text(f"{best.label}{100 * best.score:.1f} %")
    picture(page, "answers-1280-light")

    look_at_every_page(open_page, job_id, dataset_id)


def look_at_every_page(open_page: OpenPage, job_id: str, dataset_id: str) -> None:
    """Keep pictures of all pages, wide and narrow, light and dark."""
    pages = {
        "jobs": ("/jobs", "New job"),
        "job": (f"/jobs/{job_id}", "Validation accuracy"),
        "compare": (f"/compare/{job_id}", "Measure"),
        "datasets": ("/datasets", NAME),
        "dataset": (f"/datasets/{dataset_id}", "Training"),
        "new-job": (f"/new-job/{dataset_id}", "Start tuning"),
        "prompts": ("/prompts", NAME),
        "prompt": (f"/prompts/{NAME}@live", "Confusion"),
        "try": ("/try", "Drop images here"),
    }
    for width in WIDTHS:
        for scheme in SCHEMES:
            page = open_page("/jobs", width=width, scheme=scheme)
            for name, (path, text) in pages.items():
                page.goto(f"/#{path}")
                shown = page.locator("main").get_by_text(text).filter(visible=True)
                expect(shown.first).to_be_visible()
                expect(page.get_by_text("Loading…")).to_have_count(0)
                picture(page, f"{name}-{width}-{scheme}")
