"""What the pages do with text that means harm, and with a service that wants a key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from sharpzo_client import Client
from sharpzo_core.key_store import KeyStore
from sharpzo_core.keys import Scope
from tests.dashboard.conftest import OpenPage, picture
from tests.faults.cluster import Cluster
from tests.helpers import CONFIG

pytestmark = [pytest.mark.slow, pytest.mark.needs("chromium"), pytest.mark.timeout(300)]

HOSTILE = {
    "script": "<script>document.title='owned'</script>",
    "picture": "<img src=x onerror=document.title='owned'>",
    "long": "x" * 300,
    "long words": "wide load " * 30,
    "right to left": "\u202egnp.exe \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "emoji": "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466" * 20,
    "marks": "a" + "\u0301\u0316" * 60,
    "template": "${7*7} {{7*7}} javascript:alert(1)",
}


@pytest.mark.parametrize("width", [1280, 390])
def test_hostile_text_is_text(cluster: Cluster, open_page: OpenPage, width: int) -> None:
    job = cluster.client.jobs.create(
        cluster.dataset_id, config=CONFIG, name="harmless", metadata=HOSTILE
    )
    cluster.wait_until_ended(job.id)
    page = open_page(f"/jobs/{job.id}", width=width)
    for name, text in HOSTILE.items():
        fact = page.locator(".fact", has=page.get_by_text(name, exact=True))
        expect(fact.locator("bdi")).to_have_text(text)
    expect(page).to_have_title("SharpZO")
    assert page.locator("main script, main img").count() == 0
    picture(page, f"hostile-job-{width}-light")


def test_hostile_addresses_lead_nowhere(open_page: OpenPage) -> None:
    for path in (
        "/jobs/<img src=x onerror=alert(1)>",
        "/prompts/%3Cscript%3E",
        "/prompts/%E0%A4%A",
        "/datasets/..%2f..%2fv1%2fkeys",
        "/compare/a,b,<script>",
        "/nowhere",
        f"/jobs/{'x' * 5000}",
    ):
        page = open_page(path)
        expect(page.locator("main").get_by_text("no such", exact=False).first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path


@pytest.fixture
def keyed(tmp_path: Path, small_backbone: Path) -> Iterator[tuple[Cluster, str]]:
    """A service that wants a key, and one that it knows."""
    cluster = Cluster(tmp_path, small_backbone)
    key = KeyStore(cluster.stores.engine).of("default").create("a test's", tuple(Scope))
    try:
        cluster.start_api()
        yield cluster, key.text
    finally:
        cluster.close()


def enter(page: Page, key: str) -> None:
    dialog = page.get_by_role("dialog", name="API key")
    dialog.get_by_label("Key").fill(key)
    dialog.get_by_role("button", name="Use this key").click()


def test_a_key_is_asked_for_kept_in_the_tab_and_sent(
    keyed: tuple[Cluster, str], browser: Browser
) -> None:
    cluster, key = keyed
    with Client(cluster.url, api_key=key) as client:
        client.jobs.create(cluster.dataset_id, config=CONFIG, name="guarded")
    context = browser.new_context(base_url=cluster.url)
    page = context.new_page()
    page.goto("/")
    expect(page.get_by_role("dialog", name="API key")).to_be_visible()
    assert "guarded" not in page.content()
    enter(page, "szo_wrong")
    expect(page.get_by_role("dialog", name="API key")).to_be_visible()
    enter(page, key)
    expect(page.get_by_role("link", name="guarded")).to_be_visible()
    page.reload()
    expect(page.get_by_role("link", name="guarded")).to_be_visible()
    assert key not in page.url
    assert page.evaluate("Object.values(localStorage).join()").find(key) == -1
    page.get_by_role("link", name="guarded").click()
    expect(page.locator(".events")).to_contain_text("queued")  # a stream, with the key

    another = context.new_page()  # a tab of its own
    another.goto("/")
    expect(another.get_by_role("dialog", name="API key")).to_be_visible()
    context.close()
