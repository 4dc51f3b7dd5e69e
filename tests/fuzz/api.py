"""Schemathesis against a real server that holds real objects."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from sharpzo_client import Client
from sharpzo_core.database.engine import make_engine
from sharpzo_core.migrations import migrate
from sharpzo_core.records.keys import NewKey, Scope
from sharpzo_core.settings import Settings
from sharpzo_core.stores.key_store import KeyStore
from tests.fuzz.hooks import OBJECTS, OWN_KEY
from tests.service.conftest import dataset_members, zip_of
from tests.service.servers import server_process

CONFIG = Path(__file__).with_name("schemathesis.toml")
SMALL = {
    "shots": 2,
    "total_steps": 4,
    "change_point": 2,
    "prompt": {"intrinsic_dim": 4},
    "cma": {"population_size": 4},
}


@dataclass(frozen=True)
class Seen:
    """What came of a run."""

    cases: int
    failures: tuple[str, ...]  #: of checks: what, how often, where
    server_errors: tuple[str, ...]  #: routes that answered 500 or more, by the server's own count
    output: str  #: of schemathesis, with a command that repeats each failure


@dataclass(frozen=True)
class Target:
    """A server, what it holds, and a key that opens all of it."""

    url: str
    objects: dict[str, list[str]]
    key: NewKey

    @property
    def headers(self) -> dict[str, str]:
        """Of a request that is let in."""
        return {"Authorization": f"Bearer {self.key.text}"}


@contextmanager
def filled_server(folder: Path, backbone: Path) -> Iterator[Target]:
    """A server without a worker that holds a dataset, jobs of each kind, prompts and keys."""
    settings = Settings(
        data_dir=folder / "data",
        device="cpu",
        backbones=f"small=local-dir:{backbone}",
        default_backbone="small",
        max_queued_jobs=50,
        rate_limit="none",
        auth_failure_limit="none",
    )
    key = _first_key(settings)
    with server_process(settings, with_worker=True) as server:
        objects = _fill(server.url(), folder, key.text)
        server.process.terminate()
        server.process.wait(30)
    with server_process(settings) as server:
        yield Target(server.url(), objects, key)


def _first_key(settings: Settings) -> NewKey:
    """With a key from the start, requests that a fuzzer makes cannot close the service to it."""
    migrate(settings)
    engine = make_engine(settings)
    made = KeyStore(engine).create("fuzz", [Scope.ADMIN])
    engine.dispose()
    return made


def _fill(url: str, folder: Path, key: str) -> dict[str, list[str]]:
    archive = folder / "pets.zip"
    archive.write_bytes(zip_of(dataset_members(4)))
    with Client(url, key) as client:
        dataset = client.datasets.upload(archive, name="pets")
        tuning = client.jobs.create(dataset_id=dataset.id, config=SMALL, name="pets")
        prompt_id = client.jobs.wait(tuning.id).prompt_id
        assert prompt_id is not None
        others = [
            client.prompts.classify_dataset(prompt_id, dataset.id),
            client.prompts.evaluate(prompt_id, dataset.id),
        ]
        jobs = [client.jobs.wait(job.id).id for job in (tuning, *others)]
        client.aliases.set("live", prompt_id)
        prompt = client.prompts.get(prompt_id)
        spare = client.keys.create("spare", ["infer"])
    return {
        "dataset_id": [dataset.id],
        "job_id": jobs,
        "ref": [prompt.id, prompt.name, f"{prompt.name}:1", f"{prompt.name}@live"],
        "prompt_id": [prompt.id],
        "alias": ["live"],
        "key_id": [spare.id],
        "prompts": [f"{prompt.name}@live"],
        "backbone": ["small"],
        "model": ["small"],
    }


def attack(target: Target, examples: int, seed: int) -> Seen:
    """Run every phase and check; `examples` per operation."""
    with tempfile.TemporaryDirectory(prefix="sharpzo-fuzz-") as folder:
        report = Path(folder, "report.json")
        command = [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG)),
            *("run", f"{target.url}/openapi.json", "--no-color", "--continue-on-failure"),
            *("--max-examples", str(examples), "--seed", str(seed)),
            *("--report", "json", "--report-json-path", str(report)),
            *("--request-timeout", "30", "--warnings", "off"),
            *("--generation-database", "none", "--suppress-health-check", "all"),
        ]
        done = subprocess.run(
            command,
            env={
                **os.environ,
                "SCHEMATHESIS_HOOKS": "tests.fuzz.hooks",
                OBJECTS: json.dumps(target.objects),
                OWN_KEY: f"{target.key.record.id} {target.key.record.prefix}",
                "SHARPZO_API_KEY": target.key.text,
            },
            cwd=CONFIG.parents[2],
            capture_output=True,
            text=True,
            check=False,
        )
        output = done.stdout + done.stderr
        if not report.exists():
            raise RuntimeError(output[-2000:])
        found = json.loads(report.read_text())
    failures = [*found["failures"], *found["errors"]]
    return Seen(
        found["test_cases"]["generated"],
        tuple(json.dumps(failure)[:300] for failure in failures),
        tuple(_server_errors(target)),
        output,
    )


def _server_errors(target: Target) -> Iterator[str]:
    """Every 5xx but that of `/readyz`, where no worker is part of the setup."""
    text = httpx.get(f"{target.url}/metrics", headers=target.headers, trust_env=False).text
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = sample.labels
            if sample.name != "sharpzo_http_requests_total" or labels["status"] < "500":
                continue
            if (labels["route"], labels["status"]) != ("/readyz", "503"):
                yield f"{labels['method']} {labels['route']}: {sample.value:g} x {labels['status']}"
