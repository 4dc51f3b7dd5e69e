"""The site is built strictly, holds every page, and asks no other host for anything."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from service.app import create_app
from service.auth.authorization import declared
from sharpzo_core.settings import Settings
from tests.docs.blocks import ROOT

CONFIG = ROOT / "mkdocs.yml"
#: What a browser loads by itself, and the attribute that says from where.
LOADED = {
    "script": ("src",),
    "link": ("href",),
    "img": ("src", "srcset"),
    "source": ("src", "srcset"),
    "iframe": ("src",),
    "video": ("src", "poster"),
    "audio": ("src",),
    "object": ("data",),
    "use": ("href",),
}
NAVIGATION = {"canonical", "prev", "next", "alternate"}  # links that load nothing


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it, in a copy of what it is made of."""
    folder = tmp_path_factory.mktemp("site")
    for name in ("mkdocs.yml", "docs", "sharpzo_client", "sharpzo_engine", "README.md"):
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, folder / name)
    page = [sys.executable, ROOT / "tools" / "openapi_page.py", folder / "build" / "openapi.md"]
    subprocess.run(page, cwd=ROOT, check=True, timeout=100)
    build = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    done = subprocess.run(
        build, cwd=folder, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


class Loads(HTMLParser):
    """Addresses that a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "link" and (values.get("rel") or "") in NAVIGATION:
            return
        self.found += [values[name] or "" for name in LOADED.get(tag, ()) if values.get(name)]


def loaded(page: Path) -> list[str]:
    parser = Loads()
    parser.feed(page.read_text(encoding="utf-8"))
    return parser.found


def pages_of(nav: object) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    for entry in nav if isinstance(nav, list) else ():
        yield from pages_of(next(iter(entry.values())))


def test_no_page_loads_anything_from_another_host(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 10
    found = {(page.name, address) for page in pages for address in loaded(page)}
    assert found
    assert [entry for entry in found if urlsplit(entry[1]).netloc] == []


def test_no_stylesheet_loads_anything_from_another_host(site: Path) -> None:
    sheets = list(site.rglob("*.css"))
    assert sheets
    for sheet in sheets:
        text = sheet.read_text(encoding="utf-8")
        assert not re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", text), sheet.name


def test_what_pages_load_is_there(site: Path) -> None:
    for page in site.rglob("*.html"):
        for address in loaded(page):
            path = urlsplit(address).path
            if path and not address.startswith("data:") and page.name != "404.html":
                assert (page.parent / path).exists(), f"{page.name}: {address}"


def test_links_within_the_site_lead_to_a_page_and_a_place_on_it(site: Path) -> None:
    pages = {page.name: page.read_text(encoding="utf-8") for page in site.glob("*.html")}
    places = {name: set(re.findall(r'\bid="([^"]+)"', text)) for name, text in pages.items()}
    faults = []
    for name, text in pages.items():
        for link in re.findall(r'<a [^>]*href="([^"]+)"', text):
            parts = urlsplit(html.unescape(link))
            target = parts.path.removeprefix("./") or name
            if parts.scheme or name == "404.html" or not target.endswith(".html"):
                continue
            if target not in pages or (
                parts.fragment and unquote(parts.fragment) not in places[target] | {"__top"}
            ):
                faults.append((name, link))
    assert faults == []


def test_the_navigation_has_every_page_and_no_other() -> None:
    named = set(pages_of(yaml.safe_load(CONFIG.read_text())["nav"]))
    there = {str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")}
    assert there == named


def test_the_reference_has_every_route(site: Path, tmp_path: Path) -> None:
    text = re.sub(r"<[^>]+>", "", (site / "openapi.html").read_text(encoding="utf-8"))
    routes = declared(create_app(Settings(data_dir=tmp_path)))
    documented = [(method, path) for method, path, _ in routes if path.startswith("/v1")]
    assert len(documented) > 30
    assert [route for route in documented if f"{route[0]} {route[1]}" not in text] == []


def test_the_reference_of_the_sdk_comes_from_its_docstrings(site: Path) -> None:
    import sharpzo_client

    text = (site / "sdk.html").read_text(encoding="utf-8")
    anchors = set(re.findall(r'id="sharpzo_client\.(?:\w+\.)*(\w+)"', text))
    assert set(sharpzo_client.__all__) - anchors == set()
    assert "A connection to a SharpZO service." in text


def test_a_broken_link_stops_the_build(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# Home\n\n[gone](gone.md)\n")
    (tmp_path / "mkdocs.yml").write_text("site_name: x\n")
    build = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(
        build, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode != 0
    assert "gone.md" in re.sub(r"\x1b\[[\d;]*m", "", done.stdout + done.stderr)
