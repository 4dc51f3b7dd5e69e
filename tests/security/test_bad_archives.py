"""Archives that are meant to do harm, sent to a real server over a real socket.

Every one of them is answered within two seconds, costs the server no more than 64 MiB, gets the
code that it should, and leaves no file behind.
"""

from __future__ import annotations

import gzip
import io
import random
import tarfile
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from functools import cache

import pytest

from tests.security.watched import ANSWER_SECONDS, GROWTH_MIB, Outcome, Watched, watched_server
from tests.service.conftest import dataset_members, png, tar_of, zip_of
from tests.service.ingest.crafted import (
    DEFLATED,
    Entry,
    deflated,
    empty_members,
    ending,
    listed_often,
    pax,
    tar_file,
    tar_files,
    tar_header,
    tar_with,
    with_checksum,
    zip_with,
)

MIB = 1 << 20
Make = Callable[[], bytes]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with watched_server(tmp_path_factory.mktemp("hostile")) as server:
        yield server


def assert_refused(watched: Watched, archive: bytes, status: int, code: str) -> Outcome:
    """At once with this status, or afterwards with this code."""
    outcome = watched.upload(archive)
    assert outcome.code == code
    assert outcome.status in (status, 202)
    assert outcome.seconds < ANSWER_SECONDS
    assert outcome.growth < GROWTH_MIB
    if outcome.status == 202:
        assert outcome.dataset["status"] == "failed"
        watched.forget(outcome)
    watched.assert_nothing_left()
    return outcome


def assert_refused_at_once(watched: Watched, archive: bytes, status: int, code: str) -> None:
    assert assert_refused(watched, archive, status, code).status == status


OUTSIDE = [
    "../../x",
    "a/../../x",
    "/etc/passwd",
    "C:\\x",
    "C:/x",
    "..\\..\\x",
    "\\\\host\\s",
    "a\nb",
    "a\x1b[2Jb",
    "a\u202eb",
    "x" * 256,
    "/".join(["x" * 247] * 17),  # longer than PATH_MAX
    "/".join(["x"] * 40),
]


@pytest.mark.bad_input("A1")
@pytest.mark.bad_input("A4")
@pytest.mark.parametrize("name", OUTSIDE, ids=range(len(OUTSIDE)))
@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "pax"])
def test_names_that_lead_elsewhere(watched: Watched, name: str, kind: str) -> None:
    good = dict(dataset_members())
    archives: dict[str, Make] = {
        "zip": lambda: zip_with(Entry(b"a/1.png", png()), Entry(name.encode(), png())),
        "tar": lambda: tar_with(tar_header(name)),
        "tar.gz": lambda: gzip.compress(tar_of({**good, name: png()})),
        "pax": lambda: tar_with(pax({"path": name})),
    }
    assert_refused_at_once(watched, archives[kind](), 422, "archive_unsafe_path")


@pytest.mark.bad_input("A14")
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (b"a/x.png", b"a/X.PNG"),
        (b"a/x.png", b"./a//x.png"),
        ("é.png".encode(), unicodedata.normalize("NFD", "é.png").encode()),
        ("straße.png".encode(), b"STRASSE.png"),
    ],
    ids=["case", "dot", "composed", "sharp s"],
)
def test_names_that_are_one_somewhere(watched: Watched, first: bytes, second: bytes) -> None:
    archive = zip_with(Entry(first, b"1"), Entry(second, b"2"))
    assert_refused_at_once(watched, archive, 422, "archive_unsafe_path")
    archive = tar_with(*(tar_file(name.decode(), b"") for name in (first, second)))
    assert_refused_at_once(watched, archive, 422, "archive_unsafe_path")


