"""The children that decode, killed, hung and lied to."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from service.ingest.decoding import decoders as module
from service.ingest.decoding.decoders import Decoders, DecodeRules, DecodingLost
from service.ingest.decoding.frames import (
    ANSWER,
    LENGTH,
    SIDE,
    BrokenFrame,
    answer,
    read_answer,
    read_file,
)
from sharpzo_engine.data.images import Inspection, decode_image, inspect_image
from sharpzo_engine.errors import ImageError
from tests.helpers import eventually
from tests.service.conftest import png

RULES = DecodeRules(processes=2, seconds=5, max_pixels=50_000_000)
Found = Inspection | ImageError


def noise(size: tuple[int, int], kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.effect_noise(size, 80).convert("RGB").save(stream, kind, **options)
    return stream.getvalue()


def decode_all(images: list[bytes], rules: DecodeRules = RULES, side: int = 0) -> list[Found]:
    """Results in the order of the images."""
    found: dict[int, Found] = {}
    with Decoders(rules) as decoders:
        for index, data in enumerate(images):
            chunks = (data[start : start + 1000] for start in range(0, len(data), 1000))
            decoders.decode(chunks, side, lambda result, index=index: found.update({index: result}))
        decoders.finish()
    return [found[index] for index in range(len(images))]


@pytest.mark.parametrize("processes", [1, 3])
def test_every_image_gets_its_own_result(processes: int) -> None:
    images = [noise((10 + index, 20), kind) for index in range(12) for kind in ("JPEG", "PNG")]
    images[7] = b"no image"
    found = decode_all(images, DecodeRules(processes, 5, 10_000))
    assert isinstance(found[7], ImageError)
    for index, result in enumerate(found):
        if index != 7:
            assert isinstance(result, Inspection)
            assert (result.width, result.height) == (10 + index // 2, 20)
            assert result.format == ("JPEG", "PNG")[index % 2]


def test_thumbnails_are_upright_and_small() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    left_red = Image.new("RGB", (400, 200), "white")
    left_red.paste("red", (0, 0, 100, 200))
    stream = io.BytesIO()
    left_red.save(stream, "JPEG", exif=exif)
    (found,) = decode_all([stream.getvalue()], side=64)
    assert isinstance(found, Inspection)
    assert (found.width, found.height) == (200, 400)
    assert found.thumbnail is not None
    assert found.thumbnail.size == (32, 64)
    red, green, _ = found.thumbnail.getpixel((16, 4))  # type: ignore[misc]
    assert red > 200 > 100 > green


KINDS = [
    noise((64, 48), "JPEG"),
    noise((64, 48), "JPEG", progressive=True),
    noise((64, 48), "PNG"),
    noise((64, 48), "WEBP"),
]


@given(data=st.data())
def test_inspecting_agrees_with_decoding(data: st.DataObject) -> None:
    """Whatever is changed in an image: what is accepted here can be decoded later."""
    image = bytearray(data.draw(st.sampled_from(KINDS)))
    for _ in range(data.draw(st.integers(0, 6))):
        image[data.draw(st.integers(0, len(image) - 1))] = data.draw(st.integers(0, 255))
    content = bytes(image[: data.draw(st.integers(0, len(image)))])
    side = data.draw(st.sampled_from([0, 8]))
    assert decoded(content) == inspected(content, side)


def decoded(content: bytes) -> tuple[int, int] | str:
    try:
        return decode_image(content, 10_000).size
    except ImageError as error:
        return error.code


def inspected(content: bytes, side: int) -> tuple[int, int] | str:
    try:
        found = inspect_image(content, 10_000, side)
    except ImageError as error:
        return error.code
    return found.width, found.height


class Stubborn:
    """Chunks of an image, of which the last one comes when something else has happened."""

    def __init__(self, data: bytes, meanwhile: Any) -> None:
        self.data, self.meanwhile = data, meanwhile

    def __iter__(self) -> Iterator[bytes]:
        yield self.data[:10]
        self.meanwhile()
        yield self.data[10:]


def children_of_this_process() -> list[int]:
    paths = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return [int(pid) for path in paths for pid in path.read_text().split()]


def test_a_child_that_is_killed_in_the_middle_of_an_image_costs_that_image() -> None:
    before = set(children_of_this_process())
    found: list[Found] = []
    with Decoders(DecodeRules(1, 5, 10_000)) as decoders:
        decoders.decode([png()], 0, found.append)
        decoders.finish()
        (child,) = set(children_of_this_process()) - before
        kill = Stubborn(png(), lambda: os.kill(child, signal.SIGKILL))
        decoders.decode(kill, 0, found.append)
        decoders.decode([png()], 0, found.append)
        decoders.finish()
        (successor,) = set(children_of_this_process()) - before
        assert successor != child
    assert [type(result) for result in found] == [Inspection, ImageError, Inspection]
    assert set(children_of_this_process()) == before


def test_a_child_that_hangs_is_ended() -> None:
    before = set(children_of_this_process())
    found: list[Found] = []
    large = noise((2000, 2000), "PNG")  # more than a pipe holds
    with Decoders(DecodeRules(1, 1, 10_000)) as decoders:
        decoders.decode([png()], 0, found.append)
        decoders.finish()
        (child,) = set(children_of_this_process()) - before
        os.kill(child, signal.SIGSTOP)
        began = time.monotonic()
        decoders.decode([large], 0, found.append)
        decoders.finish()
        assert time.monotonic() - began < 15  # it would not end by itself
    assert isinstance(found[1], ImageError)


def test_archives_whose_images_kill_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LOSSES", 3)
    found: list[Found] = []

    def kill() -> None:
        decoders._children[0].kill()  # whichever it is by then

    def kill_again_and_again() -> None:
        for _ in range(10):
            decoders.decode(Stubborn(png(), kill), 0, found.append)

    with Decoders(DecodeRules(1, 5, 10_000)) as decoders, pytest.raises(DecodingLost):
        kill_again_and_again()
    assert len(found) == 3


def test_a_child_that_is_killed_before_it_has_an_image_costs_none() -> None:
    found: list[Found] = []
    with Decoders(DecodeRules(2, 5, 10_000)) as decoders:
        for child in decoders._children:
            child.kill()
        for _ in range(4):
            decoders.decode([png()], 0, found.append)
        decoders.finish()
    assert [type(result) for result in found] == [Inspection] * 4


def test_children_that_cannot_start_are_a_fault_of_the_service(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_LOSSES", 3)
    monkeypatch.setattr(module.sys, "executable", "/bin/false")
    match = "crash at startup"
    with Decoders(DecodeRules(1, 5, 10_000)) as decoders, pytest.raises(RuntimeError, match=match):
        decoders.decode([png()], 0, lambda _: None)


def test_an_image_that_cannot_be_read_to_its_end_is_forgotten() -> None:
    def cut() -> Iterator[bytes]:
        yield png()[:20]
        raise ValueError

    found: list[Found] = []
    with Decoders(DecodeRules(1, 5, 10_000)) as decoders:
        with pytest.raises(ValueError):  # noqa: PT011
            decoders.decode(cut(), 0, found.append)
        decoders.decode([png()], 0, found.append)
        decoders.finish()
    (result,) = found
    assert isinstance(result, Inspection)


def test_a_file_beyond_the_limit_is_not_read() -> None:
    (found,) = decode_all([bytes(3000)], DecodeRules(1, 5, 10_000, max_bytes=2000))
    assert isinstance(found, ImageError)


def test_too_much_memory_is_the_images_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DecodeRules, "memory", 160 << 20)
    large, small = noise((5000, 5000), "PNG", compress_level=1)[:], png()
    rules = DecodeRules(1, 20, 50_000_000, max_bytes=128 << 20)
    found = decode_all([small, large, small], rules)
    assert [type(result) for result in found] == [Inspection, ImageError, Inspection]


@pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux has them")
def test_a_child_can_open_nothing_and_grow_nothing(tmp_path: Path) -> None:
    script = """
