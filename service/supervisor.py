"""The embedded worker: one child process, started again when it dies, ended with its parent."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

logger = logging.getLogger(__name__)

SESSION_SECONDS = 5.0  # for what was killed to vanish
GRACE_SECONDS = 15.0  # for a worker to save its checkpoint and end
FIRST_PAUSE = 1.0  # seconds before a dead worker is started again
LONGEST_PAUSE = 30.0
_STATE, _GROUP = 0, 2  # fields of /proc/PID/stat after the command's closing bracket
STEADY_SECONDS = 60.0  # a worker that lived so long did not die of its start


def worker_command() -> list[str]:
    """What runs the embedded worker; it ends by itself if this process is killed."""
    return [sys.executable, "-m", "worker", "--parent-pid", str(os.getpid())]


class Supervisor:
    """Keeps one child process alive, in a session of its own."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        grace_seconds: float = GRACE_SECONDS,
        first_pause: float = FIRST_PAUSE,
    ) -> None:
        self._command = list(command)
        self._environment = {**os.environ, **environment}
        self._grace_seconds = grace_seconds
        self._first_pause = first_pause
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep_alive, name="supervisor", daemon=True)

    @property
    def pid(self) -> int | None:
        """The child's process id, while there is one."""
        return None if self._child is None else self._child.pid

    def start(self) -> None:
        """Start the child and watch it."""
        self._thread.start()

    def ask_to_end(self) -> None:
        """Tell the child to end, and start no other. May be called by a signal handler."""
        self._stopping.set()
        if self._child is not None:
            self._child.terminate()

    def stop(self) -> None:
        """End the child and everything in its session: asked first, then killed."""
        with self._lock:
            self._stopping.set()
            child = self._child
        if child is not None:
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(self._grace_seconds)
            _kill_session(child)
        self._thread.join()

    def _keep_alive(self) -> None:
        pause = self._first_pause
        while (child := self._spawn()) is not None:
            started = time.monotonic()
            code = child.wait()
            if self._stopping.is_set():
                return
            _kill_session(child)
            if time.monotonic() - started >= STEADY_SECONDS:
                pause = self._first_pause
            logger.warning(
                "the worker ended (code %s); a new one starts in %g s",
                code,
                pause,
                extra={"action": "worker_restart", "exit_code": code},
            )
            self._stopping.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _spawn(self) -> subprocess.Popen[bytes] | None:
        with self._lock:
            if self._stopping.is_set():
                return None
            self._child = subprocess.Popen(  # noqa: S603 - our own command
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            return self._child


def _kill_session(child: subprocess.Popen[bytes]) -> None:
    """End what the child left running, and the child itself if it is still there."""
    # The session's id is the child's; it stays taken as long as anything in it lives.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    # The child's own children die at once, but nobody here can wait for them.
    deadline = time.monotonic() + SESSION_SECONDS
    while _exists(child.pid) and time.monotonic() < deadline:
        time.sleep(0.01)


def _exists(session: int) -> bool:
    """Whether any process is left in the group that began the session."""
    try:
        os.killpg(session, 0)
    except ProcessLookupError:
        return False
    return not _are_zombies(session)


def _are_zombies(group: int) -> bool:
    """Whether all processes of a group have ended and only wait to be collected.

    Their new parent does that, in its own time; in a container it may never do it. False where the
    system does not tell (it needs Linux's /proc).
    """
    states = set()
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            fields = file.read_text().rpartition(")")[2].split()
            if int(fields[_GROUP]) == group:
                states.add(fields[_STATE])
    return states == {"Z"}