@pytest.mark.bad_input("A14")
@pytest.mark.parametrize(
    "archive",
    [
        zip_with(Entry(b"a\0b.png", png())),
        zip_with(Entry(b"a\xffb.png", png(), flags=0x800)),
        tar_with(tar_header("a\udcffb.png")),
        tar_with(pax({"path": "a\udcffb.png"})),
        tar_with(pax({"path": "a\0b.png"})),
    ],
    ids=["zip, NUL", "zip, no UTF-8", "tar, no UTF-8", "pax, no UTF-8", "pax, NUL"],
)
def test_names_that_are_no_text(watched: Watched, archive: bytes) -> None:
    assert_refused_at_once(watched, archive, 422, "archive_unsafe_path")


def tar_link(kind: bytes, name: str, target: str) -> bytes:
    return tar_header(name, kind, linkname=target)


ENTRIES = {
    "symlink, then through it": tar_with(
        tar_link(tarfile.SYMTYPE, "a", "/tmp"), tar_file("a/x.png", png())
    ),
    "hard link outside": tar_with(tar_link(tarfile.LNKTYPE, "a", "../../etc/passwd")),
    "hard link forward": tar_with(tar_link(tarfile.LNKTYPE, "a", "b"), tar_file("b", b"")),
    "long link": tar_with(
        tar_header("././@LongLink", tarfile.GNUTYPE_LONGLINK, 600) + b"x" * 600 + bytes(424),
        tar_link(tarfile.SYMTYPE, "a", "x"),
    ),
    "character device": tar_with(tar_header("a", tarfile.CHRTYPE)),
    "block device": tar_with(tar_header("a", tarfile.BLKTYPE)),
    "fifo": tar_with(tar_header("a", tarfile.FIFOTYPE)),
    "setuid": tar_with(tar_header("a", mode=0o4755)),
    "setgid": tar_with(tar_header("a", mode=0o2755)),
    "sparse": tar_with(tar_header("a", tarfile.GNUTYPE_SPARSE)),
    "sparse by pax": tar_with(pax({"GNU.sparse.major": "1", "GNU.sparse.minor": "0"})),
    "of no type": tar_with(tar_header("a", b"Z")),
    "zip, symlink": zip_with(Entry(b"a", b"/etc/passwd", mode=0o120777)),
    "zip, device": zip_with(Entry(b"a", mode=0o020666)),
    "zip, fifo": zip_with(Entry(b"a", mode=0o010666)),
    "zip, setuid": zip_with(Entry(b"a", mode=0o104755)),
    "zip, folder that is a link": zip_with(Entry(b"a/", b"/etc", mode=0o120777)),
}


@pytest.mark.bad_input("A2")
@pytest.mark.bad_input("A3")
@pytest.mark.parametrize("archive", ENTRIES.values(), ids=ENTRIES)
def test_members_that_are_no_files(watched: Watched, archive: bytes) -> None:
    assert_refused_at_once(watched, archive, 422, "archive_unsafe_entry")
    if archive[:2] != b"PK":
        assert_refused_at_once(watched, gzip.compress(archive), 422, "archive_unsafe_entry")


