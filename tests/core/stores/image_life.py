"""The life of a dataset's images, in a process that is killed at one of its steps."""

from __future__ import annotations

import os
import signal
import sys
from multiprocessing import get_context
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from sharpzo_core.database.engine import make_engine, writing
from sharpzo_core.records.datasets import DatasetRecord, images_prefix
from sharpzo_core.settings import Settings
from sharpzo_core.storage.artifact_store import ArtifactStore
from sharpzo_core.stores.dataset_leases import DatasetLeases
from sharpzo_core.stores.dataset_store import DatasetStore
from sharpzo_core.stores.image_store import ImageStore

OWNER = "a process"
#: What a process does to files, as Python tells it.
FILE_EVENTS = frozenset({"os.rename", "os.remove", "os.mkdir"})


def begin(engine: sa.Engine, tenant: str = "default") -> DatasetRecord:
    """A dataset that is being processed here."""

    def lease(connection: sa.Connection, dataset: DatasetRecord) -> None:
        DatasetLeases(engine, OWNER, 600).lock(connection, dataset.id)

    return DatasetStore(engine).for_tenant(tenant).create("photos", in_transaction=lease)


def store_images(
    engine: sa.Engine, artifacts: ArtifactStore, dataset: DatasetRecord, contents: list[bytes]
) -> list[str]:
    """What an ingest does with checked images; returns their hashes."""
    images = ImageStore(engine, artifacts)
    drafts = [
        artifacts.draft(images_prefix(dataset.tenant), artifacts.local_path("drafts") or _never())
        for _ in contents
    ]
    for draft, content in zip(drafts, contents, strict=True):
        draft.write(content)
    try:
        images.hold(dataset, OWNER, {draft.sha256: draft.size for draft in drafts})
        for draft in drafts:
            images.keep(dataset, draft)
    finally:
        for draft in drafts:
            draft.discard()
    return [draft.sha256 for draft in drafts]


def _never() -> Any:
    raise AssertionError("these tests are about local stores")


def finish(engine: sa.Engine, dataset: DatasetRecord) -> None:
    """The dataset is ready."""
    DatasetStore(engine).for_tenant(dataset.tenant).mark_ready(
        dataset.id,
        classes=["a"],
        counts={"train": {"a": 1}},
        sha256="0" * 64,
        owner=OWNER,
        shares_images=True,
    )


def live_and_die(settings: dict[str, Any], contents: list[bytes], step: int) -> bool:
    """Store, finish, delete and sweep, killed before a step; whether it came to that one."""
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=_live, args=(settings, contents, step))
    process.start()
    process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"it ended with {process.exitcode}")
    return process.exitcode != 0


def _live(settings: dict[str, Any], contents: list[bytes], step: int) -> None:
    loaded = Settings.load(**settings)
    engine, artifacts = make_engine(loaded), ArtifactStore.from_url(loaded.artifacts)
    with writing(engine):
        pass  # what a first connection does is no step
    left = step

    def count(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(engine, "before_cursor_execute", count)
    event.listen(engine, "commit", count)
    sys.addaudithook(lambda name, _: count() if name in FILE_EVENTS else None)
    dataset = begin(engine)
    store_images(engine, artifacts, dataset, contents)
    finish(engine, dataset)
    DatasetStore(engine).delete(dataset.id)
    ImageStore(engine, artifacts).sweep()
