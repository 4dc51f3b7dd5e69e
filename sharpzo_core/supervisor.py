"""Child processes that are restarted when they end: workers, and their slots."""

import contextlib
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextvars import copy_context

import psutil

logger = logging.getLogger(__name__)

SESSION_SECONDS = 5.0  # for killed processes to vanish
FIRST_PAUSE = 1.0  # seconds before a child that ended is restarted
LONGEST_PAUSE = 30.0
STEADY_SECONDS = 60.0  # a child that lived so long did not fail at its start


class Supervisor:
    """Keeps one child process alive until it is stopped.

    With `own_session`, everything that the child leaves running is killed when the child ends;
    without, signals to the process group of the caller reach the child as well.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        own_session: bool = False,
        grace_seconds: float | None = None,
        first_pause: float = FIRST_PAUSE,
    ) -> None:
        """`grace_seconds`: from SIGTERM to SIGKILL; without, the child ends in its own time."""
        self._name = name
        self._command = list(command)
        self._environment = {**os.environ, **environment}
        self._own_session = own_session
        self._grace_seconds = grace_seconds
        self._first_pause = first_pause
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(
            target=copy_context().run, args=(self._keep_alive,), name="supervisor", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def ask_to_end(self) -> None:
        """Send SIGTERM to the child and do not restart it. A signal handler may call this."""
        self._stopping.set()
        if self._child is not None:
            self._child.terminate()

    def stop(self) -> None:
        """Send SIGTERM to the child, wait for it, and kill what is left after the grace time."""
        with self._lock:  # a child that is being started has its process id afterwards
            self.ask_to_end()
            child = self._child
        if child is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(self._grace_seconds)
            self._clean_up(child)
        if self._thread.ident is not None:
            self._thread.join()

    def _keep_alive(self) -> None:
        pause = self._first_pause
        while (child := self._spawn()) is not None:
            started = time.monotonic()
            code = child.wait()
            if self._stopping.is_set():
                return
            self._clean_up(child)
            if time.monotonic() - started >= STEADY_SECONDS:
                pause = self._first_pause
            logger.warning(
                "%s ended with exit code %s and restarts in %g s",
                self._name,
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
                start_new_session=self._own_session,
            )
            return self._child

    def _clean_up(self, child: subprocess.Popen[bytes]) -> None:
        if self._own_session:
            _kill_session(child.pid)
        else:
            child.kill()
        child.wait()
        # The child's own children die at once, but only their new parent can collect them.
        deadline = time.monotonic() + SESSION_SECONDS
        while self._own_session and _is_alive(child.pid) and time.monotonic() < deadline:
            time.sleep(0.01)


def _kill_session(leader: int) -> None:
    # The session's id is its leader's; it stays taken while anything in the session lives.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def _is_alive(group: int) -> bool:
    """Whether any process of the group runs.

    Zombies do not count: in a container, their new parent may never collect them.
    """
    for process in psutil.process_iter(["status"]):
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                return True
    return False
