"""Visitors of a running service: what they ask for, and what they make of the answers.

Every prompt's classes are pictures, and the label of each names prompt, version and picture. So
every answer can be checked: one of another prompt, another version or another image is a fault.
"""

from __future__ import annotations

import asyncio
import io
import random
import zipfile
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import urlsplit

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sharpzo_engine import Backbone, TunedPrompt
from sharpzo_engine.data.images import decode_image

SIDES = (32, 64, 160, 224, 300, 512)  # pixels of the pictures, one of each
BROKEN = (b"", b"no picture", b"\x89PNG\r\n\x1a\n")
BROKEN_SHARE = 0.05
MOST_IMAGES = 8  # in one request
ALIAS = "live"
TIMEOUT = 60.0  # seconds
PAUSE = 0.1  # seconds after an answer that is not wanted
LEAVE_AFTER = 0.05  # seconds, at most, that a visitor waits before leaving


class Fault(StrEnum):
    """What must not happen."""

    SERVER_ERROR = "5xx answers"
    WRONG = "wrong labels"
    UNEXPECTED = "other unexpected answers"
    UNANSWERED = "requests without an answer"


class FaultFound(Exception):  # noqa: N818 - named for the fact
    """An answer is not what it should be."""

    def __init__(self, fault: Fault, detail: str) -> None:
        super().__init__(detail)
        self.fault = fault


class Busy(Exception):  # noqa: N818 - named for the fact
    """The service asks to come again later, which is its right."""


