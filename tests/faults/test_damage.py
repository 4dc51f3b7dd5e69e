"""Damaged and missing files, and a dataset that is needed, with an embedded worker."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sharpzo_client.errors import ConflictError, ServiceUnavailableError
from sharpzo_core.records.prompts import prompt_key
from tests.faults.cluster import EMBEDDED, ENDLESS, FAST, Cluster, open_mode
from tests.helpers import write_small_backbone

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a backbone that belongs to this module alone."""
    folder = write_small_backbone(tmp_path_factory.mktemp("own-backbone"))
    return folder / "open_clip_model.safetensors"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Iterator[Cluster]:
    """The API with its embedded worker."""
    folder = tmp_path_factory.mktemp("damage")
    with open_mode(EMBEDDED, folder, weights.parent, **FAST) as cluster:
        cluster.start_api(embedded_worker=True)
        yield cluster


@pytest.fixture(autouse=True)
def _nothing_is_left(cluster: Cluster) -> Iterator[None]:
    yield
    cluster.cancel_all()


def picture() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def flip_a_bit(path: Path) -> None:
    """Damage the last byte, which is one of the numbers."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_damaged_prompt_is_refused_and_others_serve(cluster: Cluster) -> None:
    damaged, whole = (cluster.wait_until_ended(cluster.submit().id) for _ in range(2))
    cluster.wait_until_ready()
    path = cluster.stores.artifacts.local_path(prompt_key(damaged.prompt_id or ""))
    assert path is not None

    flip_a_bit(path)

    with pytest.raises(ServiceUnavailableError) as refused:
        cluster.client.prompts.classify(damaged.prompt_id or "", [picture()])
    assert refused.value.code == "artifact_corrupt"
    assert (damaged.prompt_id or "?") in str(refused.value)
    answer = cluster.client.prompts.classify(whole.prompt_id or "", [picture()])
    assert len(answer.results) == 1
    assert answer.results[0].error is None
    assert cluster.ready() == ""


def test_a_dataset_that_a_job_needs_cannot_be_deleted(cluster: Cluster) -> None:
    running = cluster.submit(**ENDLESS)
    cluster.wait_until_running(running.id)
    with pytest.raises(ConflictError):
        cluster.client.datasets.delete(cluster.dataset_id)
    queued = cluster.submit()
    cluster.cancel(running.id)
    ended = cluster.wait_until_ended(queued.id)

    assert ended.status == "succeeded"
    assert cluster.client.datasets.get(cluster.dataset_id).status == "ready"


def test_a_job_whose_weights_are_gone_fails(cluster: Cluster, weights: Path) -> None:
    assert cluster.api is not None
    intact = weights.read_bytes()
    cluster.api.stop()  # a new worker has no weights in memory
    weights.unlink()
    cluster.start_api(embedded_worker=True)
    try:
        missing = cluster.wait_until_ended(cluster.submit().id)
        weights.write_bytes(intact[: len(intact) // 2])
        truncated = cluster.wait_until_ended(cluster.submit().id)
    finally:
        weights.write_bytes(intact)
    following = cluster.wait_until_ended(cluster.submit().id)

    for failed in (missing, truncated):
        assert failed.error is not None
        assert (failed.status, failed.prompt_id) == ("failed", None)
        assert (failed.error.code or "").startswith("backbone")
    assert (following.status, following.attempt) == ("succeeded", 1)
