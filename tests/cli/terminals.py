"""Commands on a terminal of a given width, as a user sees them."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class OnTerminal:
    """A running command whose standard error is a terminal, and its standard output if wanted."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], columns: int, pipe: bool
    ) -> None:
        ours, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self._ours = ours
        self._bytes = bytearray()
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=subprocess.PIPE if pipe else theirs,
            stderr=theirs,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        os.close(theirs)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    @property
    def raw(self) -> str:
        """All that was written to the terminal so far."""
        return self._bytes.decode(errors="replace")

    @property
    def text(self) -> str:
        """The same without what moves the cursor or colours the text."""
        return _CONTROL.sub("", self.raw).replace("\r\n", "\n").replace("\r", "\n")

    def end(self, seconds: float = 120) -> int:
        """Wait for the command's end; its exit code."""
        code = self.process.wait(seconds)
        self._reader.join()
        return code

    def output(self) -> str:
        """What went into the pipe of standard output."""
        assert self.process.stdout is not None
        return self.process.stdout.read().decode()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join()
        if self.process.stdout is not None:
            self.process.stdout.close()
        os.close(self._ours)

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._ours, 1 << 16)
            except OSError:  # the last process has closed the terminal
                return
            if not data:
                return
            self._bytes += data


@contextmanager
def on_terminal(
    *arguments: object, columns: int = 80, pipe: bool = False, code: str = "", **environment: str
) -> Iterator[OnTerminal]:
    """`sharpzo` with these arguments, or a program of Python; `pipe` catches its output apart."""
    command = ["-c", code] if code else ["-m", "sharpzo_cli"]
    given: list[Any] = [sys.executable, *command, *arguments]
    colours = {"TERM": "xterm-256color", "COLUMNS": str(columns), "NO_COLOR": ""}
    running = OnTerminal([str(word) for word in given], {**colours, **environment}, columns, pipe)
    try:
        yield running
    finally:
        running.close()
