"""What the pages do with text that means harm, and with a service that wants a key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from sharpzo_client import Client
from sharpzo_core.records.keys import Scope
from sharpzo_core.stores.key_store import KeyStore
from tests.dashboard.conftest import OpenPage, picture
from tests.faults.cluster import Cluster
from tests.helpers import CONFIG

pytestmark = [pytest.mark.needs("chromium"), pytest.mark.timeout(300)]

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


NOWHERE = re.compile("no such|does not exist", re.IGNORECASE)

#: Answers to a wrong key come when the test says so, whoever has given up waiting for them.
LATE_ANSWERS = """
    const now = window.fetch;
    window.late = [];
    window.fetch = async (input, init) => {
        const headers = new Headers(input.headers ?? init?.headers);
        if (headers.get("Authorization") !== "Bearer szo_wrong") return now(input, init);
        const answer = await now(input.url, { headers });
        await new Promise((answered) => window.late.push(answered));
        return answer;
    };
"""

#: A wrong key, or none, is refused at once: before the browser reports that the dialog has closed.
PROMPT_REFUSALS = """
    const now = window.fetch;
    window.fetch = async (input, init) => {
        const headers = new Headers(input.headers ?? init?.headers);
        const sent = headers.get("Authorization");
        if (sent !== null && sent !== "Bearer szo_wrong") return now(input, init);
        return new Response('{"detail": "unknown key"}', { status: 401 });
    };
"""


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
    expect(page).to_have_title("\u2068harmless\u2069 · SharpZO")
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
        expect(page.locator("main").get_by_text(NOWHERE).first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path


@pytest.fixture
def keyed(tmp_path: Path, small_backbone: Path) -> Iterator[tuple[Cluster, str]]:
    """A service that wants a key, and one that it knows."""
    cluster = Cluster(tmp_path, small_backbone)
    key = KeyStore(cluster.stores.engine).for_tenant("default").create("a test's", tuple(Scope))
    try:
        cluster.start_api()
        yield cluster, key.text
    finally:
        cluster.close()


def enter(page: Page, key: str) -> None:
    dialog = page.get_by_role("dialog", name="API key")
    dialog.get_by_label("Key").fill(key)
    dialog.get_by_role("button", name="Use this key").click()


def another_key(cluster: Cluster) -> str:
    return (
        KeyStore(cluster.stores.engine).for_tenant("default").create("another", tuple(Scope)).text
    )


def test_a_new_key_does_not_ask_for_ever_what_an_ended_job_does(
    keyed: tuple[Cluster, str], browser: Browser
) -> None:
    cluster, key = keyed
    with Client(cluster.url, api_key=key) as client:
        job = client.jobs.create(cluster.dataset_id, config=CONFIG)
        client.jobs.cancel(job.id)
    context = browser.new_context(base_url=cluster.url)
    page = context.new_page()
    page.goto(f"/#/jobs/{job.id}")
    enter(page, key)
    events = page.locator(".events li")
    expect(events.locator("strong")).to_have_text(["cancelled", "queued"])
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.get_by_role("button", name="Key").click()
    enter(page, another_key(cluster))
    expect(page.locator(".status")).to_have_text("cancelled")
    page.wait_for_timeout(3000)  # several rounds of a client that comes again and again
    assert sum(url.endswith("/events") for url in asked) == 1
    expect(events.locator("strong")).to_have_text(["cancelled", "queued"])
    context.close()


def test_who_does_not_want_to_give_a_key_is_not_asked_again(
    keyed: tuple[Cluster, str], browser: Browser
) -> None:
    cluster, _ = keyed
    context = browser.new_context(base_url=cluster.url)
    page = context.new_page()
    page.goto("/")
    dialog = page.get_by_role("dialog", name="API key")
    dialog.get_by_role("button", name="Cancel").click()
    page.wait_for_timeout(5000)  # longer than between two looks at a list
    expect(dialog).to_be_hidden()
    context.close()


def test_a_key_that_is_refused_at_once_is_asked_for_again(
    keyed: tuple[Cluster, str], browser: Browser
) -> None:
    cluster, key = keyed
    context = browser.new_context(base_url=cluster.url)
    page = context.new_page()
    page.add_init_script(PROMPT_REFUSALS)
    page.goto("/#/new-job")
    dialog = page.get_by_role("dialog", name="API key")
    for _ in range(3):
        enter(page, "szo_wrong")
        page.wait_for_function("() => sessionStorage.getItem('sharpzo.key') === null")
        page.wait_for_timeout(300)  # longer than the browser takes to report that it closed
        expect(dialog).to_be_visible(timeout=1000)
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    page.get_by_role("button", name="Try again").click()
    enter(page, key)
    expect(page.get_by_text("A job needs a dataset")).to_be_visible()
    context.close()


def test_a_late_refusal_of_a_former_key_does_not_take_the_new_one_away(
    keyed: tuple[Cluster, str], browser: Browser
) -> None:
    cluster, key = keyed
    context = browser.new_context(base_url=cluster.url)
    page = context.new_page()
    page.add_init_script(LATE_ANSWERS)
    page.goto("/#/new-job")
    enter(page, "szo_wrong")
    page.wait_for_function("() => window.late.length > 0")
    page.get_by_role("button", name="Key").click()
    enter(page, key)
    expect(page.get_by_text("A job needs a dataset")).to_be_visible()
    page.evaluate("window.late.forEach((answer) => answer())")
    page.wait_for_timeout(500)
    expect(page.get_by_role("dialog", name="API key")).to_be_hidden()
    assert page.evaluate("sessionStorage.getItem('sharpzo.key')") == key
    context.close()


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
