"""A real service, and a browser that looks at it.

Every page that a test opens is watched: a request that leaves the machine, an error that a script
meets, or something that the Content-Security-Policy refuses fails the test that opened it.
Screenshots are kept in `test-artifacts/dashboard/`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    expect,
    sync_playwright,
)

from tests.conftest import CHROMIUM
from tests.faults.cluster import Cluster

PICTURES = Path(__file__).parents[2] / "test-artifacts" / "dashboard"
WIDTHS = (1280, 390)
SCHEMES = ("light", "dark")
_NO_NAMES = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"
#: What a browser says of an answer that is no success; the pages handle those themselves.
_ANSWER = re.compile("Failed to load resource: the server responded with a status of [45]")
_AWAY = re.compile("net::ERR_(CONNECTION|EMPTY|INCOMPLETE)")

expect.set_options(timeout=60_000)  # on a machine that is busy; what is there passes at once

OpenPage = Callable[..., Page]


@pytest.fixture(scope="module")  # its event loop would be in the way of other folders' tests
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", _NO_NAMES]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, small_backbone: Path) -> Iterator[Cluster]:
    """A service with the bundled backbone and one worker, for all tests of pages."""
    settings = {"backbones": "tiny", "heartbeat_seconds": 0.5, "checkpoint_seconds": 0.2}
    cluster = Cluster(tmp_path_factory.mktemp("dashboard"), small_backbone, **settings)
    try:
        cluster.start_api()
        cluster.start_workers(1)
        yield cluster
    finally:
        cluster.close()


class Watched:
    """What went on in the pages of a context that should not have."""

    def __init__(self, context: BrowserContext) -> None:
        self.faults: list[str] = []
        context.on("request", lambda request: self._check(request.url))
        context.on("console", self._listen)
        context.on("weberror", lambda error: self.faults.append(str(error.error)))

    def _check(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("blob", "data") and parts.hostname not in (
            "127.0.0.1",
            "localhost",
        ):
            self.faults.append(f"a request to {url}")

    def _listen(self, message: ConsoleMessage) -> None:
        harmless = _ANSWER.match(message.text) or _AWAY.search(message.text)
        if message.type in ("error", "warning") and not harmless:
            self.faults.append(f"{message.type}: {message.text}")


@pytest.fixture
def open_page(browser: Browser, cluster: Cluster) -> Iterator[OpenPage]:
    """Opens pages of the dashboard: `open_page("/jobs", width=390, scheme="dark")`."""
    opened: list[tuple[BrowserContext, Watched]] = []

    def open_page(path: str = "/", *, width: int = 1280, scheme: str = "light") -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=scheme,  # type: ignore[arg-type] # light or dark
            base_url=cluster.url,
        )
        context.set_default_timeout(60_000)
        opened.append((context, Watched(context)))
        page = context.new_page()
        page.goto(f"/#{path}")
        return page

    yield open_page
    faults = [fault for _, watched in opened for fault in watched.faults]
    for context, _ in opened:
        context.close()
    assert faults == []


def picture(page: Page, name: str) -> None:
    """Keep what the page looks like, and check that it is no wider than its window."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"{name}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
