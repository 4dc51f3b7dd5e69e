"""Real servers: in a thread of the test, or in processes that can be killed."""

from __future__ import annotations

import os
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import uvicorn

from service.app import create_app
from service.http.connection import bounded_protocol
from service.server import listen
from sharpzo_core.settings import Settings
from tests.helpers import eventually

SCRIPT = """
from service.server import main
from sharpzo_core.settings import Settings
{before}
main(Settings.load(), "127.0.0.1", 0, with_worker={with_worker})
"""


@contextmanager
def server_thread(
    settings: Settings, wrap: Callable[[Any], Any] = lambda app: app, port: int = 0
) -> Iterator[str]:
    """A real server on a real socket; gives its address. `wrap` puts an application before it."""
    app = wrap(create_app(settings))
    http = bounded_protocol(settings)
    server = uvicorn.Server(uvicorn.Config(app, http=http, ws="none", log_config=None))
    listener = listen("127.0.0.1", port)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        eventually(lambda: server.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
        assert not thread.is_alive()


class ServerProcess:
    """`sharpzo serve` in a process of its own; `before` is code that runs in it first."""

    def __init__(self, settings: Settings, *, before: str = "", with_worker: bool = False) -> None:
        script = SCRIPT.format(before=before, with_worker=with_worker)
        self.process = subprocess.Popen(
            [sys.executable, "-c", script],
            env={**os.environ, **settings.environment()},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log: list[str] = []
        self._urls: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    @cache  # noqa: B019 - it lives as long as its test
    def url(self) -> str:
        """Its address, as soon as it listens."""
        return self._urls.get(timeout=120)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            if found := re.search(r"listening on (http://[^\s\"]+)", line):
                self._urls.put(found[1])

    def end(self) -> None:
        """Kill it, if it still runs."""
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()


@contextmanager
def server_process(
    settings: Settings, *, before: str = "", with_worker: bool = False
) -> Iterator[ServerProcess]:
    server = ServerProcess(settings, before=before, with_worker=with_worker)
    try:
        yield server
    finally:
        server.end()
