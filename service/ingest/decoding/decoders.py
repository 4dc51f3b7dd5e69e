"""`Decoders`: several child processes that decode one stream of images."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from PIL import Image

from service.ingest.decoding.frames import ABORT, CHUNK, END, LENGTH, SIDE, BrokenFrame, read_answer
from sharpzo_core.errors import CoreError
from sharpzo_core.periodic import Periodic
from sharpzo_engine.data.images import FORMATS, Inspection
from sharpzo_engine.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Done = Callable[[Inspection | ImageError], object]

MIB = 1 << 20
MAX_CHILDREN = 4  # by default; more would wait for the one thread that reads the archive
WATCH_SECONDS = 0.25  # between two checks for late children
START_SECONDS = 30.0  # allowed for a child to start
MAX_LOSSES = 20  # crashed children per archive

_BASE_MEMORY = 192 * MIB  # address space of the interpreter and Pillow
_BYTES_PER_PIXEL = 16  # four channels, a converted copy, and the decoder's own buffers
_PIPE_BYTES = 1 << 20  # writing an image that fits does not block
_SET_PIPE_SIZE = 1031  # F_SETPIPE_SZ of Linux
_CODES = frozenset({"image_undecodable", "image_too_large", "image_format_not_allowed"})
_MAX_MESSAGE = 200  # characters


class DecodingLost(CoreError):  # noqa: N818 - named after what happened
    """The archive's images crashed too many decoding processes (remove the broken images)."""

    status = 422
    code = "image_undecodable"
    title = "Images not accepted"


@dataclass(frozen=True)
class DecodeRules:
    processes: int
    seconds: float  #: Per image, of CPU time and of elapsed time
    max_pixels: int
    max_bytes: int = 64 * MIB  #: Of one file

    @property
    def memory(self) -> int:
        """Bytes of address space per child."""
        return _BASE_MEMORY + 3 * self.max_bytes + _BYTES_PER_PIXEL * self.max_pixels


class Decoders:
    """Distributes images to children; results arrive in any order, in the calling thread.

    Children live for one archive only: one that a malicious image has taken over never sees
    another tenant's images.
    """

    def __init__(self, rules: DecodeRules) -> None:
        self._rules = rules
        self._children = [_Child(rules) for _ in range(rules.processes)]
        self._losses = 0
        self._worked = False  # whether any child ever became ready
        self._watchdog = Periodic("decode watchdog", WATCH_SECONDS, self._kill_late_ones)
        self._watchdog.start()

    def __enter__(self) -> Decoders:
        return self

    def __exit__(self, *_: object) -> None:
        self._watchdog.stop()
        for child in self._children:
            child.end()

    def decode(self, chunks: Iterable[bytes], thumbnail: int, done: Done) -> None:
        """Send an image to the next free child; `done` receives its facts or its error.

        Args:
            chunks: The file's bytes; an exception from them is raised and drops the image.
            thumbnail: Side of a thumbnail in pixels, 0 for none.
            done: Called during this or a later call.

        Raises:
            DecodingLost: too many children crashed.
        """
        self._free().begin(chunks, thumbnail, done)

    def finish(self) -> None:
        """Wait for every image.

        Raises:
            DecodingLost: too many children crashed.
        """
        for child in self._children:
            self._settle(child)

    def _free(self) -> _Child:
        idle = next((child for child in self._children if child.done is None), None)
        if idle is None:
            idle = _first_with_an_answer(self._children)
            self._settle(idle)
        while not (idle.alive and idle.is_ready()):
            if idle.alive:  # it crashed without an image; another child takes this one
                self._lose(idle)
            position = self._children.index(idle)
            idle = self._children[position] = _Child(self._rules)
        self._worked = True
        return idle

    def _settle(self, child: _Child) -> None:
        if child.done is None:
            return
        done, child.done = child.done, None
        result = child.result()
        done(result)
        if not child.alive:
            self._lose(child)

    def _lose(self, child: _Child) -> None:
        child.end()
        self._losses += 1
        if self._losses >= MAX_LOSSES and self._worked:
            raise DecodingLost
        if self._losses >= MAX_LOSSES:
            raise RuntimeError("decoding processes crash at startup")

    def _kill_late_ones(self) -> None:
        now = time.monotonic()
        for child in self._children:
            if child.deadline is not None and now > child.deadline:
                child.kill()


