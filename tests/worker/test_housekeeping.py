"""Files that nobody needs any more are found; those of others are not touched."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sharpzo_core.checkpoints import FILES, checkpoint_prefix
from sharpzo_core.ids import Prefix, new_id
from sharpzo_core.prompts import prompt_key, report_key
from tests.core.test_job_states import prompt_of
from tests.helpers import Workplace
from worker.housekeeping import Housekeeper


@pytest.mark.parametrize("remote", [False, True])
def test_only_what_has_no_row_and_is_old_is_removed(
    make_workplace: Callable[..., Workplace], tmp_path: Path, remote: bool
) -> None:
    place = make_workplace(artifact_url=f"memory://{tmp_path.name}" if remote else "")
    job = place.submit(ring=False)
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
