"""`python -m tests.fuzz.sandbox READER SEED COUNT`: read so many mutants in a watched process.

Whatever the process does beside reading is found by the interpreter's audit events: writing
elsewhere than to its own folder, starting programs, opening connections, unpickling. Prints one
JSON object; what kills the process is found by who started it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.fuzz.readers import TYPED, Reader, readers

MAX_MIB = 512  # resident
MAX_SECONDS = 10  # for one mutant
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_FORBIDDEN = ("pickle.find_class", "socket.connect", "subprocess.Popen", "os.system", "os.exec")
_CHANGES = ("os.mkdir", "os.rename", "os.link", "os.symlink", "os.truncate", "os.chmod")


@dataclass
class Tally:
    """What one process saw."""

    mutants: int = 0
    refused: int = 0  #: by a typed error
    faults: list[str] = field(default_factory=list)
    resident_mib: float = 0.0
    slowest_seconds: float = 0.0


class Trap:
    """An audit hook that remembers what no reader may do; hooks cannot be removed."""

    def __init__(self, own: str) -> None:
        self._own = own
        self.caught: list[str] = []
        sys.addaudithook(self._see)

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if flags & _WRITES and not self._is_own(path):
                self.caught.append(f"opened {path!r} to write")
        elif event in _CHANGES and not self._is_own(arguments[0]):
            self.caught.append(f"{event} {arguments[0]!r}")
        elif event in _FORBIDDEN:
            self.caught.append(event)

    def _is_own(self, path: object) -> bool:
        if not isinstance(path, str | bytes):
            return True  # a descriptor, which was opened before
        return Path(os.fsdecode(path)).absolute().is_relative_to(self._own)


def read_mutants(reader: Reader, seed: int, count: int, trap: Trap) -> Tally:
    """Make mutants and read them; one that is named in a fault is made again from its number."""
    tally = Tally()
    for number in range(count):
        data = reader.make(random.Random(f"{reader.name} {seed} {number}"))
        began = time.perf_counter()
        try:
            with _time_limit():
                reader.read(data)
        except TYPED:
            tally.refused += 1
        except Exception:  # any other error is the fault that is looked for
            tally.faults.append(f"mutant {number} of seed {seed}: {traceback.format_exc(limit=-3)}")
        tally.faults += [f"mutant {number} of seed {seed}: {what}" for what in trap.caught]
        trap.caught.clear()
        tally.mutants += 1
        tally.slowest_seconds = max(tally.slowest_seconds, time.perf_counter() - began)
    tally.resident_mib = _most_resident_mib()
    if tally.resident_mib > MAX_MIB:
        tally.faults.append(f"{tally.resident_mib:.0f} MiB were resident")
    return tally


def _most_resident_mib() -> float:
    # Not from `getrusage`, which counts what the process had before it became this program.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


@contextmanager
def _time_limit() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"it took more than {MAX_SECONDS} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(MAX_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)


def in_a_process(name: str, seed: int, count: int) -> Tally:
    """Do it in a process of its own, with an empty folder."""
    with tempfile.TemporaryDirectory(prefix="sharpzo-fuzz-") as folder:
        done = subprocess.run(
            [sys.executable, "-m", "tests.fuzz.sandbox", name, str(seed), str(count)],
            env={**os.environ, "TMPDIR": folder},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=False,
        )
        left = [str(path.relative_to(folder)) for path in Path(folder).rglob("*")]
    if done.returncode:
        tail = done.stderr[-1000:]
        return Tally(0, 0, [f"seed {seed}: the process ended with {done.returncode}: {tail}"])
    tally = Tally(**json.loads(done.stdout))
    tally.faults += [f"seed {seed}: {path} was left behind" for path in left]
    return tally


def main() -> None:
    name, seed, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    reader = readers()[name]
    trap = Trap(tempfile.gettempdir())
    sys.stdout.write(json.dumps(asdict(read_mutants(reader, seed, count, trap))))


if __name__ == "__main__":
    main()
