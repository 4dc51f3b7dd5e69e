"""Clusters for a module, in both modes, and what every fault's test needs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.cluster import EMBEDDED, FAST, LONG, SERVERS, Cluster, open_mode
from tests.faults.scenarios.workers import restore

MODES = [
    EMBEDDED,
    pytest.param(SERVERS, marks=[pytest.mark.needs("redis-server", "postgres"), pytest.mark.slow]),
]


@pytest.fixture(scope="session", params=MODES)
def shared_cluster(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, small_backbone: Path
) -> Iterator[Cluster]:
    """An API with quick timings, in either mode."""
    folder = tmp_path_factory.mktemp(request.param)
    with open_mode(request.param, folder, small_backbone, **FAST) as opened:
        opened.start_api()
        yield opened


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Iterator[Cluster]:
    """The API with two idle workers, which a test may kill."""
    restore(shared_cluster, 2)
    yield shared_cluster
    shared_cluster.cancel_all()


@pytest.fixture(scope="session")
def sha256(shared_cluster: Cluster) -> str:
    """What an undisturbed `LONG` job learns."""
    restore(shared_cluster, 2)
    return shared_cluster.undisturbed(**LONG)
