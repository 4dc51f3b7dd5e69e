from typing import Any

import pytest
from pydantic import ValidationError

from sharpzo_core.errors import NotFound, StateConflict, TooManyJobs, ValidationFailed
from sharpzo_core.ids import Prefix, new_id
from sharpzo_core.jobs import Job
from sharpzo_core.schemas import JobCreate, JobPublic
from sharpzo_core.settings import Settings
from sharpzo_core.submission import submit_job
from sharpzo_engine.config import TuningConfig
from tests.core.conftest import Stores


@pytest.fixture
def settings(tmp_path: object) -> Settings:
    return Settings.load(data_dir=tmp_path, max_queued_jobs=2)


def submit(stores: Stores, settings: Settings, **request: Any) -> Job:
    request.setdefault("dataset_id", stores.ready_dataset().id)
    return submit_job(
        JobCreate(**request), settings=settings, jobs=stores.jobs, datasets=stores.datasets
    )


def test_a_job_carries_its_whole_configuration(stores: Stores, settings: Settings) -> None:
    job = submit(stores, settings, preset="fast", config={"shots": 4, "popsize": 8}, name="pets")
    config = TuningConfig.model_validate(job.config)
    assert (config.shots, config.cma.population_size, config.patience) == (4, 8, 5)
    assert job.backbone == "tiny"
    public = JobPublic.of(job).model_dump(mode="json")
    assert public["progress"] == {
        "step": 0,
        "total_steps": 0,
        "forward_passes": 0,
        "eta_seconds": None,
    }
    assert set(public) == {
        *("id", "status", "phase", "progress", "metrics", "prompt_id", "error", "attempt"),
        *("created_at", "started_at", "finished_at", "config", "dataset_id", "backbone"),
        *("name", "metadata"),
    }


@pytest.mark.parametrize(
    ("request_", "pointer"),
    [
        ({"config": {"shots": 17}}, "/config/shots"),
        ({"config": {"shots": 0}}, "/config/shots"),
        ({"config": {"shots": "5"}}, "/config/shots"),
        ({"config": {"seed": 2**63}}, "/config/seed"),
        ({"config": {"unheard": 1}}, "/config/unheard"),
        ({"config": {"cma": {"sigma": float("nan")}}}, "/config/cma/sigma"),
        ({"config": {"prompt": {"context": "a\ud800"}}}, "/config/prompt/context"),
        ({"config": {"prompt": {"context": "a\x00"}}}, "/config/prompt/context"),
        ({"config": {"a/b~c": 1}}, "/config/a~1b~0c"),
        ({"preset": "best"}, "/preset"),
        ({"backbone": "local-dir:/etc"}, "/backbone"),
    ],
)
def test_a_wrong_request_is_refused_with_a_pointer(
    stores: Stores, settings: Settings, request_: dict[str, Any], pointer: str
) -> None:
    with pytest.raises(ValidationFailed) as caught:
        submit(stores, settings, **request_)
    assert pointer in [where for where, _ in caught.value.errors]
    assert stores.jobs.list().items == []


def test_too_few_images_names_the_class(stores: Stores, settings: Settings) -> None:
    with pytest.raises(ValidationFailed, match="'cat' has 3 training images"):
        submit(stores, settings, dataset_id=stores.ready_dataset(images=3).id)


def test_nesting_is_bounded(stores: Stores, settings: Settings) -> None:
    deep: dict[str, Any] = {}
    for _ in range(900):
        deep = {"a": deep}
    with pytest.raises(ValidationFailed):
        submit(stores, settings, config=deep)


def test_the_dataset_must_be_ready(stores: Stores, settings: Settings) -> None:
    with pytest.raises(NotFound):
        submit(stores, settings, dataset_id=new_id(Prefix.DATASET))
    with pytest.raises(StateConflict):
        submit(stores, settings, dataset_id=stores.datasets.create("x").id)


def test_a_full_queue_says_when_to_come_back(stores: Stores, settings: Settings) -> None:
    submit(stores, settings)
    submit(stores, settings)
    with pytest.raises(TooManyJobs) as caught:
        submit(stores, settings)
    assert caught.value.retry_after > 0


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"dataset_id": "x", "status": "succeeded"},
        {"dataset_id": "x", "name": "../x"},
        {"dataset_id": "x", "name": "a:b"},
        {"dataset_id": "x", "name": "a\n"},
        {"dataset_id": "x", "metadata": {"k": "v" * 513}},
        {"dataset_id": "x", "metadata": {f"k{i}": "v" for i in range(17)}},
        {"dataset_id": "x", "metadata": {"k": "\ud800"}},
        {"dataset_id": "x\x00"},
    ],
)
def test_a_malformed_body_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        JobCreate.model_validate(body)
