"""A process that puts load on a service, so that its own work is not the server's.

    python -m benchmarks.support.load HOST PORT FOLDER

`FOLDER` holds the JPEG files to send. Every line on stdin is a `Task` as JSON, and its `Outcome` is
the answer on stdout. Requests are made before the clock starts and go over plain sockets, because a
full client would cost as much as the server.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

BOUNDARY = "sharpzo-benchmark"
PROBE_SECONDS = 0.02  # between two looks at /livez
BURSTS = 3  # answers per client, from which on the time between first and last says the rate
BROKEN = b"\xff\xd8\xff\xe0 no image"


@dataclass(frozen=True)
class Task:
    """Load of one kind."""

    refs: list[str]  #: prompts, one drawn for each request
    concurrency: int = 1  #: of a closed loop
    seconds: float = 0.0  #: how long, or
    requests: int = 0  #: how many
    rate: float = 0.0  #: of an open loop: arrivals per second, whether answers have come or not
    broken: float = 0.0  #: share of requests whose image is none
    answers: bool = False  #: hand back what was answered
    probe: bool = False  #: ask /livez all the while
    seed: int = 0


@dataclass
class Outcome:
    """What came of a task."""

    done: int = 0  #: answers of 200
    rate: float = 0.0  #: answers per second, from the end of the first round to the last answer
    p50: float = 0.0  #: seconds
    p99: float = 0.0
    statuses: dict[str, int] = field(default_factory=dict)
    livez_p50: float = math.nan
    livez_p99: float = math.nan
    answers: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Answer:
    """One answer and when it came."""

    status: int
    ended: float
    seconds: float


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which so large a share lies."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Connection:
    """One connection, kept alive."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Send a request; gives status and body."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._address)
        reader, writer = self._streams
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
        body = await reader.readexactly(int(fields.get("content-length", 0)))
        return int(head.split(" ", 2)[1]), body

    def close(self) -> None:
        """Leave."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


class Load:
    """Runs tasks against one service."""

    def __init__(self, host: str, port: int, images: Sequence[bytes]) -> None:
        self._address = (host, port)
        self._bodies = [multipart(image) for image in images]
        self._broken = multipart(BROKEN)

    async def run(self, task: Task) -> Outcome:
        """Do it."""
        probe = asyncio.create_task(self._probe()) if task.probe else None
        outcome = Outcome()
        answers = await (self._open(task) if task.rate else self._closed(task, outcome))
        if probe is not None:
            probe.cancel()
            with suppress(asyncio.CancelledError):
                await probe
            outcome.livez_p50 = quantile(self._probed, 0.5)
            outcome.livez_p99 = quantile(self._probed, 0.99)
        good = sorted(answer.ended for answer in answers if answer.status == 200)
        outcome.done = len(good)
        skipped = min(task.concurrency, len(good) // 2)
        if task.seconds and len(good) < BURSTS * task.concurrency:  # answers come a batch at a time
            outcome.rate = len(good) / task.seconds
        elif len(good) > skipped + 1:
            outcome.rate = (len(good) - 1 - skipped) / (good[-1] - good[skipped])
        seconds = [answer.seconds for answer in answers]
        outcome.p50, outcome.p99 = quantile(seconds, 0.5), quantile(seconds, 0.99)
        outcome.statuses = dict(Counter(str(answer.status) for answer in answers))
        return outcome

    def _requests(self, task: Task) -> Iterator[tuple[int, str, bytes]]:
        """Endless: index of the image (-1 for none), prompt, and the bytes to send."""
        rng = random.Random(task.seed)
        while True:
            ref = rng.choice(task.refs)
            index = rng.randrange(len(self._bodies))
            if rng.random() < task.broken:
                index = -1
            body = self._broken if index < 0 else self._bodies[index]
            yield index, ref, head(ref, len(body)) + body

    async def _closed(self, task: Task, outcome: Outcome) -> list[Answer]:
        """Clients that ask again as soon as they are answered."""
        requests, answers = self._requests(task), []
        deadline = time.perf_counter() + task.seconds if task.seconds else math.inf
        left = task.requests or math.inf

        async def client() -> None:
            nonlocal left
            connection = Connection(*self._address)
            while left > 0 and time.perf_counter() < deadline:
                left -= 1
                index, ref, request = next(requests)
                started = time.perf_counter()
                status, body = await connection.ask(request)
                ended = time.perf_counter()
                if ended <= deadline:
                    answers.append(Answer(status, ended, ended - started))
                if task.answers:
                    outcome.answers.append(
                        {"image": index, "ref": ref, "status": status, "body": json.loads(body)}
                    )
            connection.close()

        await asyncio.gather(*(client() for _ in range(task.concurrency)))
        return answers

    async def _open(self, task: Task) -> list[Answer]:
        """Arrivals as of many clients that know nothing of each other (a Poisson process)."""
        rng, requests = random.Random(task.seed), self._requests(task)
        idle: list[Connection] = []
        answers: list[Answer] = []

        async def client(request: bytes, due: float) -> None:
            connection = idle.pop() if idle else Connection(*self._address)
            status, _ = await connection.ask(request)
            ended = time.perf_counter()
            answers.append(Answer(status, ended, ended - due))
            idle.append(connection)

        due, tasks = time.perf_counter(), []
        end = due + task.seconds
        while (due := due + rng.expovariate(task.rate)) < end:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(client(next(requests)[2], due)))
        await asyncio.gather(*tasks)
        for connection in idle:
            connection.close()
        return answers

    async def _probe(self) -> None:
        """Ask whether the process lives, again and again."""
        self._probed: list[float] = []
        connection = Connection(*self._address)
        request = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
        try:
            while True:
                started = time.perf_counter()
                await connection.ask(request)
                self._probed.append(time.perf_counter() - started)
                await asyncio.sleep(PROBE_SECONDS)
        finally:
            connection.close()


def multipart(image: bytes) -> bytes:
    """A form with one image."""
    disposition = 'Content-Disposition: form-data; name="images"; filename="image.jpg"'
    start = f"--{BOUNDARY}\r\n{disposition}\r\nContent-Type: image/jpeg\r\n\r\n"
    return start.encode() + image + f"\r\n--{BOUNDARY}--\r\n".encode()


def head(ref: str, length: int) -> bytes:
    """The request line and fields."""
    lines = (
        f"POST /v1/prompts/{ref}/classify HTTP/1.1",
        "Host: localhost",
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}",
        f"Content-Length: {length}",
    )
    return "\r\n".join((*lines, "", "")).encode()


def main() -> None:
    """Answer tasks until stdin ends."""
    host, port, folder = sys.argv[1:]
    images = [path.read_bytes() for path in sorted(Path(folder).glob("*.jpg"))]
    load = Load(host, int(port), images)
    for line in sys.stdin:
        outcome = asyncio.run(load.run(Task(**json.loads(line))))
        print(json.dumps(asdict(outcome)), flush=True)


if __name__ == "__main__":
    main()
