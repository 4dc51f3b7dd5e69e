"""Two services: one has the weights, the other one tunes on them over HTTP, and both are killed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from sharpzo_engine import Backbone, load_backbone
from sharpzo_engine.clip.onnx.export import export_encoder
from tests.faults.cluster import FAST, Cluster, open_cluster
from tests.faults.proxy import Proxy, Weather

pytestmark = pytest.mark.timeout(600)

#: Some seconds, also over HTTP.
SHORT: dict[str, Any] = {
    "total_steps": 100,
    "change_point": 40,
    "cma": {"population_size": 42},
    "zo": {"optimizer": "adam", "queries": 8},
}


@dataclass
class Pair:
    """The owner of the weights, and the tenant who tunes on them through a network."""

    owner: Cluster
    tenant: Cluster
    network: Proxy
    sha256: str  #: of what a job learns where the weights are


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("pair")
    original = load_backbone("tiny", device="cpu")
    assert isinstance(original, Backbone)
    export_encoder(original, folder / "onnx", "fp32", min_agreement=0)
    weights = f"tiny=onnx-dir:{folder / 'onnx'}"
    with open_cluster(folder / "owner", folder, backbones=weights, **FAST) as owner:
        owner.start_api()
        network = Proxy(owner.settings.port)
        away = f"tiny=remote:http://127.0.0.1:{network.port}/v1/encoders/tiny"
        with open_cluster(folder / "tenant", folder, backbones=away, **FAST) as tenant:
            tenant.start_api()
            owner.start_workers(1)
            sha256 = owner.undisturbed(**SHORT)
            owner.workers.pop().kill()
            tenant.start_workers(2)
            yield Pair(owner, tenant, network, sha256)
        network.close()


def test_a_job_learns_what_it_would_where_the_weights_are(pair: Pair) -> None:
    assert pair.tenant.undisturbed(**SHORT) == pair.sha256


def test_the_owner_is_killed(pair: Pair) -> None:
    job = pair.tenant.submit(**SHORT)
    pair.tenant.wait_until_running(job.id, 10)
    assert pair.owner.api is not None
    pair.owner.api.kill()
    pair.owner.start_api()
    ended = pair.tenant.wait_until_ended(job.id)
    assert (ended.status, ended.attempt) == ("succeeded", 1)
    assert pair.tenant.vectors_sha256(ended) == pair.sha256


def test_the_worker_is_killed(pair: Pair) -> None:
    job = pair.tenant.submit(**SHORT)
    pair.tenant.wait_until_saved(job.id)
    pair.tenant.wait_until_running(job.id, 30)
    pair.tenant.holder(job.id).kill()
    ended = pair.tenant.wait_until_ended(job.id)
    assert (ended.status, ended.attempt) == ("succeeded", 2)
    assert pair.tenant.vectors_sha256(ended) == pair.sha256


def test_every_connection_is_cut_now_and_then(pair: Pair) -> None:
    job = pair.tenant.submit(**SHORT)
    for step in range(10, 50, 10):
        pair.tenant.wait_until_running(job.id, step)
        pair.network.set(Weather(reset=True))
        pair.network.set(Weather(delay=0.02))
    ended = pair.tenant.wait_until_ended(job.id)
    pair.network.set(Weather())
    assert (ended.status, ended.attempt) == ("succeeded", 1)
    assert pair.tenant.vectors_sha256(ended) == pair.sha256
