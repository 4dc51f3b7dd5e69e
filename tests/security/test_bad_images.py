"""Images that are meant to do harm, within a dataset that is sound otherwise."""

from __future__ import annotations

import io
import os
import signal
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from tests.security.watched import ANSWER_SECONDS, GROWTH_MIB, Outcome, Watched, watched_server
from tests.service.conftest import dataset_members, zip_of
from tests.service.ingest.crafted import Entry, tar_file, tar_with, zip_with

MIB = 1 << 20
Make = Callable[[], bytes]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with watched_server(tmp_path_factory.mktemp("hostile")) as server:
        yield server


def upload(watched: Watched, image: bytes, kind: str = "zip", **fields: str) -> Outcome:
    members = {**dataset_members(), "train/cat/x.png": image}
    if kind == "zip":
        archive = zip_with(*(Entry(name.encode(), data) for name, data in members.items()))
    else:
        archive = tar_with(*(tar_file(name, data) for name, data in members.items()))
    outcome = watched.upload(archive, **fields)
    assert outcome.status == 202
    assert outcome.seconds < ANSWER_SECONDS
    assert outcome.growth < GROWTH_MIB
    return outcome


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_head(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    fields = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", fields)


def png_of(width: int, height: int, *before: bytes) -> bytes:
    """A whole file of black, one bit a pixel, with chunks before the picture."""
    row = b"\0" + bytes((width + 7) // 8)
    packer = zlib.compressobj(9)
    body = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    head = png_head(width, height, 1, 0)
    return head + b"".join(before) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def text_bomb(kind: bytes, size: int) -> bytes:
    return png_of(8, 8, chunk(kind, b"a\0\0" + zlib.compress(bytes(size), 9)))


def many_text_chunks() -> bytes:
    return png_of(8, 8, *[chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(900_000), 9))] * 80)


NOISE = Image.effect_noise((200, 200), 90).convert("RGB")
JPEG, PNG, WEBP = (encoded(NOISE, kind) for kind in ("JPEG", "PNG", "WEBP"))

BAD: dict[str, tuple[Make, str]] = {
    "nothing": (lambda: b"", "image_undecodable"),
    "JPEG, its beginning": (lambda: JPEG[:30], "image_undecodable"),
    "PNG, its beginning": (lambda: png_head(8, 8), "image_undecodable"),
    "JPEG, cut": (lambda: JPEG[:2000], "image_undecodable"),
    "PNG, cut": (lambda: PNG[:2000], "image_undecodable"),
    "WebP, cut": (lambda: WEBP[:2000], "image_undecodable"),
    "JPEG, tables changed": (lambda: JPEG[:180] + b"\xff" * 60 + JPEG[240:], "image_undecodable"),
    "PNG, a bit changed": (
        lambda: PNG[:500] + bytes([PNG[500] ^ 1]) + PNG[501:],
        "image_undecodable",
    ),
    "30,000 x 30,000": (lambda: png_head(30_000, 30_000) + chunk(b"IDAT", b""), "image_too_large"),
    "12,000 x 12,000, whole": (lambda: png_of(12_000, 12_000), "image_too_large"),
    "largest PNG": (
        lambda: png_head(2**31 - 1, 2**31 - 1) + chunk(b"IDAT", b""),
        "image_too_large",
    ),
    "64 MiB of text": (lambda: text_bomb(b"zTXt", 64 * MIB), "image_undecodable"),
    "64 MiB of profile": (lambda: text_bomb(b"iCCP", 64 * MIB), "image_undecodable"),
    "many texts": (many_text_chunks, "image_undecodable"),
    "EPS": (lambda: encoded(NOISE, "EPS"), "image_format_not_allowed"),
    "TIFF": (lambda: encoded(NOISE, "TIFF"), "image_format_not_allowed"),
    "GIF": (lambda: encoded(NOISE, "GIF"), "image_format_not_allowed"),
    "BMP": (lambda: encoded(NOISE, "BMP"), "image_format_not_allowed"),
    "SVG": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image_format_not_allowed"),
    "PSD": (lambda: b"8BPS\0\1" + bytes(100), "image_format_not_allowed"),
    "FITS": (lambda: b"SIMPLE  =" + b" " * 3000, "image_format_not_allowed"),
    "GD": (lambda: b"\xff\xfe\0\1" + bytes(2000), "image_format_not_allowed"),
}


