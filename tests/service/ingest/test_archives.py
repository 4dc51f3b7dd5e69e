from __future__ import annotations

import gzip
import io
import random
import struct
import tarfile
import unicodedata
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.ingest import archive_reader
from sharpzo_core.errors import ArchiveError, CoreError
from sharpzo_core.settings import Settings
from sharpzo_core.storage.archives import ArchiveKind, Limits, check, names, safe_path, sniff, walk
from tests.service.conftest import Members, dataset_members, tar_of, zip_of
from tests.service.ingest import crafted
from tests.service.ingest.crafted import Entry, zip_with


def read_all(path: Path, limits: Limits | None = None) -> Members:
    return {member.path: member.read() for member in walk(path, sniff(path), limits)}


def fault(tmp_path: Path, archive: bytes, limits: Limits | None = None) -> tuple[int, str]:
    path = tmp_path / "archive"
    path.write_bytes(archive)
    with pytest.raises(ArchiveError) as caught:
        read_all(path, limits)
    assert [p.name for p in tmp_path.iterdir()] == ["archive"]
    return caught.value.status, caught.value.code


@pytest.mark.parametrize("kind", list(ArchiveKind))
def test_members_come_back_whole(tmp_path: Path, kind: ArchiveKind) -> None:
    members = dict(dataset_members())
    archives = {
        ArchiveKind.ZIP: zip_of(members),
        ArchiveKind.TAR: tar_of(members),
        ArchiveKind.TAR_GZ: tar_of(members, "w:gz"),
    }
    path = tmp_path / "a"
    path.write_bytes(archives[kind])
    assert sniff(path) is kind
    assert read_all(path) == members


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "a/../../x",
        "/etc/passwd",
        "C:\\x",
        "C:/x",
        "..\\..\\x",
        "\\\\host\\s",
        "a\nb",
        "a\x00b",
        "a\u202eb",
        "a\udcffb",
        "x" * 300,
        "a/" * 600,
    ],
)
def test_unsafe_names(name: str) -> None:
    with pytest.raises(ArchiveError) as caught:
        safe_path(name)
    assert caught.value.code == "archive_unsafe_path"


@pytest.mark.parametrize(
    ("name", "path"),
    [("./a/b.png", "a/b.png"), ("a//b/", "a/b"), ("a b/ü.png", "a b/ü.png"), ("..a/b", "..a/b")],
)
def test_safe_names(name: str, path: str) -> None:
    assert safe_path(name) == path


@pytest.mark.parametrize("make", [zip_of, tar_of])
@pytest.mark.parametrize("other", ["a/X.png", "a/./x.png"])
def test_names_that_are_equal_somewhere(tmp_path: Path, make: object, other: str) -> None:
    archive = make({"a/x.png": b"1", other: b"2"})  # type: ignore[operator]
    assert fault(tmp_path, archive) == (422, "archive_unsafe_path")


def tar_with(type_: bytes, **changes: object) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        info = tarfile.TarInfo("a/entry")
        info.type = type_
        for name, value in changes.items():
            setattr(info, name, value)
        archive.addfile(info)
    return file.getvalue()


@pytest.mark.parametrize(
    "archive",
    [
        tar_with(tarfile.SYMTYPE, linkname="/etc/passwd"),
        tar_with(tarfile.LNKTYPE, linkname="../x"),
        tar_with(tarfile.CHRTYPE),
        tar_with(tarfile.BLKTYPE),
        tar_with(tarfile.FIFOTYPE),
        tar_with(tarfile.REGTYPE, mode=0o4755),
        tar_with(b"Z"),
    ],
    ids=["symlink", "hard link", "character device", "block device", "fifo", "setuid", "unknown"],
)
def test_tar_entries_that_are_no_plain_files(tmp_path: Path, archive: bytes) -> None:
    assert fault(tmp_path, archive) == (422, "archive_unsafe_entry")