class _Child:
    def __init__(self, rules: DecodeRules) -> None:
        self._rules = rules
        arguments = (rules.max_pixels, rules.max_bytes, round(rules.seconds + 0.5), rules.memory)
        self._process = subprocess.Popen(  # noqa: S603 - our own code
            # Of the environment it gets the way to the code, and no secrets.
            [sys.executable, "-P", "-m", "service.ingest.decoding.child", *map(str, arguments)],
            env=_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=-1,
        )
        assert self._process.stdin is not None  # noqa: S101 - for the type checker
        assert self._process.stdout is not None  # noqa: S101
        self._stdin: BinaryIO = self._process.stdin  # type: ignore[assignment]
        self.stdout: BinaryIO = self._process.stdout  # type: ignore[assignment]
        _widen(self._stdin)
        self._ready = False
        self.alive = True
        self.done: Done | None = None
        self.deadline: float | None = None

    def is_ready(self) -> bool:
        """Wait until it accepts an image; False if it crashed instead."""
        if not self._ready:
            self.deadline = time.monotonic() + START_SECONDS
            with suppress(BrokenFrame):
                read_answer(self.stdout.read)
                self._ready = True
            self.deadline = None
        return self._ready

    def begin(self, chunks: Iterable[bytes], thumbnail: int, done: Done) -> None:
        self._extend_deadline()
        try:
            self._send(SIDE.pack(thumbnail))
            for chunk in chunks:
                self._send_chunk(chunk)
        except BaseException:
            self._send(LENGTH.pack(ABORT))
            self._flush()
            self.deadline = None
            raise
        self._send(LENGTH.pack(END))
        self._flush()
        self._extend_deadline()
        self.done = done

    def result(self) -> Inspection | ImageError:
        """The child's answer; an error of the image if the child crashed."""
        try:
            return _checked(*read_answer(self.stdout.read))
        except (BrokenFrame, OSError):
            self.alive = False
            return ImageError("the image crashes the process that decodes it (save it again)")
        finally:
            self.deadline = None

    def kill(self) -> None:
        """Kill it; a thread that waits for its answer wakes up."""
        self._process.kill()

    def end(self) -> None:
        """Kill it and wait for its end."""
        self.kill()
        self._process.wait()
        for pipe in (self._stdin, self.stdout):
            with suppress(OSError):  # unsent data no longer matters
                pipe.close()

    def _extend_deadline(self) -> None:
        self.deadline = time.monotonic() + self._rules.seconds + WATCH_SECONDS

    def _send_chunk(self, chunk: bytes) -> None:
        for start in range(0, len(chunk), CHUNK):
            part = chunk[start : start + CHUNK]
            self._send(LENGTH.pack(len(part)))
            self._send(part)
            self._extend_deadline()

    def _send(self, data: bytes) -> None:
        with suppress(OSError):  # it crashed; `result` reports that
            self._stdin.write(data)

    def _flush(self) -> None:
        with suppress(OSError):
            self._stdin.flush()


def default_processes() -> int:
    """The number of children that this machine can use."""
    return min(MAX_CHILDREN, os.cpu_count() or 1)


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("SYSTEMROOT",) if name in os.environ}
    return kept | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, filter(None, sys.path)))}


def _widen(pipe: BinaryIO) -> None:
    with suppress(ImportError, OSError):
        import fcntl

        fcntl.fcntl(pipe, _SET_PIPE_SIZE, _PIPE_BYTES)


def _first_with_an_answer(children: list[_Child]) -> _Child:
    """Wait for any of them; for the first where pipes cannot be polled."""
    if not hasattr(select, "poll"):
        return children[0]
    poll = select.poll()
    by_descriptor = {child.stdout.fileno(): child for child in children}
    for descriptor in by_descriptor:
        poll.register(descriptor, select.POLLIN)
    descriptor, _ = poll.poll()[0]
    return by_descriptor[descriptor]


def _checked(facts: dict[str, Any], pixels: bytes) -> Inspection | ImageError:
    """Validate a child's answer, which is as untrusted as the image.

    Raises:
        BrokenFrame: it is not valid.
    """
    match facts:
        case {"code": str(code), "message": str(message)}:
            if code in _CODES and message.isprintable() and len(message) <= _MAX_MESSAGE:
                return ImageError(message, code)
        case {"width": int(width), "height": int(height), "format": str(name)}:
            if width > 0 and height > 0 and name in FORMATS:
                return Inspection(width, height, name, _image(facts.get("thumbnail"), pixels))
    raise BrokenFrame


def _image(size: object, pixels: bytes) -> Image.Image | None:
    match size:
        case None:
            return None
        case [int(width), int(height)] if width > 0 and height > 0:
            if len(pixels) == 3 * width * height:
                return Image.frombytes("RGB", (width, height), pixels)
    raise BrokenFrame
