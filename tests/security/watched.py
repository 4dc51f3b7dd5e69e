"""A real server, watched while it is sent what it should refuse."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from sharpzo_core.settings import Settings
from tests.helpers import eventually
from tests.service.conftest import files_below
from tests.service.servers import ServerProcess, server_process

ANSWER_SECONDS = 2.0
GROWTH_MIB = 64.0
_PEAK_AGAIN = "5"  # to /proc/PID/clear_refs


@dataclass(frozen=True)
class Outcome:
    """What became of an upload."""

    status: int  #: of the answer
    code: str  #: of the answer, or of the dataset's error; empty if it is ready
    seconds: float  #: until the answer
    growth: float  #: MiB that the server's resident memory rose above what it was
    dataset: dict[str, Any]


@dataclass(frozen=True)
class Watched:
    """A server process and its folder."""

    server: ServerProcess
    url: str
    data_dir: Path

    def upload(self, archive: bytes, name: str = "a.zip", **fields: str) -> Outcome:
        """Send an archive and wait until nothing more happens to it."""
        before = self._memory("VmRSS")
        Path(f"/proc/{self.server.process.pid}/clear_refs").write_text(_PEAK_AGAIN)
        began = time.monotonic()
        answer = httpx2.post(
            f"{self.url}/v1/datasets",
            data={"name": "a", **fields},
            files={"file": (name, archive)},
            timeout=60,
        )
        seconds = time.monotonic() - began
        body = answer.json()
        if answer.status_code == 202:
            body = self._settled(body["id"])
            code = (body["error"] or {}).get("code", "")
        else:
            assert answer.headers["content-type"] == "application/problem+json"
            code = body["code"]
        growth = self._memory("VmHWM") - before
        return Outcome(answer.status_code, code, seconds, growth, body)

    def decoders(self) -> set[int]:
        """Its children that decode images."""
        paths = Path(f"/proc/{self.server.process.pid}/task").glob("*/children")
        with suppress(FileNotFoundError):  # a thread or a child has ended meanwhile
            pids = {int(pid) for path in paths for pid in path.read_text().split()}
            return {
                pid
                for pid in pids
                if b"service.ingest.decoding.child" in Path(f"/proc/{pid}/cmdline").read_bytes()
            }
        return set()

    def assert_nothing_left(self) -> None:
        """No file of an archive, of an image or of a dataset."""
        with suppress(TimeoutError):
            eventually(lambda: not self.left())
        assert self.left() == []

    def left(self) -> list[str]:
        folders = ("uploads", "artifacts", "cache/drafts")
        return [path for folder in folders for path in files_below(self.data_dir / folder)]

    def forget(self, outcome: Outcome) -> None:
        """Delete the dataset."""
        httpx2.delete(f"{self.url}/v1/datasets/{outcome.dataset['id']}").raise_for_status()

    def _settled(self, dataset_id: str) -> dict[str, Any]:
        found: dict[str, Any] = {}

        def done() -> bool:
            found.update(httpx2.get(f"{self.url}/v1/datasets/{dataset_id}").json())
            return found["status"] != "processing"

        eventually(done, seconds=60)
        return found

    def _memory(self, field: str) -> float:
        """MiB."""
        status = Path(f"/proc/{self.server.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith(f"{field}:"))
        return int(line.split()[1]) / 1024


@contextmanager
def watched_server(data_dir: Path, **settings: Any) -> Iterator[Watched]:
    """A server of its own that has loaded all that it loads."""
    quick = Settings(data_dir=data_dir, device="cpu", sweep_seconds=0.2, **settings)
    with server_process(quick) as server:
        url = server.url()

        def loaded() -> bool:
            backbones = httpx2.get(f"{url}/v1/backbones", timeout=30).json()["data"]
            return any(backbone["loaded"] for backbone in backbones)

        eventually(loaded, seconds=60)
        yield Watched(server, url, data_dir)
