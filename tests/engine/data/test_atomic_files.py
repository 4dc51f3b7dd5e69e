"""A file is the whole old one or the whole new one, whatever happens to its writer."""

import errno
import os
import time
from pathlib import Path

import pytest

from sharpzo_engine.files import remove_leftovers, replacing, sync_tree, write_atomically
from tests.engine.data.dying_writer import RENAMED, STEPS, Death, write_and_die

OLD, NEW = b"old" * 50_000, b"newer" * 50_000


@pytest.mark.parametrize("death", STEPS, ids=str)
def test_a_killed_writer_leaves_the_old_file_or_the_new_one(tmp_path: Path, death: Death) -> None:
    path = tmp_path / "checkpoint.safetensors"
    write_atomically(path, OLD)
    write_and_die(path, NEW, death)
    assert path.read_bytes() == (NEW if STEPS.index(death) >= RENAMED else OLD)
    remove_leftovers(tmp_path, older_than=0)
    assert list(tmp_path.iterdir()) == [path]
    write_atomically(path, NEW)
    assert path.read_bytes() == NEW


class Disk:
    """Its n-th sync fails, once, as that of a disk with a bad sector."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.synced: list[str] = []
        self.failing = 0
        self._fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self._sync)

    def _sync(self, descriptor: int) -> None:
        self.synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        if len(self.synced) == self.failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._fsync(descriptor)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def test_a_failed_sync_is_a_failed_write(tmp_path: Path, disk: Disk) -> None:
    path = tmp_path / "file"
    write_atomically(path, OLD)
    disk.failing = len(disk.synced) + 1
    with pytest.raises(OSError, match="Input/output error"):
        write_atomically(path, NEW)
    assert path.read_bytes() == OLD
    assert list(tmp_path.iterdir()) == [path]
    failed = disk.synced[-1]
    write_atomically(path, NEW)
    assert path.read_bytes() == NEW
    assert disk.synced.count(failed) == 1, "a file that could not be synced was trusted later"


def test_a_folder_that_cannot_be_synced_is_told(tmp_path: Path, disk: Disk) -> None:
    disk.failing = 2
    with pytest.raises(OSError, match="Input/output error"):
        write_atomically(tmp_path / "file", NEW)
    assert (tmp_path / "file").read_bytes() == NEW  # whole, if not for sure durable
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_new_folders_are_synced_into_theirs(tmp_path: Path, disk: Disk) -> None:
    path = tmp_path / "jobs" / "job_1" / "file"
    write_atomically(path, NEW, sync=False)
    assert disk.synced == [str(tmp_path / "jobs"), str(tmp_path)]
    write_atomically(path, OLD, sync=False)
    assert len(disk.synced) == 2
    sync_tree(tmp_path / "jobs")
    assert set(disk.synced[2:]) == {str(tmp_path / "jobs"), str(path.parent), str(path)}


def test_a_writer_that_raises_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        raise_while_replacing(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def raise_while_replacing(path: Path) -> None:
    with replacing(path) as target:
        target.write(b"half")
        raise ZeroDivisionError


def test_leftovers_are_old_and_ours(tmp_path: Path) -> None:
    folder = tmp_path / "below"
    folder.mkdir()
    names = [".abcd_123.tmp", ".abcd_456.tmp", "abcd_123.tmp", ".abcd_123.tmp.png", ".hidden"]
    for name in names:
        (folder / name).touch()
    hour_ago = time.time() - 3601
    for name in names[:1] + names[2:]:
        os.utime(folder / name, (hour_ago, hour_ago))
    assert remove_leftovers(tmp_path) == 1
    assert sorted(path.name for path in folder.iterdir()) == sorted(names[1:])
    assert remove_leftovers(tmp_path, older_than=0) == 1
    assert remove_leftovers(tmp_path / "nothing") == 0


def test_a_write_under_way_keeps_its_file(tmp_path: Path) -> None:
    with replacing(tmp_path / "file") as target:
        target.write(NEW)
        assert remove_leftovers(tmp_path) == 0
    assert (tmp_path / "file").read_bytes() == NEW