import os, signal, socket, sys
from service.ingest.decoding.child import _warm_up
from service.ingest.decoding.confinement import confine
_warm_up()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
confine(1 << 30, 3)
def allowed(call):
    try:
        call()
    except (OSError, MemoryError):
        return False
    return True
attempts = {
    "read a file": lambda: os.open("/etc/hostname", os.O_RDONLY),
    "make a file": lambda: os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY),
    "open a socket": lambda: socket.socket(),
    "open a pipe": os.pipe,
    "copy a descriptor": lambda: os.dup(1),
    "grow a file": lambda: os.write(1, b"x"),
    "take two gigabytes": lambda: bytearray(2 << 30),
}
names = [name for name, call in attempts.items() if allowed(call)]
os.write(2, ",".join(names).encode())
"""
    with (tmp_path / "out").open("wb") as out:
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "made")],
            stdout=out,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            check=True,
        )
    assert done.stderr == b""
    assert not (tmp_path / "made").exists()
    assert (tmp_path / "out").stat().st_size == 0


def test_a_child_knows_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARPZO_DATABASE_URL", "postgresql://user:secret@host/db")
    before = set(children_of_this_process())
    with Decoders(DecodeRules(1, 5, 10_000)) as decoders:
        decoders.decode([png()], 0, lambda _: None)
        decoders.finish()
        (child,) = set(children_of_this_process()) - before
        environment = Path(f"/proc/{child}/environ").read_bytes()
    assert b"secret" not in environment
    assert b"PYTHONPATH" in environment


def test_a_child_ends_with_the_process_that_made_it(tmp_path: Path) -> None:
    script = """
