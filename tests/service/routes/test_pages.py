"""The dashboard's files as the API serves them."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from service.routes import pages
from sharpzo_engine.config import PRESETS
from tests.service.conftest import assert_problem

ROOT = Path(__file__).parents[3]


def policy(client: TestClient, path: str) -> dict[str, str]:
    text = client.get(path).headers["content-security-policy"]
    return dict(part.split(" ", 1) for part in text.split("; "))


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_loads_its_own_assets_and_nothing_else(shared_client: TestClient, path: str) -> None:
    response = shared_client.get(path)
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    wanted = re.findall(r'(?:src|href)="([^"]+)"', response.text)
    assets = [url for url in wanted if url.startswith("/assets/")]
    assert len(assets) == 3  # icon, style, script
    assert set(wanted) - set(assets) <= {"/docs"}
    for url in assets:
        asset = shared_client.get(url)
        assert asset.status_code == 200, url
        assert "immutable" in asset.headers["cache-control"]
    assert "<script>" not in response.text
    assert "style=" not in response.text


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_run_nothing_but_their_own_scripts(shared_client: TestClient, path: str) -> None:
    rules = policy(shared_client, path)
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert rules["frame-ancestors"] == rules["base-uri"] == "'none'"
    assert "unsafe" not in str(rules)
    headers = shared_client.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


def test_files_are_sent_compressed_and_once(shared_client: TestClient) -> None:
    plain = shared_client.get("/", headers={"accept-encoding": "identity"})
    packed = shared_client.get("/", headers={"accept-encoding": "gzip"})
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.text == plain.text
    assert gzip.decompress((pages.STATIC / "index.html.gz").read_bytes()).decode() == plain.text
    again = shared_client.get(
        "/", headers={"if-none-match": plain.headers["etag"], "accept-encoding": "identity"}
    )
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "name", ["x.js", "..%2Findex.html", ".gitignore", "%2Fetc%2Fpasswd", "a%00.js", "a/b.js"]
)
def test_nothing_else_is_to_be_had(shared_client: TestClient, name: str) -> None:
    assert_problem(shared_client.get(f"/assets/{name}"), 404, "not_found")


def test_without_a_build_the_pages_say_how_to_make_one(
    shared_client: TestClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pages, "STATIC", tmp_path)
    for path in ("/", "/docs", "/assets/main.js"):
        problem = assert_problem(shared_client.get(path), 404, "page_missing")
        assert "make dashboard" in problem["detail"]


def test_the_form_offers_every_preset() -> None:
    source = (ROOT / "dashboard/src/pages/new-job.tsx").read_text()
    listed = re.search(r"const PRESETS = \[(.*?)\];", source, re.DOTALL)
    assert listed is not None
    assert re.findall(r'"(\w+)"', listed[1]) == list(PRESETS)
