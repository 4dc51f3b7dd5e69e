import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sharpzo_core.errors import (
    CoreError,
    NotFound,
    SettingsError,
    StorageFull,
    StorageUnavailable,
)
from sharpzo_core.storage.artifact_store import ArtifactStore

KEY = "prompts/prm_1.safetensors"


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    if request.param == "local":
        return ArtifactStore.from_url(str(tmp_path / "artifacts"))
    return ArtifactStore.from_url(f"memory://{tmp_path.name}")


def test_bytes_come_back(store: ArtifactStore, tmp_path: Path) -> None:
    assert not store.exists(KEY)
    store.put_bytes(KEY, b"one")
    store.put_bytes(KEY, b"two")
    assert store.get_bytes(KEY) == b"two"
    source = tmp_path / "source"
    source.write_bytes(b"three")
    store.put_file(KEY, source)
    with store.open(KEY) as stream:
        assert stream.read() == b"three"


def test_what_is_missing_is_not_found(store: ArtifactStore) -> None:
    with pytest.raises(NotFound):
        store.get_bytes(KEY)
    with pytest.raises(NotFound), store.open(KEY):
        pass
    store.delete(KEY)
    store.delete_prefix("prompts")


def test_a_prefix_is_deleted_with_what_is_below(store: ArtifactStore) -> None:
    store.put_bytes("datasets/ds_1/images/a.png", b"x")
    store.put_bytes("datasets/ds_2/images/a.png", b"y")
    store.delete_prefix("datasets/ds_1/")
    assert not store.exists("datasets/ds_1/images/a.png")
    assert store.exists("datasets/ds_2/images/a.png")


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a/", ".x", "a\n"])
def test_a_key_never_leaves_the_store(store: ArtifactStore, key: str) -> None:
    with pytest.raises(ValueError, match="not a key"):
        store.put_bytes(key, b"x")


def test_only_a_local_store_has_paths(tmp_path: Path) -> None:
    assert ArtifactStore.from_url(str(tmp_path)).local_path(KEY) == tmp_path / KEY
    assert ArtifactStore.from_url("memory://x").local_path(KEY) is None


@pytest.mark.parametrize(
    ("number", "error"), [(errno.ENOSPC, StorageFull), (errno.EIO, StorageUnavailable)]
)
def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[CoreError]
) -> None:
    store = ArtifactStore.from_url(str(tmp_path))
    store.put_bytes(KEY, b"old")

    def failing(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(error):
        store.put_bytes(KEY, b"new")
    assert store.get_bytes(KEY) == b"old"
    assert [path.name for path in (tmp_path / "prompts").iterdir()] == ["prm_1.safetensors"]


def test_leftovers_of_killed_writers_are_removed(store: ArtifactStore) -> None:
    store.put_bytes(KEY, b"x")
    file = store.local_path(KEY)
    if file is not None:
        file.with_name(".abcd_123.tmp").touch()
    assert store.remove_leftovers("prompts", older_than=0) == (0 if file is None else 1)
    assert store.get_bytes(KEY) == b"x"


def test_an_unknown_kind_of_store_is_a_wrong_setting() -> None:
    make: Callable[[], ArtifactStore] = lambda: ArtifactStore.from_url("nonsense://x")  # noqa: E731
    with pytest.raises(SettingsError, match="SHARPZO_ARTIFACT_URL"):
        make()


def test_many_files_are_synced_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, synced = ArtifactStore.from_url(str(tmp_path)), list[int]()
    fsync = os.fsync

    def counting(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", counting)
    for number in range(3):
        store.put_bytes(f"datasets/ds_1/{number}.jpg", b"image", sync=False)
    new_folders = 2
    assert len(synced) == new_folders
    store.sync("datasets/ds_1")
    files = {path.stat().st_ino for path in (tmp_path / "datasets" / "ds_1").iterdir()}
    assert files < set(synced)
