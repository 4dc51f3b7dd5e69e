"""The commands of `docs/operations.md` bring a destroyed service back."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from sharpzo_core.database.tables import job_events, jobs, metadata
from sharpzo_core.settings import Settings
from tests.deploy.pages import PAGE
from tests.helpers import CONFIG, Workplace, eventually
from tests.service.conftest import dataset_members, png, zip_of
from tests.service.servers import server_process

CHAPTER = PAGE.read_text().partition("\n## Backing up\n")[2]
BLOCKS = re.findall(r"^```sh\n(.+?)^```", CHAPTER, re.MULTILINE | re.DOTALL)
(BACK_UP,) = (block for block in BLOCKS if "sqlite3" in block)
(RESTORE,) = (block for block in BLOCKS if "rm -rf" in block)


def run(block: str, folder: Path) -> None:
    subprocess.run(["bash", "-euc", block], cwd=folder, check=True)


class Visitor:
    """Asks a service that may be restarted."""

    def __init__(self, client: httpx2.Client) -> None:
        self.client = client

    def get(self, path: str) -> dict[str, Any]:
        response = self.client.get(path)
        assert response.is_success, response.text
        return dict(response.json())

    def post(self, path: str, **content: Any) -> dict[str, Any]:
        response = self.client.post(path, **content)
        assert response.is_success, response.text
        return dict(response.json())

    def upload(self) -> str:
        archive = {"file": ("a.zip", zip_of(dataset_members(per_class=4)))}
        dataset = self.post("/v1/datasets", data={"name": "pets"}, files=archive)["id"]
        eventually(lambda: self.get(f"/v1/datasets/{dataset}")["status"] == "ready")
        return str(dataset)

    def finish(self, job: dict[str, Any]) -> dict[str, Any]:
        path = f"/v1/jobs/{job['id']}"
        eventually(lambda: self.get(path)["finished_at"] is not None, 120)
        ended = self.get(path)
        assert ended["status"] == "succeeded", ended["error"]
        return ended

    def classify(self) -> Any:
        images = [("images", (f"{shade}.png", png((shade, 90, 20)))) for shade in (0, 90, 180)]
        return self.post("/v1/prompts/pets@live/classify", files=images)["results"]


@contextmanager
def visited(settings: Settings) -> Iterator[Visitor]:
    """A service in a process of its own, with a worker."""
    with (
        server_process(settings, with_worker=True) as server,
        httpx2.Client(base_url=server.url(), timeout=30) as client,
    ):
        yield Visitor(client)


@pytest.mark.needs("sqlite3")
def test_a_destroyed_service_is_restored_and_serves_the_same_prompt(
    tmp_path: Path, small_backbone: Path
) -> None:
    settings = Settings(
        data_dir=tmp_path / ".sharpzo",
        backbones=f"tiny=local-dir:{small_backbone}",
        device="cpu",
        checkpoint_seconds=0.1,
    )
    with visited(settings) as visitor:
        dataset = visitor.upload()
        request = {"dataset_id": dataset, "name": "pets", "config": CONFIG}
        tuned = visitor.finish(visitor.post("/v1/jobs", json=request))
        body = {"prompt_id": tuned["prompt_id"]}
        assert visitor.client.put("/v1/aliases/pets@live", json=body).is_success
        before = visitor.classify()
        endless = {
            **CONFIG,
            "total_steps": 1_000_000,
            "change_point": 1_000_000,
            "max_forward_passes": 10**9,
        }
        running = visitor.post("/v1/jobs", json={"dataset_id": dataset, "config": endless})
        path = f"/v1/jobs/{running['id']}"
        eventually(lambda: visitor.get(path)["checkpoint"] is not None, 60)
        run(BACK_UP, tmp_path)  # while it writes checkpoints
        visitor.post(f"{path}/cancel")
    shutil.rmtree(settings.data_dir)

    run(RESTORE, tmp_path)
    with visited(settings) as visitor:
        assert visitor.classify() == before
        assert visitor.get(f"/v1/jobs/{tuned['id']}") == tuned
        eventually(lambda: visitor.get(path)["attempt"] == 2, 60)  # it goes on
        visitor.post(f"{path}/cancel")
        evaluate = f"/v1/prompts/{tuned['prompt_id']}/evaluate"
        visitor.finish(visitor.post(evaluate, json={"dataset_id": dataset}))


@pytest.mark.needs("postgres")
@pytest.mark.needs("pg_dump")
def test_a_dump_of_postgresql_brings_every_row_back(
    make_workplace: Callable[..., Workplace], postgres_url: str, tmp_path: Path
) -> None:
    place = make_workplace(database_url=postgres_url)
    job = place.submit(notify=False)
    address = make_url(postgres_url).set(drivername="postgresql")
    where = f"--dbname={address.render_as_string(hide_password=False)}"
    dump = tmp_path / "sharpzo.dump"
    (options,) = re.findall(r"pg_dump --username=sharpzo (\S+) sharpzo > ", CHAPTER)
    subprocess.run(["pg_dump", where, options, f"--file={dump}"], check=True)
    tables = metadata.sorted_tables
    with place.engine.begin() as connection:
        before = {table.name: connection.execute(sa.select(table)).all() for table in tables}
        for table in (job_events, jobs):
            connection.execute(sa.delete(table))
    restore = re.findall(r"(--clean --if-exists --exit-on-error) < sharpzo.dump", CHAPTER)[0]
    subprocess.run(["pg_restore", where, *restore.split(), str(dump)], check=True)
    with place.engine.connect() as connection:
        after = {table.name: connection.execute(sa.select(table)).all() for table in tables}
    assert after == before
    assert place.jobs.get(job.id) == job