def test_a_symlink_in_a_zip(tmp_path: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    assert fault(tmp_path, file.getvalue()) == (422, "archive_unsafe_entry")


def patched(archive: bytes, signature: bytes, offset: int, value: bytes) -> bytes:
    """Overwrite a field of every zip header with this signature."""
    data = bytearray(archive)
    place = data.find(signature)
    while place >= 0:
        data[place + offset : place + offset + len(value)] = value
        place = data.find(signature, place + 1)
    return bytes(data)


LOCAL, CENTRAL = b"PK\x03\x04", b"PK\x01\x02"


def test_encrypted_zips(tmp_path: Path) -> None:
    archive = patched(zip_of({"a": b"x"}), CENTRAL, 8, struct.pack("<H", 1))
    assert fault(tmp_path, archive) == (422, "archive_encrypted")


@pytest.mark.parametrize("method", [9, 12, 14, 93, 99])
def test_other_compressions(tmp_path: Path, method: int) -> None:
    archive = patched(zip_of({"a": b"x"}), CENTRAL, 10, struct.pack("<H", method))
    assert fault(tmp_path, archive) == (422, "archive_unsupported")


def test_overlapping_members(tmp_path: Path) -> None:
    archive = zip_of({"a": bytes(1000), "b": bytes(1000)})
    assert fault(tmp_path, patched(archive, CENTRAL, 42, bytes(4))) == (413, "archive_bomb")


@pytest.mark.parametrize("make", [zip_of, lambda members: tar_of(members, "w:gz")])
def test_a_high_ratio_is_a_bomb(tmp_path: Path, make: object) -> None:
    archive = make({f"{i}": bytes(20 << 20) for i in range(2)})  # type: ignore[operator]
    assert len(archive) < 100_000
    assert fault(tmp_path, archive) == (413, "archive_bomb")


def test_what_the_headers_claim_does_not_count(tmp_path: Path) -> None:
    archive = zip_of({"a": bytes(1 << 20)})
    small = struct.pack("<I", 10)
    lying = patched(patched(archive, CENTRAL, 24, small), LOCAL, 22, small)
    status, code = fault(tmp_path, lying, Limits(member_bytes=1000))
    assert (status, code) in ((413, "archive_bomb"), (422, "archive_corrupt"))


def test_limits(tmp_path: Path) -> None:
    archive = zip_of({str(i): b"x" * 100 for i in range(10)})
    assert fault(tmp_path, archive, Limits(members=9)) == (422, "too_many_files")
    assert fault(tmp_path, archive, Limits(unpacked_bytes=950)) == (413, "archive_bomb")
    assert fault(tmp_path, archive, Limits(member_bytes=99)) == (413, "archive_bomb")
    empty_files = tar_of(dict.fromkeys(map(str, range(50)), b""))
    assert fault(tmp_path, empty_files, Limits(members=49)) == (422, "too_many_files")


def test_headers_that_would_fill_the_memory(tmp_path: Path) -> None:
    huge = tarfile.TarInfo("././@LongLink")
    huge.type, huge.size = tarfile.GNUTYPE_LONGNAME, 8 << 20
    archive = huge.tobuf(tarfile.GNU_FORMAT) + bytes(9 << 20)
    assert fault(tmp_path, archive) == (422, "archive_corrupt")


def test_a_negative_size(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a")
    info.size = -512
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    assert fault(tmp_path, bytes(header) + bytes(10240))[0] in (413, 422)


@pytest.mark.parametrize("make", [zip_of, tar_of, lambda members: tar_of(members, "w:gz")])
def test_damaged_archives_raise_nothing_else(tmp_path: Path, make: object) -> None:
    """Cut and flipped archives: members, or one of our errors."""
    good: bytes = make(dataset_members(1))  # type: ignore[operator]
    rng = random.Random(1)
    path = tmp_path / "a"
    for _ in range(150):
        data = bytearray(good[: rng.randrange(1, len(good))] if rng.random() < 0.3 else good)
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            read_all(path)
        except CoreError as error:
            assert error.status in (413, 415, 422)  # noqa: PT017 - some mutants are harmless


def test_limits_are_those_of_the_documentation() -> None:
    text = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()
    section = text.partition("## Datasets on their way in")[2].partition("\n## ")[0]
    limits, settings = Limits(), Settings()
    for words in (
        f"| files and folders in it | {limits.members:,} |",
        f"| unpacked, in all | {limits.unpacked_bytes >> 30} GiB |",
        f"| unpacked, one file | {limits.member_bytes >> 20} MiB |",
        (
            f"| {limits.ratio}, beyond {limits.free_bytes >> 20} MiB in all and "
            f"{limits.free_member_bytes >> 20} MiB each |"
        ),
        (
            f"{names.MAX_PATH:,} characters, {names.MAX_COMPONENT} bytes between slashes, "
            f"{names.MAX_DEPTH} folders; {limits.name_bytes >> 20} MiB for all names"
        ),
        f"{archive_reader.MAX_JSON_BYTES >> 20} MiB together",
        f"({settings.max_upload_bytes >> 30} GiB)",
        f"({settings.max_image_pixels:,})",
        f"({settings.decode_seconds:g})",
    ):
        assert words in section


def test_a_gzip_file_that_is_no_tar(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(gzip.compress(b"hello" * 1000))
    with pytest.raises(CoreError) as caught:
        sniff(path)
    assert caught.value.code == "unsupported_media_type"


PARTS = st.text(
    st.characters(categories=["L", "N"], exclude_characters="\u0131"), min_size=1, max_size=8
)
TREES = st.dictionaries(
    st.lists(PARTS, min_size=1, max_size=4).map(lambda parts: "/".join(parts) + ".png"),
    st.binary(max_size=3000),
    min_size=1,
    max_size=8,
)


def packed(kind: ArchiveKind, members: Members) -> bytes:
    if kind is ArchiveKind.ZIP:
        return zip_of(members)
    return tar_of(members, "w:gz" if kind is ArchiveKind.TAR_GZ else "w")


@given(members=TREES, kind=st.sampled_from(ArchiveKind))
def test_what_is_packed_comes_out(members: Members, kind: ArchiveKind) -> None:
    folded = {unicodedata.normalize("NFC", name).casefold() for name in members}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        path.write_bytes(packed(kind, members))
        assert sniff(path) is kind
        try:
            found = read_all(path)
        except ArchiveError as error:
            assert error.code == "archive_unsafe_path"  # noqa: PT017 - some trees are not safe
            assert len(folded) < len(members) or any(map(is_unsafe, members))
        else:
            assert found == members


def is_unsafe(name: str) -> bool:
    try:
        return safe_path(name) != name
    except ArchiveError:
        return True


@given(
    members=TREES,
    kind=st.sampled_from(ArchiveKind),
    changes=st.lists(st.tuples(st.integers(0), st.binary(min_size=1, max_size=8)), max_size=6),
    cut=st.none() | st.integers(0),
)
def test_whatever_is_changed_has_an_answer(
    members: Members, kind: ArchiveKind, changes: list[tuple[int, bytes]], cut: int | None
) -> None:
    data = bytearray(packed(kind, members))
    for place, piece in changes:
        start = place % len(data)
        data[start : start + len(piece)] = piece[: len(data) - start]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        path.write_bytes(data if cut is None else data[: cut % len(data)])
        try:
            check(path)
            read_all(path)
        except CoreError as error:
            assert error.status in (413, 415, 422)  # noqa: PT017 - some changes are harmless


def test_a_zip64_archive_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(zip_with(Entry(b"a/1.png", b"x" * 100), zip64=True))
    assert read_all(path) == {"a/1.png": b"x" * 100}
    with zipfile.ZipFile(path, "w") as archive, archive.open("b.png", "w", force_zip64=True) as f:
        f.write(b"y" * 1000)
    assert read_all(path) == {"b.png": b"y" * 1000}


def test_names_without_the_flag_for_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(zip_with(Entry("ü.png".encode()), Entry("ü2.png".encode("cp437"))))
    assert list(read_all(path)) == ["ü.png", "ü2.png"]


def test_long_names_in_tars(tmp_path: Path) -> None:
    name = "/".join(["x" * 100] * 9) + ".png"
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = tmp_path / "a"
        with tarfile.open(path, "w", format=form) as archive:
            info = tarfile.TarInfo(name)
            info.size = 3
            archive.addfile(info, io.BytesIO(b"abc"))
        assert read_all(path) == {name: b"abc"}


def test_several_gzip_streams_are_one(tmp_path: Path) -> None:
    whole = tar_of(dataset_members())
    path = tmp_path / "a"
    pieces = [whole[start : start + 3000] for start in range(0, len(whole), 3000)]
    path.write_bytes(b"".join(map(gzip.compress, pieces)) + bytes(100))
    assert read_all(path) == dataset_members()


def test_folders_are_members_where_they_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(zip_with(Entry(b"a/"), Entry(b"a/1.png", b"x")))
    assert [m.path for m in walk(path, ArchiveKind.ZIP, folders=True)] == ["a/", "a/1.png"]
    path.write_bytes(crafted.tar_with(crafted.tar_header("a/", tarfile.DIRTYPE)))
    assert [m.path for m in walk(path, ArchiveKind.TAR, folders=True)] == ["a/"]


def test_a_large_member_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    data = random.Random(0).randbytes(3 << 20)
    for kind in ArchiveKind:
        path = tmp_path / "a"
        path.write_bytes(packed(kind, {"a.png": data}))
        (member,) = walk(path, kind)
        with pytest.raises(ValueError, match="closed"):
            next(iter(member.chunks()))  # its archive is closed behind the last member
        sizes = [len(chunk) for m in walk(path, kind) for chunk in m.chunks()]
        assert sum(sizes) == len(data)
        assert max(sizes) <= 256 << 10
