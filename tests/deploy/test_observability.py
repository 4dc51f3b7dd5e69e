"""Prometheus and Grafana: their files name what exists, and a real Prometheus understands them."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from service.app import create_app
from service.streams.job_events import EVENT_STREAM
from sharpzo_core.database.engine import make_engine
from sharpzo_core.migrations import migrate
from sharpzo_core.records.keys import Scope
from sharpzo_core.settings import Settings
from sharpzo_core.stores.key_store import KeyStore
from tests.deploy.pages import table
from tests.figures import ROOT
from tests.helpers import eventually
from tests.service.servers import server_thread

pytestmark = pytest.mark.fast

FOLDER = ROOT / "docker" / "observability"
DASHBOARD = json.loads((FOLDER / "grafana" / "dashboards" / "sharpzo.json").read_text())
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]
EXPRESSIONS = QUERIES + [rule["expr"] for rule in RULES]
#: What Prometheus makes by itself.
OWN = {"up"}
WORDS = {
    *("sum", "max", "min", "by", "without", "rate", "increase", "topk", "histogram_quantile"),
    *("__rate_interval",),
}


def names_in(expression: str) -> set[str]:
    """The series that an expression asks for."""
    plain = re.sub(r"\{[^}]*\}|\[[^\]]*\]|(?:by|without) \([^)]*\)", "", expression)
    return set(re.findall(r"[a-z_][a-z0-9_]*", plain)) - WORDS


def documented() -> dict[str, tuple[str, set[str]]]:
    """Every series that there is -> its metric's type and labels."""
    found = {}
    for name, kind, labels, *_ in table("metric"):
        names = {name.strip("`")}
        if kind == "histogram":
            names = {f"{name.strip('`')}_{part}" for part in ("bucket", "count", "sum")}
        known = {label.strip("` ") for label in labels.split(",")} - {""}
        found.update(dict.fromkeys(names, (kind, known | {"instance", "job", "le"})))
    return found


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_names_series_and_labels_that_exist(expression: str) -> None:
    known, asked = documented(), names_in(expression)
    assert asked
    assert asked - OWN <= known.keys()
    labels: set[str] = set().union({"job"}, *(known[name][1] for name in asked - OWN))
    used = set(re.findall(r"(\w+)(?:=~|!~|!=|=)", expression))
    for listed in re.findall(r"(?:by|without) \(([^)]*)\)", expression):
        used |= {label.strip() for label in listed.split(",")}
    assert used <= labels


def test_the_dashboard_shows_each_kind_of_figure() -> None:
    shown = set().union(*map(names_in, QUERIES))
    for wanted in (
        *("sharpzo_jobs", "sharpzo_queue_oldest_seconds", "sharpzo_workers_alive"),
        *("sharpzo_forward_passes_total", "sharpzo_http_request_seconds_bucket"),
        *("sharpzo_http_problems_total", "sharpzo_batch_images_count", "sharpzo_images_waiting"),
    ):
        assert wanted in shown


def test_latencies_leave_out_what_streams() -> None:
    """A stream lasts as long as somebody looks at a job, and is no slow answer."""
    streaming = {
        path
        for path, methods in create_app(Settings()).openapi()["paths"].items()
        if EVENT_STREAM in str(methods.get("get", {}).get("responses"))
    }
    queries = [query for query in QUERIES if "sharpzo_http_request_seconds" in query]
    assert (len(streaming), len(queries)) == (2, 3)
    for query in queries:
        excluded = re.search(r'route!~"([^"]*)"', query)
        assert excluded is not None
        assert all(re.fullmatch(excluded[1], path) for path in streaming), query


def test_panels_stand_side_by_side_and_read_the_one_source() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    provisioned = yaml.safe_load(
        (FOLDER / "grafana" / "provisioning" / "datasources" / "prometheus.yml").read_text()
    )
    (source,) = provisioned["datasources"]
    sources = {panel["datasource"]["uid"] for panel in PANELS}
    sources |= {target["datasource"]["uid"] for panel in PANELS for target in panel["targets"]}
    assert sources == {source["uid"]}
    assert not re.search(r"https?://", json.dumps(DASHBOARD))


