"""Health of a container: `healthcheck.py api` or `healthcheck.py worker`; exit 0 if well."""

from __future__ import annotations

import socket
import sys
import urllib.request

from sharpzo_core.database.engine import make_engine
from sharpzo_core.settings import Settings
from sharpzo_core.stores.worker_store import WorkerStore

LIVEZ = "http://127.0.0.1:8000/livez"
SECONDS = 3


def api_is_well() -> bool:
    """The API answers."""
    with urllib.request.urlopen(LIVEZ, timeout=SECONDS) as response:
        return bool(response.status == 200)


def worker_is_well() -> bool:
    """This container's worker has written its heartbeat lately."""
    settings = Settings.load()
    alive = WorkerStore(make_engine(settings)).active(settings.lease_seconds)
    return any(worker.hostname == socket.gethostname() for worker in alive)


if __name__ == "__main__":
    sys.exit(not (api_is_well() if sys.argv[1] == "api" else worker_is_well()))