def zeros(size: int) -> Iterator[bytes]:
    return (bytes(MIB) for _ in range(size // MIB))


def deflated_zeros(size: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return b"".join(map(packer.compress, zeros(size))) + packer.flush()


def tar_gz_bomb() -> bytes:
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=9) as stream:
        for index in range(8):
            stream.write(tar_header(f"train/a/{index}.png", size=50 * MIB))
            for chunk in zeros(50 * MIB):
                stream.write(chunk)
    return packed.getvalue()


def padding_bomb() -> bytes:
    """The members are harmless; a gigabyte of zeros follows them."""
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=9) as stream:
        stream.write(tar_of(dataset_members()))
        for chunk in zeros(1024 * MIB):
            stream.write(chunk)
    return packed.getvalue()


def lying(size: int) -> Entry:
    """It says a kilobyte."""
    packed = deflated_zeros(size)
    return Entry(b"train/a/1.png", method=DEFLATED, packed=packed, declared=1000, crc=0)


def honest(size: int, name: bytes = b"train/a/1.png") -> Entry:
    return Entry(name, method=DEFLATED, packed=deflated_zeros(size), declared=size, crc=0)


def with_dataset(*more: Entry) -> bytes:
    """What is before the last member is a sound dataset."""
    good = [Entry(name.encode(), data) for name, data in dataset_members().items()]
    return zip_with(*good, *more)


def overlapping() -> bytes:
    """The body of the first member holds the second, local header and all."""
    inner = Entry(b"train/a/2.png", deflated(bytes(MIB)))
    outer = Entry(b"train/a/1.png", inner.local())
    body = outer.local()
    central = outer.central(0) + inner.central(len(body) - len(inner.local()))
    return body + central + ending(2, len(central), len(body))


BOMBS: dict[str, Make] = {
    "ratio of one member": lambda: zip_with(honest(40 * MIB)),
    "ratio of all members": lambda: zip_with(
        *(honest(3 * MIB, b"train/a/%d.png" % index) for index in range(20))
    ),
    "a member beyond 64 MiB": lambda: zip_with(honest(70 * MIB)),
    "tar.gz, ratio": tar_gz_bomb,
    "tar.gz, behind its end": padding_bomb,
    "declares a kilobyte": lambda: with_dataset(lying(512 * MIB)),
    "one body ten thousand times": lambda: listed_often(
        Entry(b"train/a/00000000.png", bytes(MIB), DEFLATED), 10_000
    ),
    "overlapping bodies": overlapping,
    "tar, a member beyond 64 MiB": lambda: tar_with(tar_header("a.png", size=70 * MIB)),
}


@pytest.mark.bad_input("A5")
@pytest.mark.bad_input("A6")
@pytest.mark.bad_input("A7")
@pytest.mark.parametrize("make", BOMBS.values(), ids=BOMBS)
def test_bombs(watched: Watched, make: Make) -> None:
    assert_refused(watched, make(), 413, "archive_bomb")


@cache
def too_many_in_a_tar() -> bytes:
    return tar_files(map(str, range(100_001)))


MANY: dict[str, Make] = {
    "zip, one too many": lambda: empty_members(100_001),
    "zip, a million": lambda: empty_members(1_000_000),
    "zip that counts wrong": lambda: zip_with(Entry(b"a"))[:-22] + ending(0xFFFE, 47, 31),
    "tar": too_many_in_a_tar,
    "tar.gz": lambda: gzip.compress(too_many_in_a_tar(), 1),
}


@pytest.mark.bad_input("A8")
@pytest.mark.parametrize("make", MANY.values(), ids=MANY)
def test_too_many_members(watched: Watched, make: Make, request: pytest.FixtureRequest) -> None:
    wrong = "counts wrong" in request.node.name
    assert_refused(watched, make(), 422, "archive_corrupt" if wrong else "too_many_files")


def negative(size: int) -> bytes:
    """A header whose size is negative, in base 256."""
    block = bytearray(tar_header("a.png"))
    block[124:136] = (size % 256**12).to_bytes(12)
    return with_checksum(bytes(block))


def mismatched_locator() -> bytes:
    whole = zip_with(Entry(b"a.png", png()))
    central = whole.rindex(b"PK\x01\x02")
    size = len(whole) - 22 - central
    decoy = zip_with(Entry(b"b.png", png()), zip64=True)
    return whole[:-22] + ending(1, size, central, zip64=True, locator=len(decoy) // 2)


GOOD_ZIP, GOOD_TAR = zip_of(dataset_members()), tar_of(dataset_members())
GOOD_GZ = gzip.compress(GOOD_TAR)

DAMAGED: dict[str, bytes] = {
    "nothing": b"",
    "zip, cut": GOOD_ZIP[:-30],
    "zip, its beginning": GOOD_ZIP[: len(GOOD_ZIP) // 2],
    "zip, something behind it": GOOD_ZIP + b"x",
    "zip, something before the directory": GOOD_ZIP[:-22] + b"x" + GOOD_ZIP[-22:],
    "zip, checksum": with_dataset(Entry(b"train/cat/x.png", png(), crc=1)),
    "zip, stream": with_dataset(Entry(b"train/cat/x.png", png(), DEFLATED, packed=b"\xff" * 50)),
    "zip, two names": with_dataset(Entry(b"train/cat/x.png", png(), local_name=b"train/dog/y.png")),
    "zip, more in the stream": with_dataset(
        Entry(b"train/cat/x.png", png(), DEFLATED, packed=deflated(png()) + b"more")
    ),
    "zip64, locator elsewhere": mismatched_locator(),
    "zip64, two counts": zip_with(Entry(b"a.png", png()))[:-22]
    + ending(2, 51, 30 + 5 + len(png()), zip64=True),
    "tar, cut in a file": GOOD_TAR[:1000],
    "tar, no end": tar_file("a.png", png()),
    "tar, checksum": GOOD_TAR[:148] + b"0000000\0" + GOOD_TAR[156:],
    "tar.gz, cut": GOOD_GZ[:-9],
    "tar.gz, its beginning": GOOD_GZ[: len(GOOD_GZ) // 2],
    "tar.gz, checksum": GOOD_GZ[:-8] + b"\0\0\0\0" + GOOD_GZ[-4:],
    "tar, negative size": tar_with(tar_file("b.png", png()), negative(-512)),
    "tar, very negative size": tar_with(tar_file("b.png", png()), negative(-(2**80))),
    "tar, larger than itself": tar_with(tar_header("a.png", size=60 * MIB)),
    "pax, negative size": tar_with(pax({"size": "-1024"})),
    "pax, size of no end": tar_with(pax({"size": "9" * 30})),
    "pax, no length": tar_with(
        tar_header("x", tarfile.XHDTYPE, 10), b"0 path=abc".ljust(512, b"\0")
    ),
    "pax, of all": tar_with(
        tar_header("x", tarfile.XGLTYPE, 11) + b"11 path=ab\n".ljust(512, b"\0"),
        tar_header("a.png"),
    ),
    "headers without end": tar_with(
        *[tar_header("x", tarfile.XHDTYPE, 0)] * 1000, tar_header("a.png")
    ),
    "a long name of its own": tar_with(
        tar_header("././@LongLink", tarfile.GNUTYPE_LONGNAME, 8 * MIB) + bytes(8 * MIB)
    ),
    "gzip without a body": b"\x1f\x8b\x08\x00" + b"x" * 100,
}


@pytest.mark.bad_input("A9")
@pytest.mark.bad_input("A10")
@pytest.mark.parametrize("archive", DAMAGED.values(), ids=DAMAGED)
def test_damaged_archives(watched: Watched, archive: bytes) -> None:
    assert_refused(watched, archive, 422, "archive_corrupt")


@pytest.mark.bad_input("A11")
@pytest.mark.parametrize("flags", [0x1, 0x41, 0x2000])
def test_encrypted_zips(watched: Watched, flags: int) -> None:
    archive = zip_with(Entry(b"a.png", png(), flags=flags))
    assert_refused_at_once(watched, archive, 422, "archive_encrypted")


@pytest.mark.bad_input("A12")
@pytest.mark.parametrize("method", [1, 9, 12, 14, 93, 99])
def test_other_compressions(watched: Watched, method: int) -> None:
    archive = zip_with(Entry(b"a.png", png(), method=method))
    assert_refused_at_once(watched, archive, 422, "archive_unsupported")


@pytest.mark.bad_input("A13")
@pytest.mark.parametrize(
    "archive",
    [
        b"<!doctype html>" * 100,
        b"%PDF-1.7\n" + bytes(2000),
        b"7z\xbc\xaf\x27\x1c" + bytes(2000),
        b"Rar!\x1a\x07\x01\x00" + bytes(2000),
        b"\xfd7zXZ\x00" + bytes(2000),
        png(),
        gzip.compress(b"hello" * 1000),
        zip_with(Entry(b"dataset.tar", GOOD_TAR)),
        tar_with(tar_file("dataset.zip", GOOD_ZIP)),
    ],
    ids=["html", "pdf", "7z", "rar", "xz", "png", "gzip of text", "tar in zip", "zip in tar"],
)
def test_what_is_no_archive_of_ours(watched: Watched, archive: bytes) -> None:
    assert_refused_at_once(watched, archive, 415, "unsupported_media_type")


@pytest.mark.bad_input("A15")
@pytest.mark.parametrize(
    ("members", "findings"),
    [
        ({"readme.txt": b"x"}, {"no_images"}),
        ({"a/1.png": png(), "a/2.png": png()}, {"one_class"}),
        ({"1.png": png(), "2.png": png()}, {"images_at_root"}),
        (
            {"train/a/1.png": png(), "train/b/1.png": png(), "test/A/1.png": png()},
            {"label_mismatch"},
        ),
        (
            {"train/a/1.png": b"x", "train/b/1.png": png(), "test/c/1.png": png()},
            {"label_mismatch", "image_unreadable"},
        ),
    ],
    ids=["no images", "one class", "root", "label", "two at once"],
)
@pytest.mark.parametrize("make", [zip_of, tar_of], ids=["zip", "tar"])
def test_what_is_no_dataset_gets_a_report(
    watched: Watched, members: dict[str, bytes], findings: set[str], make: Callable[..., bytes]
) -> None:
    outcome = assert_refused(watched, make(members), 422, "dataset_layout_invalid")
    report = outcome.dataset["report"]
    assert not report["ok"]
    assert findings <= {found["code"] for found in report["findings"]}


@pytest.mark.bad_input("A15")
def test_an_empty_class_is_noticed(watched: Watched) -> None:
    folders = [Entry(b"train/bird/", mode=0o040755)]
    good = [Entry(name.encode(), data) for name, data in dataset_members().items()]
    outcome = assert_refused(watched, zip_with(*folders, *good), 422, "dataset_layout_invalid")
    assert "empty_class" in {found["code"] for found in outcome.dataset["report"]["findings"]}


@pytest.mark.bad_input("A16")
@pytest.mark.parametrize("make", [zip_of, tar_of], ids=["zip", "tar"])
def test_what_systems_leave_behind_does_no_harm(
    watched: Watched, make: Callable[..., bytes]
) -> None:
    litter = {"__MACOSX/._1.png": b"x", ".DS_Store": b"x", "train/cat/Thumbs.db": b"x"}
    outcome = watched.upload(make({**dataset_members(), **litter}))
    assert (outcome.status, outcome.code) == (202, "")
    assert outcome.dataset["report"]["skipped"] == 3
    watched.forget(outcome)
    watched.assert_nothing_left()


def test_metadata_that_would_fill_the_memory(watched: Watched) -> None:
    dense = b"[" + b"[]," * (4 * MIB) + b"[]]"
    for members in (
        {**dataset_members(), "classnames.json": dense},
        {**dataset_members(), "split_zhou_x.json": dense},
        {**dataset_members()} | {f"{i}/classnames.json": b" " * (9 * MIB) for i in range(9)},
    ):
        entries = [Entry(name.encode(), data) for name, data in members.items()]
        assert_refused(watched, zip_with(*entries), 422, "dataset_layout_invalid")


def test_changed_archives(watched: Watched) -> None:
    """The server outlives what chance makes of good archives."""
    rng = random.Random(0)
    for index in range(60):
        data = bytearray(rng.choice((GOOD_ZIP, GOOD_TAR, GOOD_GZ)))
        for _ in range(rng.randrange(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        outcome = watched.upload(
            bytes(data[: rng.randrange(1, len(data))] if index % 5 == 0 else data)
        )
        assert outcome.status in (202, 413, 415, 422)
        assert outcome.code != "internal_error"
        if outcome.status == 202:
            watched.forget(outcome)
    watched.assert_nothing_left()
