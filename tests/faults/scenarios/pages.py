"""Reading a long list page by page while others write to it."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from sharpzo_core.records.jobs import NewJob
from tests.faults.cluster import START_SECONDS, Cluster
from tests.helpers import eventually

LIMIT = 100  # jobs on a page
WARM_UP = 3  # pages


@dataclass
class Pages:
    """What reading the whole list again and again has shown."""

    seconds: list[float] = field(default_factory=list)  #: Of every page
    repeated: int = 0  #: Jobs that came twice in one reading
    missing: int = 0  #: Jobs that were there before a reading and did not come


def read_while_others_write(cluster: Cluster, jobs: int, readings: int) -> Pages:
    """Queue so many jobs, and read them while more are accepted all the time."""
    pages = Pages()
    # A service that loads its backbone is not ready, and slow to answer.
    eventually(lambda: "loading" not in cluster.ready(), START_SECONDS, "the backbone")
    before = {_accept(cluster) for _ in range(jobs)}
    with httpx.Client(base_url=cluster.url, transport=httpx.HTTPTransport()) as http:
        for _ in range(WARM_UP):
            _page(http, None, Pages())
        with _others_writing(cluster), _no_pauses_of_our_own():
            for _ in range(readings):
                found = list(_read(http, pages))
                pages.repeated += len(found) - len(set(found))
                pages.missing += len(before - set(found))
    return pages


def _accept(cluster: Cluster) -> str:
    """A job as the API accepts it, without a message."""
    new = NewJob(dataset_id=cluster.dataset_id, backbone="tiny", config={})
    return cluster.stores.jobs.create(new).id


def _read(http: httpx.Client, pages: Pages) -> Iterator[str]:
    after = None
    while True:
        page = _page(http, after, pages)
        yield from (job["id"] for job in page["data"])
        after = page["next"]
        if after is None:
            return


def _page(http: httpx.Client, after: str | None, pages: Pages) -> dict[str, Any]:
    parameters: dict[str, str | int] = {"limit": LIMIT}
    if after is not None:
        parameters["after"] = after
    started = time.monotonic()
    response = http.get("/v1/jobs", params=parameters)
    pages.seconds.append(time.monotonic() - started)
    assert response.status_code == 200, response.text
    page: dict[str, Any] = response.json()
    return page


@contextmanager
def _no_pauses_of_our_own() -> Iterator[None]:
    """This process has torch loaded: a search for cycles takes longer than a page."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def _others_writing(cluster: Cluster) -> Iterator[None]:
    done = threading.Event()

    def write() -> None:
        while not done.wait(0.02):
            _accept(cluster)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        done.set()
        writer.join()
