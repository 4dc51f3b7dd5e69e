"""One process that has loaded torch and open_clip, and a fork of it for every command.

Most of the time of a short `sharpzo tune` is loading these. A fork gets the arguments, the folder,
the environment and the open files of the command that asks for it, and runs the command's `main`.

`python -m tests.docs.warm SOCKET` serves until its standard input is closed.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LOADED = (
    "sharpzo_cli.main",
    "sharpzo_client",
    "sharpzo_core.stores.key_store",
    "sharpzo_core.migrations",
    "sharpzo_engine.reports.report_plots",
    "sharpzo_engine.tuner",
)
MAX_MESSAGE = 1 << 20


def ask(address: str, arguments: Sequence[str]) -> int:
    """Run `sharpzo` with these arguments in a fork; its exit code."""
    here = str(Path.cwd())
    request = {"arguments": list(arguments), "folder": here, "environment": {**os.environ}}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
        return int(connection.recv(16) or 1)


def serve(address: str) -> None:
    """Answer until this process is ended."""
    for name in LOADED:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a fork
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            connection, _ = listener.accept()
            message, files, _, _ = socket.recv_fds(connection, MAX_MESSAGE, 3)
            if os.fork() == 0:
                _run(connection, json.loads(message), files)
            for file in (*files, connection.detach()):
                os.close(file)


def _run(connection: socket.socket, request: Any, files: Sequence[int]) -> None:
    """In the fork: be the command, tell its exit code, and end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    code = 1
    try:
        from sharpzo_cli.main import main

        code = main(request["arguments"])
        sys.stdout.flush()
    finally:
        connection.sendall(str(code).encode())
        os._exit(code)


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    serve(sys.argv[1])