@dataclass
class Tally:
    """What was asked, and what came of it."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    busy: Counter[str] = field(default_factory=Counter)
    faults: Counter[Fault] = field(default_factory=Counter)
    details: list[str] = field(default_factory=list)  #: of the first faults

    def record(self, kind: str, error: FaultFound) -> None:
        """Count a fault and remember what it was."""
        self.faults[error.fault] += 1
        if len(self.details) < 10:
            self.details.append(f"{kind}: {error.fault}: {error}")


@dataclass(frozen=True)
class Pictures:
    """Pictures as files, and what the backbone sees in them."""

    files: tuple[bytes, ...]
    embeddings: NDArray[np.float32]  #: [P, E]

    @classmethod
    def draw(cls, backbone: Backbone, seed: int = 0) -> Pictures:
        """Noise of different sizes."""
        rng = np.random.default_rng(seed)
        files = tuple(_png(rng, side) for side in SIDES)
        batch = np.stack([backbone.preprocess(decode_image(data)) for data in files])
        return cls(files, backbone.encode_images(batch))


@dataclass(frozen=True)
class Entry:
    """A published prompt."""

    id: str
    name: str
    version: int
    title: str

    def label(self, picture: int) -> str:
        """What it calls a picture."""
        return f"{self.title} {picture}"


class Registry:
    """Makes prompts, and publishes them under names with two versions each."""

    def __init__(self, http: httpx.AsyncClient, backbone: Backbone, pictures: Pictures) -> None:
        self._http = http
        self._metadata = {"backbone": backbone.describe(), "head": {"temperature": 1.5}}
        self._context = np.zeros((4, backbone.text_width), np.float32)
        self.pictures = pictures
        self.entries: list[Entry] = []

    async def fill(self, count: int) -> None:
        """Publish so many prompts."""
        for number in range(count):
            self.entries.append(await self.publish(f"soak-{number // 2}", f"prompt {number}"))

    async def publish(self, name: str, title: str) -> Entry:
        """Publish a prompt whose labels begin with `title`."""
        order = random.Random(title).sample(range(len(SIDES)), len(SIDES))
        prompt = TunedPrompt(
            class_names=tuple(f"{title} {picture}" for picture in order),
            class_embeddings=self.pictures.embeddings[order],
            context=self._context,
            logit_scale=100.0,
            metadata=self._metadata,
        )
        response = await ask(
            self._http,
            "POST",
            "/v1/prompts",
            expected=201,
            data={"name": name},
            files={"file": ("p.safetensors", prompt.to_bytes())},
        )
        made = response.json()
        return Entry(made["id"], made["name"], made["version"], title)


async def submit_job(http: httpx.AsyncClient) -> str:
    """A job that no worker will take; its events can be listened to all the same."""
    archive = io.BytesIO()
    rng = np.random.default_rng(1)
    with zipfile.ZipFile(archive, "w") as packed:
        for name in ("cat", "dog"):
            for index in range(4):
                packed.writestr(f"{name}/{index}.png", _png(rng, 16))
    files = {"file": ("d.zip", archive.getvalue())}
    response = await ask(
        http, "POST", "/v1/datasets", expected=202, data={"name": "soak"}, files=files
    )
    dataset = response.json()
    while dataset["status"] == "processing":
        await asyncio.sleep(0.1)
        dataset = (await ask(http, "GET", f"/v1/datasets/{dataset['id']}")).json()
    body = {"dataset_id": dataset["id"], "config": {"shots": 1}}
    answer = await ask(http, "POST", "/v1/jobs", expected=201, json=body)
    job_id: str = answer.json()["id"]
    return job_id


async def has_aliases(http: httpx.AsyncClient) -> bool:
    """Whether the service knows aliases."""
    document = (await ask(http, "GET", "/openapi.json")).json()
    return any(
        path.startswith("/v1/aliases/") and "put" in operations
        for path, operations in document["paths"].items()
    )


async def ask(
    http: httpx.AsyncClient, method: str, path: str, *, expected: int = 200, **content: object
) -> httpx.Response:
    """One request.

    Raises:
        Busy: the service asks to come again.
        FaultFound: there is no answer, or one of another status.
    """
    try:
        response = await http.request(method, path, **content)  # type: ignore[arg-type]
    except httpx.HTTPError as error:
        raise FaultFound(Fault.UNANSWERED, f"{method} {path}: {error!r}") from error
    check(response, expected)
    return response


def check(response: httpx.Response, expected: int) -> None:
    """Look at an answer's status.

    Raises:
        Busy: it is 429 and says when to come again.
        FaultFound: it is not the expected one.
    """
    if response.status_code == expected:
        return
    if response.status_code == 429 and "retry-after" in response.headers:
        raise Busy
    fault = Fault.SERVER_ERROR if response.status_code >= 500 else Fault.UNEXPECTED
    request = response.request
    detail = f"{request.method} {request.url.path} -> {response.status_code} {response.text[:300]}"
    raise FaultFound(fault, detail)


class Visitor:
    """A client that sends one random request after another."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        registry: Registry,
        tally: Tally,
        *,
        job_id: str,
        aliases: bool,
        seed: int,
        pause: float = PAUSE,
    ) -> None:
        self._http = http
        self._registry = registry
        self._tally = tally
        self._job_id = job_id
        self._random = random.Random(seed)
        self._seed = seed
        self._guests = 0
        self._pause = pause
        self._acts: dict[str, tuple[int, Callable[[], Awaitable[None]]]] = {
            "classify": (70, self._classify),
            "leave half-way": (8, self._leave),
            "import, use, delete": (8, self._have_a_guest),
            "export": (4, self._export),
            "scrape metrics": (4, self._scrape),
            "listen to events": (4, self._listen),
        }
        if aliases:
            self._acts["move an alias"] = (6, self._move_alias)

    async def visit(self) -> None:
        """Do one thing and book what came of it."""
        loop = asyncio.get_running_loop()
        weights = [weight for weight, _ in self._acts.values()]
        (kind,) = self._random.choices(list(self._acts), weights)
        began = loop.time()
        try:
            await self._acts[kind][1]()
        except Busy:
            self._tally.busy[kind] += 1
            await asyncio.sleep(self._pause)
        except FaultFound as error:
            self._tally.record(kind, error)
            await asyncio.sleep(self._pause)  # a service that is down is not hammered
        self._tally.seconds[kind].append(loop.time() - began)

    async def _classify(self) -> None:
        entry = self._random.choice(self._registry.entries)
        refs = [entry.id, f"{entry.name}:{entry.version}"]
        await self._classify_with(self._random.choice(refs), [entry])

    async def _classify_with(self, ref: str, possible: Sequence[Entry]) -> None:
        pictures = self._draw_pictures()
        response = await ask(
            self._http, "POST", f"/v1/prompts/{ref}/classify?top_k=1", files=self._parts(pictures)
        )
        check_labels(response.json(), pictures, {entry.id: entry for entry in possible})

    def _draw_pictures(self) -> list[int | None]:
        """Numbers of pictures; None is a broken image."""
        return [
            None if self._random.random() < BROKEN_SHARE else self._random.randrange(len(SIDES))
            for _ in range(self._random.randint(1, MOST_IMAGES))
        ]

    def _parts(self, pictures: Sequence[int | None]) -> list[tuple[str, tuple[str, bytes]]]:
        files = self._registry.pictures.files
        return [
            ("images", ("x", self._random.choice(BROKEN) if p is None else files[p]))
            for p in pictures
        ]

    async def _leave(self) -> None:
        """Send half of a request, or all of it, and go without the answer."""
        entry = self._random.choice(self._registry.entries)
        url = f"/v1/prompts/{entry.id}/classify"
        request = self._http.build_request("POST", url, files=self._parts(self._draw_pictures()))
        lines = [f"POST {url} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in request.headers.items()]
        data = "\r\n".join([*lines, "", ""]).encode() + await request.aread()
        place = urlsplit(str(self._http.base_url))
        try:
            _, writer = await asyncio.open_connection(place.hostname, place.port)
        except OSError as error:
            raise FaultFound(Fault.UNANSWERED, repr(error)) from error
        with suppress(OSError):
            writer.write(data[: self._random.choice([len(data) // 2, len(data)])])
            await writer.drain()
            await asyncio.sleep(self._random.uniform(0, LEAVE_AFTER))
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    async def _have_a_guest(self) -> None:
        self._guests += 1
        title = f"guest {self._seed} {self._guests}"
        entry = await self._registry.publish(title.replace(" ", "-"), title)
        try:
            await self._classify_with(entry.name, [entry])
        finally:
            await ask(self._http, "DELETE", f"/v1/prompts/{entry.id}", expected=204)
        await ask(self._http, "GET", f"/v1/prompts/{entry.id}", expected=404)

    async def _export(self) -> None:
        entry = self._random.choice(self._registry.entries)
        form = self._random.choice(["npy", "onnx"])
        await ask(self._http, "GET", f"/v1/prompts/{entry.id}/export?format={form}")

    async def _scrape(self) -> None:
        await ask(self._http, "GET", "/metrics")

    async def _listen(self) -> None:
        """Wait for the first event of an open stream, and disconnect."""
        url, headers = f"/v1/jobs/{self._job_id}/events", {"accept": "text/event-stream"}
        try:
            async with self._http.stream("GET", url, headers=headers) as response:
                if response.status_code != 200:
                    await response.aread()
                check(response, 200)
                async for line in response.aiter_lines():
                    if line.startswith("data:"):
                        return
        except httpx.HTTPError as error:
            raise FaultFound(Fault.UNANSWERED, f"GET {url}: {error!r}") from error
        raise FaultFound(Fault.UNEXPECTED, f"GET {url} ended without an event")

    async def _move_alias(self) -> None:
        entry = self._random.choice(self._registry.entries)
        ref = f"{entry.name}@{ALIAS}"
        await ask(self._http, "PUT", f"/v1/aliases/{ref}", json={"prompt_id": entry.id})
        versions = [other for other in self._registry.entries if other.name == entry.name]
        await self._classify_with(ref, versions)  # another visitor may have moved it


def check_labels(
    answer: Mapping[str, object], pictures: Sequence[int | None], possible: Mapping[str, Entry]
) -> None:
    """Look at the labels of an answer.

    Raises:
        FaultFound: it is of another prompt, or a picture is not what the prompt calls it.
    """
    entry, results = possible.get(str(answer["prompt_id"])), answer["results"]
    if entry is None or answer["version"] != entry.version:
        raise FaultFound(Fault.WRONG, f"{answer['prompt_id']} answered for {list(possible)}")
    assert isinstance(results, list)
    found = [
        result["predictions"][0]["label"] if result.get("predictions") else None
        for result in results
    ]
    expected = [None if picture is None else entry.label(picture) for picture in pictures]
    if found != expected:
        raise FaultFound(Fault.WRONG, f"{found} instead of {expected}")


def _png(rng: np.random.Generator, side: int) -> bytes:
    """A picture of coarse noise."""
    stream = io.BytesIO()
    blocks = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(blocks).resize((side, side), Image.Resampling.NEAREST).save(stream, "PNG")
    return stream.getvalue()
