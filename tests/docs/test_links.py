"""Links of README.md and docs/, and the code that they name, lead somewhere."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.docs.blocks import PAGES, ROOT

pytestmark = pytest.mark.fast

LINK = re.compile(r"\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)|(?:src|srcset|href)=\"([^\"]+)\"")
HOST = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?\.)+[a-z]{2,}")


#: Where paths of modules begin.
FOLDERS = (ROOT, ROOT / "sharpzo_engine", ROOT / "examples")


def prose(path: Path) -> str:
    """The page without its code."""
    text = re.sub(
        r"^(\s*)(`{3,})[^\n]*\n.*?^\s*\2\s*$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL
    )
    return re.sub(r"`[^`\n]+`", lambda code: code[0].replace("](", "] ("), text)


def links(path: Path) -> Iterator[str]:
    for match in LINK.finditer(prose(path)):
        yield match[1] or match[2]


def anchors(path: Path) -> set[str]:
    """Of its headings, as GitHub and the site make them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.*?)\s*#*$", prose(path), re.MULTILINE):
        words = re.sub(r"[^\w\s-]", "", heading.lower()).strip()
        slug = re.sub(r"\s", "-", words)
        while slug in found:
            slug += "_1"
        found.add(slug)
    return found


def fault(page: Path, link: str) -> str | None:
    """What is wrong with a link."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        if parts.hostname in {"localhost", "127.0.0.1"} and parts.scheme == "http":
            return None
        if parts.scheme != "https":
            return "is not https"
        return None if HOST.fullmatch(parts.hostname or "") else "names no host"
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if not target.is_relative_to(ROOT) and target != page:
        return "leaves the repository"
    if not target.exists():
        return "is not there"
    if parts.fragment and parts.fragment not in anchors(target):
        return "has no such heading"
    return None


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path: Path) -> None:
    found = list(links(path))
    assert [(link, why) for link in found if (why := fault(path, link))] == []


@pytest.mark.parametrize("path", [p for p in PAGES if p.parent != ROOT], ids=lambda p: p.name)
def test_pages_of_the_site_link_to_nothing_outside_it(path: Path) -> None:
    """What lies beside docs/ is on GitHub, and not on the site."""
    local = [link for link in links(path) if not urlsplit(link).scheme]
    assert [link for link in local if link.startswith("../")] == []


def test_modules_that_pages_name_are_there() -> None:
    named = [
        (page.name, module)
        for page in PAGES
        for module in re.findall(r"`((?:\w+/)*\w+\.py)`", page.read_text())
    ]
    assert len(named) > 30
    assert [n for n in named if not any((folder / n[1]).exists() for folder in FOLDERS)] == []


def test_the_method_names_the_code_of_each_equation() -> None:
    tables = (ROOT / "docs" / "method.md").read_text().partition("## Methods")[0]
    cells = re.findall(r"^\|.* \| (`.*) \|$", tables, re.MULTILINE)
    names = [name for cell in cells for name in re.findall(r"`([\w.]+\.\w+)", cell)]
    assert len(names) > 15
    for name in names:
        pkgutil.resolve_name(f"sharpzo_engine.{name}")


@pytest.mark.parametrize(
    ("link", "why"),
    [
        ("gone.md", "is not there"),
        ("#gone", "has no such heading"),
        ("page.md#a-page-of-two", "has no such heading"),
        ("http://example.org", "is not https"),
        ("https://example", "names no host"),
        ("ftp://example.org/x", "is not https"),
    ],
)
def test_a_bad_link_is_found(link: str, why: str) -> None:
    assert fault(ROOT / "docs" / "method.md", link.replace("page.md", "keys.md")) == why


def test_headings_become_the_anchors_that_browsers_ask_for(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A page, of `code`\n\n## It's 2 : 1\n\n```sh\n# no heading\n```\n\n## A page\n"
    )
    assert anchors(page) == {"a-page-of-code", "its-2--1", "a-page"}