def test_alerts_are_those_of_the_table_of_metrics() -> None:
    page = " ".join(cell for row in table("metric") for cell in row)
    named = set(re.findall(r"`([A-Z][A-Za-z]+)`: ", page))
    assert {rule["alert"] for rule in RULES} == named | {"ApiDown"}
    for rule in RULES:
        assert rule["annotations"].keys() == {"summary", "fix"}
        assert rule["labels"]["severity"] in ("critical", "warning")


@pytest.mark.needs("prometheus")
def test_alerts_fire_when_they_should(tmp_path: Path) -> None:
    """Their package has both commands."""
    cases = (ROOT / "tests" / "deploy" / "alerts.test.yml").read_text()
    assert set(re.findall(r"alertname: (\w+)", cases)) == {rule["alert"] for rule in RULES}
    (tmp_path / "test.yml").write_text(cases.replace("ALERTS", str(FOLDER / "alerts.yml")))
    command = ["promtool", "test", "rules", str(tmp_path / "test.yml")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@contextmanager
def prometheus(folder: Path, target: str, key: str) -> Iterator[httpx2.Client]:
    """A Prometheus with the configuration of the container, begun as there; gives a client."""
    config = (FOLDER / "prometheus.yml").read_text()
    for old, new in (
        ("15s", "1s"),
        ("api:8000", target),
        ("/tmp/", f"{folder}/"),  # before the paths of this clone, which may be there itself
        ("/etc/prometheus/alerts.yml", str(FOLDER / "alerts.yml")),
    ):
        assert old in config
        config = config.replace(old, new)
    (folder / "prometheus.yml").write_text(config)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [
        *("/bin/sh", str(FOLDER / "start-prometheus.sh")),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    environment = {"PATH": os.environ["PATH"], "TMPDIR": str(folder), "METRICS_KEY": key}
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as process,
    ):
        try:
            with httpx2.Client(base_url=f"http://{address}", timeout=10) as client:
                yield client
        finally:
            process.terminate()


def ask(client: httpx2.Client, query: str) -> list[dict[str, Any]]:
    answer = client.get("/api/v1/query", params={"query": query}).json()
    assert answer["status"] == "success", (query, answer)
    result: list[dict[str, Any]] = answer["data"]["result"]
    return result


def is_up(client: httpx2.Client) -> bool:
    try:
        if not client.get("/-/ready").is_success:
            return False
    except httpx2.TransportError:
        return False
    found = ask(client, 'up{job="sharpzo"}')
    return [sample["value"][1] for sample in found] == ["1"]


def rule_groups(client: httpx2.Client) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = client.get("/api/v1/rules").json()["data"]["groups"]
    return groups


@pytest.mark.slow
@pytest.mark.needs("prometheus")
def test_a_real_prometheus_reads_the_figures_with_a_key_for_nothing_else(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "service", device="cpu")
    settings.data_dir.mkdir()
    migrate(settings)
    engine = make_engine(settings)
    key = KeyStore(engine).create("prometheus", [Scope.METRICS]).text
    engine.dispose()
    with server_thread(settings) as url, prometheus(tmp_path, url[7:], key) as client:
        with httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}) as own:
            assert own.get("/v1/jobs").status_code == 403
            told = own.get("/metrics").text
        eventually(lambda: is_up(client), 30)
        eventually(lambda: ask(client, "sharpzo_http_requests_total"), 30)
        for expression in EXPRESSIONS:
            ask(client, expression.replace("$__rate_interval", "1m"))
        stored = set(client.get("/api/v1/label/__name__/values").json()["data"])
        samples = text_string_to_metric_families(told)
        assert {sample.name for family in samples for sample in family.samples} <= stored
        eventually(lambda: rule_groups(client), 120)  # they are loaded a moment after it answers
        rules = rule_groups(client)[0]["rules"]
        assert {rule["name"]: rule["health"] for rule in rules}.keys() == {
            rule["alert"] for rule in RULES
        }
    assert (tmp_path / "metrics.key").read_text() == key
    assert (tmp_path / "metrics.key").stat().st_mode & 0o077 == 0
