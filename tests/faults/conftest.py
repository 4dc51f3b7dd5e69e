"""Clusters for a module, in both modes, and what every fault's test needs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.cluster import EMBEDDED, FAST, LONG, SERVERS, Cluster, open_mode

MODES = [
    EMBEDDED,
    pytest.param(SERVERS, marks=[pytest.mark.needs("redis"), pytest.mark.needs("postgres")]),
]


@pytest.fixture(scope="module", params=MODES)
def cluster(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, small_backbone: Path
) -> Iterator[Cluster]:
    """An API and two workers with quick timings, in either mode; tests replace what they kill."""
    folder = tmp_path_factory.mktemp(request.param)
    with open_mode(request.param, folder, small_backbone, **FAST) as opened:
        opened.start_api()
        opened.start_workers(2)
        yield opened


@pytest.fixture(scope="module")
def sha256(cluster: Cluster) -> str:
    """What an undisturbed `LONG` job learns."""
    return cluster.undisturbed(**LONG)