import sys, time
from service.ingest.decoding.decoders import Decoders, DecodeRules
decoders = Decoders(DecodeRules(2, 5, 10_000))
decoders.decode([b"x"], 0, lambda _: None)
decoders.finish()
print(*(child._process.pid for child in decoders._children), flush=True)
time.sleep(60)
"""
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        pids = parent.stdout.readline().split()
        assert len(pids) == 2
        parent.kill()
    eventually(lambda: not any(is_running(int(pid)) for pid in pids))


def is_running(pid: int) -> bool:
    try:
        return "Z (zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_two_threads_may_decode_side_by_side() -> None:
    results: list[list[Found]] = []
    threads = [
        threading.Thread(target=lambda: results.append(decode_all([png()] * 20))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(found) for found in results] == [20, 20]


# --- frames


@given(st.binary(max_size=200))
def test_any_answer_is_read_or_refused(data: bytes) -> None:
    try:
        facts, pixels = read_answer(io.BytesIO(data).read)
    except BrokenFrame:
        return
    assert isinstance(facts, dict)
    assert len(pixels) <= len(data)


@given(st.binary(max_size=200))
def test_any_request_is_read_or_refused(data: bytes) -> None:
    try:
        request = read_file(io.BytesIO(data).read, 100)
    except BrokenFrame:
        return
    assert request is None or request[1] is None or len(request[1]) <= 100


@pytest.mark.parametrize(
    "sent",
    [
        ANSWER.pack(1 << 30, 0),
        ANSWER.pack(2, 1 << 30) + b"{}",
        ANSWER.pack(2, 0) + b"[]",
        ANSWER.pack(9, 0) + b"not JSON!",
        answer({"width": 1, "height": 1})[:-1],
    ],
)
def test_broken_answers(sent: bytes) -> None:
    with pytest.raises(BrokenFrame):
        read_answer(io.BytesIO(sent).read)


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"code": "made_up", "message": "x"},
        {"code": "image_too_large", "message": "a\x1b[2Jb"},
        {"code": "image_too_large", "message": "x" * 1000},
        {"width": -1, "height": 1, "format": "PNG"},
        {"width": 1, "height": 1, "format": "GIF"},
        {"width": "1", "height": 1, "format": "PNG"},
        {"width": 1, "height": 1, "format": "PNG", "thumbnail": [2, 2]},
        {"width": 1, "height": 1, "format": "PNG", "thumbnail": [-1, -1]},
        {"width": 1, "height": 1, "format": "PNG", "thumbnail": "x"},
    ],
)
def test_answers_that_make_no_sense(facts: dict[str, Any]) -> None:
    with pytest.raises(BrokenFrame):
        module._checked(*read_answer(io.BytesIO(answer(facts, b"123")).read))


def test_requests_have_bounds() -> None:
    chunk = LENGTH.pack(60) + bytes(60)
    with pytest.raises(BrokenFrame):
        read_file(io.BytesIO(SIDE.pack(0) + chunk + chunk).read, 100)
    with pytest.raises(BrokenFrame):
        read_file(io.BytesIO(SIDE.pack(0) + chunk).read, 100)
