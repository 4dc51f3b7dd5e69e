from __future__ import annotations

import hashlib
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from sharpzo_core.database.engine import make_engine
from sharpzo_core.database.tables import blobs, dataset_images, datasets
from sharpzo_core.errors import LeaseLost, StateConflict, StorageBusy
from sharpzo_core.migrations import migrate
from sharpzo_core.records.datasets import TENANTS, DatasetRecord, blob_key
from sharpzo_core.settings import Settings
from sharpzo_core.storage.artifact_store import ArtifactStore
from sharpzo_core.stores.dataset_store import DatasetStore
from sharpzo_core.stores.image_store import LOCAL_BATCH, ImageStore
from tests.core.stores.image_life import OWNER, begin, finish, live_and_die, store_images
from worker.housekeeping import Housekeeper


@pytest.fixture
def artifacts(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore.from_url(str(tmp_path / "artifacts"))


@pytest.fixture
def images(engine: sa.Engine, artifacts: ArtifactStore) -> ImageStore:
    return ImageStore(engine, artifacts)


def files(artifacts: ArtifactStore) -> list[Path]:
    folder = artifacts.local_path(TENANTS)
    assert folder is not None
    return [path for path in folder.rglob("*") if path.is_file()]


def add(
    engine: sa.Engine, artifacts: ArtifactStore, contents: list[bytes], tenant: str = "default"
) -> DatasetRecord:
    dataset = begin(engine, tenant)
    store_images(engine, artifacts, dataset, contents)
    finish(engine, dataset)
    return dataset


def delete(engine: sa.Engine, dataset: DatasetRecord) -> None:
    DatasetStore(engine).for_tenant(dataset.tenant).delete(dataset.id)


def test_an_image_is_there_once_until_the_last_dataset_goes(
    engine: sa.Engine, artifacts: ArtifactStore, images: ImageStore
) -> None:
    first = add(engine, artifacts, [b"a", b"b"])
    second = add(engine, artifacts, [b"b", b"c"])
    assert len(files(artifacts)) == 3
    delete(engine, first)
    assert images.sweep() == 2
    assert images.sweep() == 0
    contents = {path.read_bytes() for path in files(artifacts)}
    assert contents == {b"b", b"c"}
    delete(engine, second)
    images.sweep()
    assert files(artifacts) == []
    with engine.connect() as connection:
        assert connection.execute(sa.select(blobs)).all() == []
        assert connection.execute(sa.select(dataset_images)).all() == []


def test_tenants_share_nothing(
    engine: sa.Engine, artifacts: ArtifactStore, images: ImageStore
) -> None:
    mine, theirs = add(engine, artifacts, [b"a"], "mine"), add(engine, artifacts, [b"a"], "theirs")
    assert len(files(artifacts)) == 2
    assert blob_key("mine", "0" * 64) != blob_key("theirs", "0" * 64)
    delete(engine, mine)
    images.sweep()
    (left,) = files(artifacts)
    assert left == artifacts.local_path(blob_key("theirs", hashlib.sha256(b"a").hexdigest()))
    delete(engine, theirs)
    images.sweep()
    assert files(artifacts) == []


def test_a_failed_dataset_holds_nothing(
    engine: sa.Engine, artifacts: ArtifactStore, images: ImageStore
) -> None:
    dataset = begin(engine)
    store_images(engine, artifacts, dataset, [b"a"])
    assert images.sweep() == 0
    DatasetStore(engine).mark_failed(dataset.id, "x", "y", owner=OWNER)
    images.sweep()
    assert files(artifacts) == []


def test_only_who_processes_a_dataset_stores_its_images(
    engine: sa.Engine, artifacts: ArtifactStore, images: ImageStore
) -> None:
    dataset = begin(engine)
    with pytest.raises(LeaseLost):
        images.hold(dataset, "somebody else", {"0" * 64: 1})
    finish(engine, dataset)
    with pytest.raises(LeaseLost):
        images.hold(dataset, OWNER, {"0" * 64: 1})
    delete(engine, dataset)
    with pytest.raises(LeaseLost):
        images.hold(dataset, OWNER, {"0" * 64: 1})
    assert images.sweep() == 0


def test_an_image_that_is_held_again_is_not_removed(
    engine: sa.Engine, artifacts: ArtifactStore, images: ImageStore
) -> None:
    delete(engine, add(engine, artifacts, [b"a"]))
    add(engine, artifacts, [b"a"])
    assert images.sweep() == 0
    assert len(files(artifacts)) == 1


def test_a_file_that_was_cut_is_replaced(engine: sa.Engine, artifacts: ArtifactStore) -> None:
    add(engine, artifacts, [b"content"])
    (path,) = files(artifacts)
    path.write_bytes(b"con")
    add(engine, artifacts, [b"content"])
    assert path.read_bytes() == b"content"


def test_many_images_go_batch_by_batch(
    engine: sa.Engine, artifacts: ArtifactStore, images: ImageStore
) -> None:
    contents = [str(index).encode() for index in range(LOCAL_BATCH + 10)]
    delete(engine, add(engine, artifacts, contents))
    assert images.sweep() == LOCAL_BATCH
    assert len(files(artifacts)) == 10
    assert images.sweep() == 10
    assert files(artifacts) == []


def test_what_an_older_version_deleted_is_released(
    engine: sa.Engine, artifacts: ArtifactStore, images: ImageStore
) -> None:
    dataset = add(engine, artifacts, [b"a"])
    with engine.begin() as connection:
        connection.execute(sa.delete(datasets).where(datasets.c.id == dataset.id))
    assert images.sweep() == 0
    assert images.release_orphans() == 1
    images.sweep()
    assert files(artifacts) == []


def test_a_suspicion_harms_nobody(
    engine: sa.Engine, artifacts: ArtifactStore, images: ImageStore
) -> None:
    dataset = add(engine, artifacts, [b"a"])
    stray = hashlib.sha256(b"b").hexdigest()
    artifacts.put_bytes(blob_key(dataset.tenant, stray), b"b")
    images.suspect(dataset.tenant, [stray, hashlib.sha256(b"a").hexdigest()])
    assert images.sweep() == 2
    assert [path.read_bytes() for path in files(artifacts)] == [b"a"]
    assert images.sweep() == 0


def test_files_that_no_row_names_go_when_they_are_old(
    engine: sa.Engine, artifacts: ArtifactStore, tmp_path: Path
) -> None:
    kept = add(engine, artifacts, [b"a"])
    artifacts.put_bytes(blob_key("default", "ab" * 32), b"of a time before the backup")
    Housekeeper(engine, artifacts, tmp_path / "cache", stray_seconds=3600).tidy()
    assert len(files(artifacts)) == 2
    Housekeeper(engine, artifacts, tmp_path / "cache", stray_seconds=0).tidy()
    (left,) = files(artifacts)
    assert left.read_bytes() == b"a"
    assert kept.tenant == "default"


@pytest.mark.parametrize("known", [False, True], ids=["new images", "images of another dataset"])
def test_a_process_that_is_killed_at_any_step_leaves_nothing_for_good(
    tmp_path: Path, known: bool
) -> None:
    settings = Settings.load(data_dir=tmp_path)
    migrate(settings)
    engine, artifacts = make_engine(settings), ArtifactStore.from_url(settings.artifacts)
    contents = [b"a", b"b"]
    if known:
        add(engine, artifacts, contents)
    step = 1
    while live_and_die({"data_dir": tmp_path}, contents, step):
        for dataset in DatasetStore(engine).list().items:
            assert_whole(artifacts, dataset, contents)
            if not (known and dataset.status == "ready" and dataset.name == "photos"):
                delete(engine, dataset)
        clear_up(engine, artifacts, tmp_path)
        assert {path.read_bytes() for path in files(artifacts)} == set(contents if known else ())
        step += 1
    assert step > 15
    engine.dispose()


def assert_whole(artifacts: ArtifactStore, dataset: DatasetRecord, contents: list[bytes]) -> None:
    if dataset.status == "ready":
        for content in contents:
            key = blob_key(dataset.tenant, hashlib.sha256(content).hexdigest())
            assert artifacts.get_bytes(key) == content


def clear_up(engine: sa.Engine, artifacts: ArtifactStore, folder: Path) -> None:
    """What sweepers and the housekeeper do, without waiting until things are old."""
    artifacts.remove_leftovers(TENANTS, older_than=0)
    Housekeeper(engine, artifacts, folder / "cache", stray_seconds=0).tidy()


CONTENTS = [bytes([number]) * 100 for number in range(6)]


def test_uploads_deletions_and_sweeps_at_the_same_time(
    engine: sa.Engine, artifacts: ArtifactStore, images: ImageStore
) -> None:
    stop = threading.Event()

    def sweep() -> None:
        while not stop.is_set():
            images.sweep()

    def come_and_go(seed: int) -> None:
        rng = random.Random(seed)
        tenant = rng.choice(("mine", "theirs"))
        for _ in range(12):
            contents = rng.sample(CONTENTS, 3)
            dataset = add(engine, artifacts, contents, tenant)
            for content in contents:
                key = blob_key(tenant, hashlib.sha256(content).hexdigest())
                assert artifacts.get_bytes(key) == content
            delete(engine, dataset)

    with ThreadPoolExecutor(6) as pool:
        sweeper = pool.submit(sweep)
        try:
            for visitor in [pool.submit(come_and_go, seed) for seed in range(5)]:
                visitor.result()
        finally:
            stop.set()
        sweeper.result()
    while images.sweep():
        pass
    assert files(artifacts) == []


def test_a_dataset_that_is_deleted_while_it_is_stored_leaves_nothing(
    engine: sa.Engine, artifacts: ArtifactStore, images: ImageStore
) -> None:
    dataset = begin(engine)
    done = threading.Event()

    def store_for_ever() -> None:
        number = 0
        while not done.is_set():
            number += 1
            try:
                store_images(engine, artifacts, dataset, [str(number).encode()])
            except (StateConflict, StorageBusy):
                return

    thread = threading.Thread(target=store_for_ever)
    thread.start()
    try:
        while len(files(artifacts)) < 3:
            pass
        delete(engine, dataset)
    finally:
        thread.join(20)
        done.set()
    while images.sweep():
        pass
    artifacts.remove_leftovers(TENANTS, older_than=0)
    assert files(artifacts) == []
