"""Files that nobody needs any more are found; those of others are not touched."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sharpzo_core.database.engine import writing
from sharpzo_core.database.tables import jobs
from sharpzo_core.ids import Prefix, new_id
from sharpzo_core.records.checkpoints import FILES, checkpoint_prefix
from sharpzo_core.records.jobs import JobStatus
from sharpzo_core.records.prompts import prompt_key, report_key
from sharpzo_core.records.results import evaluation_key, part_key
from tests.core.stores.test_job_states import prompt_of
from tests.helpers import Workplace
from worker.housekeeping import Housekeeper


@pytest.mark.parametrize("remote", [False, True])
def test_only_what_has_no_row_and_is_old_is_removed(
    make_workplace: Callable[..., Workplace], tmp_path: Path, remote: bool
) -> None:
    place = make_workplace(artifact_url=f"memory://{tmp_path.name}" if remote else "")
    job = place.submit(notify=False)
    prompt = place.prompts.publish(prompt_of(job))
    gone = new_id(Prefix.JOB), new_id(Prefix.PROMPT), new_id(Prefix.DATASET)
    stray = [
        report_key(gone[0], "html"),
        f"{checkpoint_prefix(gone[0], 'claim')}/{FILES[0]}",
        prompt_key(gone[1]),
        f"datasets/{gone[2]}/images/x.png",
    ]
    wanted = [
        f"{checkpoint_prefix(job.id, 'claim')}/{FILES[0]}",
        prompt_key(prompt.id),
        f"datasets/{job.dataset_id}/manifest.json",
    ]
    for key in stray + wanted:
        place.artifacts.put_bytes(key, b"x")

    def tidy(stray_seconds: float) -> int:
        housekeeper = Housekeeper(
            place.engine, place.artifacts, place.settings.cache_dir, stray_seconds
        )
        return housekeeper.tidy()

    assert tidy(3600) == 0
    assert all(map(place.artifacts.exists, stray))
    assert tidy(0) == 3  # a job, a prompt and a dataset
    assert not any(map(place.artifacts.exists, stray))
    assert all(map(place.artifacts.exists, wanted))
    assert tidy(0) == 0


@pytest.mark.parametrize("remote", [False, True])
def test_what_killed_claims_left_of_an_ended_job_is_removed(
    make_workplace: Callable[..., Workplace], tmp_path: Path, remote: bool
) -> None:
    place = make_workplace(artifact_url=f"memory://{tmp_path.name}" if remote else "")

    def a_job(status: JobStatus) -> dict[str, str]:
        """Every kind of file that a job may have, as if two workers had been at it."""
        job = place.submit(notify=False)
        row = {"status": status, "result_folder": "b", "checkpoint_folder": "b"}
        with writing(place.engine) as connection:
            connection.execute(jobs.update().where(jobs.c.id == job.id).values(row))
        keys = {"parts": part_key(job.id, 0), "page": report_key(job.id, "html")}
        for claim in "ab":
            keys[f"results {claim}"] = evaluation_key(job.id, claim, "json")
            keys[f"checkpoint {claim}"] = f"{checkpoint_prefix(job.id, claim)}/{FILES[0]}"
        for key in keys.values():
            place.artifacts.put_bytes(key, b"x")
        return keys

    files = {status: a_job(status) for status in JobStatus}

    def missing() -> dict[JobStatus, set[str]]:
        return {
            status: {name for name, key in keys.items() if not place.artifacts.exists(key)}
            for status, keys in files.items()
        }

    def tidy(stray_seconds: float) -> int:
        housekeeper = Housekeeper(
            place.engine, place.artifacts, place.settings.cache_dir, stray_seconds
        )
        return housekeeper.tidy()

    assert tidy(3600) == 0
    assert not any(missing().values())
    assert tidy(0) == 7
    claims = {"results a", "checkpoint a"}
    ended = {JobStatus.FAILED: claims, JobStatus.CANCELLED: claims}
    ended[JobStatus.SUCCEEDED] = {*claims, "parts"}
    assert {status: names for status, names in missing().items() if names} == ended
    assert tidy(0) == 0


def test_a_file_that_is_being_written_does_not_stop_the_rest(workplace: Workplace) -> None:
    prompts = workplace.artifacts.local_path("prompts")
    assert prompts is not None
    prompts.mkdir(parents=True, exist_ok=True)
    young = prompts / ".abcdefgh.tmp"
    young.write_bytes(b"half")
    workplace.artifacts.put_bytes(prompt_key(new_id(Prefix.PROMPT)), b"x")
    artifacts, cache_dir = workplace.artifacts, workplace.settings.cache_dir
    assert Housekeeper(workplace.engine, artifacts, cache_dir, stray_seconds=0).tidy() == 1
    assert young.exists()


def test_half_written_files_of_killed_writers_are_removed(workplace: Workplace) -> None:
    def leave(folder: Path, name: str, age: float) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / name
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
        return path

    prompts = workplace.artifacts.local_path("prompts")
    assert prompts is not None
    features = workplace.settings.cache_dir / "features"
    old = [leave(folder, ".abcdefgh.tmp", 7200) for folder in (prompts, features)]
    young = leave(features, ".bcdefghi.tmp", 10)
    housekeeper = Housekeeper(workplace.engine, workplace.artifacts, workplace.settings.cache_dir)
    assert housekeeper.tidy() == 2
    assert not any(path.exists() for path in old)
    assert young.exists()