@pytest.mark.bad_input("I1")
@pytest.mark.bad_input("I2")
@pytest.mark.bad_input("I3")
@pytest.mark.bad_input("I4")
@pytest.mark.parametrize(("make", "code"), BAD.values(), ids=BAD)
def test_bad_images_fail_a_dataset(watched: Watched, make: Make, code: str) -> None:
    image = make()
    for kind in ("zip", "tar"):
        outcome = upload(watched, image, kind)
        assert outcome.code == code
        listed = outcome.dataset["report"]["unreadable"]["listed"]
        assert [(item["file"], item["code"]) for item in listed] == [("train/cat/x.png", code)]
        watched.assert_nothing_left()


@pytest.mark.parametrize(("make", "code"), BAD.values(), ids=BAD)
def test_bad_images_without_labels_are_listed(watched: Watched, make: Make, code: str) -> None:
    outcome = upload(watched, make(), unlabelled="true")
    assert outcome.code == ""
    assert outcome.dataset["report"]["unreadable_images"] == 1
    assert outcome.dataset["report"]["images"] == len(dataset_members())
    watched.forget(outcome)
    watched.assert_nothing_left()


def animation(frames: int) -> bytes:
    first, *rest = [Image.new("RGB", (16, 16), (index % 256, 0, 0)) for index in range(frames)]
    return encoded(first, "WEBP", save_all=True, append_images=rest, duration=10, lossless=True)


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 8
    return encoded(NOISE, "JPEG", exif=exif)


def with_text() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("a", "<script>alert(1)</script>", zip=True)
    return encoded(NOISE, "PNG", pnginfo=info)


GOOD: dict[str, Make] = {
    "10,000 frames": lambda: animation(10_000),
    "CMYK": lambda: encoded(NOISE.convert("CMYK"), "JPEG"),
    "16 bits": lambda: encoded(Image.new("I;16", (50, 50), 40_000), "PNG"),
    "palette and alpha": lambda: encoded(NOISE.convert("P"), "PNG", transparency=bytes(range(256))),
    "1 bit": lambda: png_of(50, 50),
    "turned": rotated,
    "1 x 1": lambda: encoded(Image.new("RGB", (1, 1)), "PNG"),
    "progressive": lambda: encoded(NOISE, "JPEG", progressive=True),
    "polyglot": lambda: JPEG + b"<html><script>alert(1)</script></html>",
    "text": with_text,
    "just under the cap": lambda: png_of(7_000, 7_000),
}


@pytest.mark.bad_input("I5")
@pytest.mark.bad_input("I6")
@pytest.mark.bad_input("I7")
@pytest.mark.parametrize("make", GOOD.values(), ids=GOOD)
def test_unusual_images_are_taken(watched: Watched, make: Make) -> None:
    outcome = upload(watched, make())
    assert outcome.code == ""
    watched.forget(outcome)
    watched.assert_nothing_left()


def test_a_server_whose_children_are_killed_goes_on(watched: Watched) -> None:
    images = {f"train/{name}/{i}.png": large_png(i) for i in range(60) for name in ("a", "b")}
    archive = zip_with(*(Entry(name.encode(), data) for name, data in images.items()))
    stop = threading.Event()
    killed: set[int] = set()

    def kill() -> None:
        """One child after the other, as long as an archive is read."""
        while not stop.is_set() and len(killed) < 5:
            for pid in watched.decoders() - killed:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed.add(pid)
                stop.wait(0.3)
            stop.wait(0.01)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        outcome = watched.upload(archive)
    finally:
        stop.set()
        killer.join()
    assert killed
    if outcome.code:  # else they had no image at that moment
        assert outcome.code == "image_undecodable"
        listed = outcome.dataset["report"]["unreadable"]["listed"]
        assert len(listed) <= len(killed)
        assert all("crashes the process" in item["reason"] for item in listed)
    watched.forget(outcome)
    watched.assert_nothing_left()
    after = watched.upload(zip_of(dataset_members()))
    assert after.code == ""
    watched.forget(after)


def large_png(seed: int) -> bytes:
    return encoded(Image.effect_noise((600, 600), 10 + seed), "PNG")


def test_one_dataset_may_have_all_kinds_of_bad_images(watched: Watched) -> None:
    members = dict(dataset_members())
    members |= {f"train/dog/{index}.jpg": make() for index, (make, _) in enumerate(BAD.values())}
    entries = [Entry(name.encode(), data) for name, data in members.items()]
    outcome = watched.upload(zip_with(*entries))
    assert outcome.code == "image_undecodable"
    assert outcome.growth < GROWTH_MIB
    report = outcome.dataset["report"]
    found = {item["file"]: item["code"] for item in report["unreadable"]["listed"]}
    assert found == {f"train/dog/{i}.jpg": code for i, (_, code) in enumerate(BAD.values())}
    watched.assert_nothing_left()
