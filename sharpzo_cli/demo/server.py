"""A temporary service with a free port and its own folder."""

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
STOP_SECONDS = 30.0  # for a clean shutdown, including the worker, before it is killed
POLL_SECONDS = 0.1
PREFIX = "SHARPZO_"
SAFE = ("SHARPZO_DEVICE", "SHARPZO_LOG_LEVEL")  # settings that do not point to existing data


@dataclass(frozen=True)
class Running:
    client: Client
    url: str
    pid: int


@contextmanager
def running_service(
    data_dir: Path, log: Path, settings: Mapping[str, str] | None = None
) -> Iterator[Client]:
    """Like `running_process`, but yields only the client."""
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
    """Start `sharpzo serve`, wait until it is ready, and stop it after the block.

    Without a worker it need only answer. `settings` are additional SHARPZO_ variables.

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
        # An explicit transport ignores proxies of the environment.
        with Client(url, transport=httpx.HTTPTransport()) as client:
            # Without a worker, `readyz` would never succeed.
            check = client.health.readyz if with_worker else client.health.livez
            _wait_until_ready(check, process, log)
            yield Running(client, url, process.pid)
    finally:
        if process is not None:
            with uninterrupted():
                _stop(process)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C and SIGTERM until the end of the block.

    A signal while a process is being started would otherwise leave that process running.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread receives signals
        return
    received: list[int] = []
    previous = {
        number: signal.signal(number, lambda number, _frame: received.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if received:
        raise Interrupted


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def clean_environment() -> dict[str, str]:
    """Return this environment without settings of a real installation, and offline."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(PREFIX) or k in SAFE}
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
        start_new_session=True,  # Ctrl-C reaches only this process, which then stops the service
    )


def _wait_until_ready(
    check: Callable[[], object], process: subprocess.Popen[bytes], log: Path
) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RunFailed(f"the service did not start: {last_line(log)}", "see --debug")
        with suppress(SharpzoError):
            check()
            return
        time.sleep(POLL_SECONDS)
    raise RunFailed(f"the service was not ready after {START_SECONDS:.0f} s", last_line(log))


def last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "its log is empty"


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
