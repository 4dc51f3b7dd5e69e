"""A service of one's own for the time of a block: free port, own folder, and gone afterwards."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx

from sharpzo_cli.errors import RunFailed
from sharpzo_cli.interrupts import Interrupted
from sharpzo_client import Client, SharpzoError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

HOST = "127.0.0.1"
START_SECONDS = 120.0  # until the service must be ready
STOP_SECONDS = 30.0  # for a clean end, of the worker too, before it is forced
POLL_SECONDS = 0.1
PREFIX = "SHARPZO_"
KEPT = ("SHARPZO_DEVICE", "SHARPZO_LOG_LEVEL")  # settings that do not lead to somebody's data


@dataclass(frozen=True)
class Running:
    """A service that is ready."""

    client: Client
    url: str
    pid: int


@contextmanager
def running_service(
    data_dir: Path, log: Path, settings: Mapping[str, str] | None = None
) -> Iterator[Client]:
    """As `running_process`, for those who only want to talk to it."""
    with running_process(data_dir, log, settings) as running:
        yield running.client


@contextmanager
def running_process(
    data_dir: Path,
    log: Path,
    settings: Mapping[str, str] | None = None,
    *,
    with_worker: bool = True,
) -> Iterator[Running]:
    """Start `sharpzo serve`, wait until it is ready (or lives), and end it in any case.

    `settings` are more SHARPZO_ variables.

    Raises:
        RunFailed: it ended by itself or was not ready in time.
    """
    port = free_port()
    url = f"http://{HOST}:{port}"
    options = ["--port", str(port), "--data-dir", str(data_dir)]
    options += [] if with_worker else ["--no-worker"]
    process: subprocess.Popen[bytes] | None = None
    try:
        with uninterrupted(), log.open("wb") as output:
            process = _start(options, output.fileno(), settings or {})
        # An explicit transport keeps a proxy of the environment out of the way.
        with Client(url, transport=httpx.HTTPTransport()) as client:
            # Without a worker it answers, and is not ready by its own measure.
            look = client.health.readyz if with_worker else client.health.livez
            _await(look, process, log)
            yield Running(client, url, process.pid)
    finally:
        if process is not None:
            with uninterrupted():
                _stop(process)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait for the end of the block.

    Else one that comes while a process is being started would leave it without anybody to end it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's business
        return
    came: list[int] = []
    usual = {
        number: signal.signal(number, lambda number, _frame: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
    if came:
        raise Interrupted


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def clean_environment() -> dict[str, str]:
    """This environment without settings that lead to a real installation, and offline."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(PREFIX) or k in KEPT}
    return kept | {"HF_HUB_OFFLINE": "1"}


def _start(
    options: Sequence[str], output: int, settings: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "sharpzo_cli", "serve", "--host", HOST, *options]
    return subprocess.Popen(  # noqa: S603 - our own command
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env={**clean_environment(), **settings},
        start_new_session=True,  # Ctrl-C reaches us alone, and we end it in order
    )


def _await(look: Callable[[], object], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RunFailed(f"the service did not start: {last_line(log)}", "see --debug")
        with suppress(SharpzoError):
            look()
            return
        time.sleep(POLL_SECONDS)
    raise RunFailed(f"the service was not ready after {START_SECONDS:.0f} s", last_line(log))


def last_line(log: Path) -> str:
    """What the service said last."""
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
