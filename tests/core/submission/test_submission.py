from typing import Any

import pytest
from pydantic import ValidationError

from sharpzo_core.errors import (
    ConfigMismatch,
    CoreError,
    NotFound,
    StateConflict,
    TooManyJobs,
    ValidationFailed,
)
from sharpzo_core.ids import Prefix, new_id
from sharpzo_core.records.checkpoints import FILES, checkpoint_prefix
from sharpzo_core.records.jobs import CheckpointRef, Job, JobProgress, Phase
from sharpzo_core.schemas.jobs import CheckpointPublic, JobCreate, JobPublic
from sharpzo_core.settings import Settings
from sharpzo_core.storage.artifact_store import ArtifactStore
from sharpzo_core.stores.job_leases import lease_of
from sharpzo_core.submission.tuning import submit_job
from sharpzo_engine.config import TuningConfig
from tests.core.conftest import Stores


@pytest.fixture
def settings(tmp_path: object) -> Settings:
    return Settings.load(data_dir=tmp_path, max_queued_jobs=2)


def submit(stores: Stores, settings: Settings, **request: Any) -> Job:
    request.setdefault("dataset_id", stores.ready_dataset().id)
    return submit_job(
        JobCreate(**request),
        settings=settings,
        jobs=stores.jobs,
        datasets=stores.datasets,
        artifacts=ArtifactStore.from_url(settings.artifacts),
    )


def test_a_job_carries_its_whole_configuration(stores: Stores, settings: Settings) -> None:
    job = submit(stores, settings, preset="fast", config={"shots": 4, "popsize": 8}, name="pets")
    config = TuningConfig.model_validate(job.config)
    assert (config.shots, config.cma.population_size, config.patience) == (4, 8, 5)
    assert job.backbone == "tiny"
    public = JobPublic.from_record(job).model_dump(mode="json")
    assert public["progress"] == {
        "step": 0,
        "total_steps": 0,
        "forward_passes": 0,
        "eta_seconds": None,
    }
    assert set(public) == {
        *(
            "id",
            "kind",
            "status",
            "phase",
            "phase_label",
            "progress",
            "metrics",
            "prompt_id",
            "error",
            "attempt",
        ),
        *("created_at", "started_at", "finished_at", "config", "dataset_id"),
        *("unlabelled_dataset_id", "backbone", "finishing", "stopped_by"),
        *("name", "metadata", "checkpoint", "from_checkpoint"),
    }


@pytest.mark.parametrize(
    ("request_", "pointer"),
    [
        ({"config": {"shots": 17}}, "/config/shots"),
        ({"config": {"shots": 0}}, "/config/shots"),
        ({"config": {"shots": "5"}}, "/config/shots"),
        ({"config": {"seed": 2**63}}, "/config/seed"),
        ({"config": {"unheard": 1}}, "/config/unheard"),
        ({"config": {"classes": "half"}}, "/config/classes"),
        ({"config": {"classes": "base"}}, "/config/classes"),  # of two classes: one
        ({"config": {"cma": {"sigma": float("nan")}}}, "/config/cma/sigma"),
        ({"config": {"prompt": {"context": "a\ud800"}}}, "/config/prompt/context"),
        ({"config": {"prompt": {"context": "a\x00"}}}, "/config/prompt/context"),
        ({"config": {"a/b~c": 1}}, "/config/a~1b~0c"),
        ({"config": {"extra_classes": ["fox"]}}, "/config/extra_classes"),  # beside two classes
        ({"config": {"extra_classes": ["Cat"]}}, "/config/extra_classes"),  # has images
        ({"config": {"extra_classes": [""]}}, "/config/extra_classes"),
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


def test_classes_without_images_are_accepted_beside_four_with_images(
    stores: Stores, settings: Settings
) -> None:
    names = ("ant", "bee", "cat", "dog")
    dataset = stores.datasets.mark_ready(
        stores.datasets.create("animals").id,
        classes=names,
        counts={"train": dict.fromkeys(names, 4)},
        sha256="0" * 64,
    )
    wanted = {"shots": 4, "extra_classes": ["red_fox", "elk"]}
    job = submit(stores, settings, dataset_id=dataset.id, config=wanted)
    assert TuningConfig.model_validate(job.config).extra_classes == ("red fox", "elk")
    wanted["shots"] = 1
    with pytest.raises(ValidationFailed, match="raise shots, or add validation images"):
        submit(stores, settings, dataset_id=dataset.id, config=wanted)


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


def test_unlabelled_images_come_from_a_second_dataset(stores: Stores, settings: Settings) -> None:
    more = stores.ready_dataset(images=5)
    job = submit(stores, settings, unlabelled_dataset_id=more.id)
    assert job.unlabelled_dataset_id == stores.jobs.get(job.id).unlabelled_dataset_id == more.id
    assert JobPublic.from_record(job).unlabelled_dataset_id == more.id
    with pytest.raises(StateConflict, match="a job that is not finished uses this dataset"):
        stores.datasets.delete(more.id)
    stores.jobs.request_cancel(job.id)
    stores.datasets.delete(more.id)
    with pytest.raises(NotFound):
        stores.jobs.request_resume(job.id)


@pytest.mark.parametrize(
    ("config", "field"),
    [({"head": "none"}, "/config/head"), ({"extra_classes": ["scarf"]}, "/config/extra_classes")],
)
def test_unlabelled_images_that_nothing_learns_from_are_refused(
    stores: Stores, settings: Settings, config: dict[str, object], field: str
) -> None:
    own = stores.ready_dataset(images=40)
    with pytest.raises(ValidationFailed) as caught:
        submit(stores, settings, unlabelled_dataset_id=own.id, config=config)
    assert [where for where, _ in caught.value.errors] == [field]


def test_few_unlabelled_images_are_refused(stores: Stores, settings: Settings) -> None:
    few = stores.ready_dataset(images=4)
    with pytest.raises(
        ValidationFailed, match="has 8 images to learn from, fewer than 10"
    ) as caught:
        submit(stores, settings, unlabelled_dataset_id=few.id)
    assert [where for where, _ in caught.value.errors] == ["/unlabelled_dataset_id"]
    own = stores.ready_dataset(images=16)  # beyond twice 12 shots there are 8
    request = {"dataset_id": own.id, "unlabelled_dataset_id": own.id}
    with pytest.raises(ValidationFailed, match="has 8 images"):
        submit(stores, settings, **request, config={"shots": 12})
    assert submit(stores, settings, **request, config={"shots": 11}).unlabelled_dataset_id == own.id


def test_the_unlabelled_dataset_must_be_ready(stores: Stores, settings: Settings) -> None:
    with pytest.raises(NotFound):
        submit(stores, settings, unlabelled_dataset_id=new_id(Prefix.DATASET))
    with pytest.raises(StateConflict, match="unlabelled images is processing"):
        submit(stores, settings, unlabelled_dataset_id=stores.datasets.create("x").id)


def test_a_full_queue_says_when_to_come_back(stores: Stores, settings: Settings) -> None:
    submit(stores, settings)
    submit(stores, settings)
    with pytest.raises(TooManyJobs) as caught:
        submit(stores, settings)
    assert caught.value.retry_after > 0


def with_checkpoint(stores: Stores, settings: Settings, step: int = 100) -> Job:
    """A running job that has saved itself, and spent 1,000 forward passes."""
    job = stores.leases.claim(submit(stores, settings, config={"cma": {"sigma": 0.2}}).id, "wrk_a")
    assert job is not None
    lease = lease_of(job)
    stores.leases.save_progress(lease, JobProgress(Phase.STAGE1, step, 2000, 1000), {})
    stores.leases.save_checkpoint(lease, CheckpointRef("claim", step, stores.clock.now))
    key = f"{checkpoint_prefix(job.id, 'claim')}/{FILES[0]}"
    ArtifactStore.from_url(settings.artifacts).put_bytes(key, b"state")
    return stores.jobs.get(job.id)


def test_a_job_may_go_on_from_anothers_checkpoint(stores: Stores, settings: Settings) -> None:
    origin = with_checkpoint(stores, settings)
    more = {"total_steps": 3000, "head": "none", "max_forward_passes": 5000}
    job = submit(
        stores, settings, dataset_id=origin.dataset_id, from_checkpoint=origin.id, config=more
    )
    assert job.config == {**origin.config, **more}
    assert (job.from_checkpoint, job.checkpoint) == (origin.id, origin.checkpoint)
    assert stores.jobs.get(job.id) == job
    stores.leases.fail(lease_of(origin), "code", "message")
    stores.jobs.delete(origin.id)  # the copy is the new job's own
    artifacts = ArtifactStore.from_url(settings.artifacts)
    artifacts.delete_prefix(f"jobs/{origin.id}")
    assert artifacts.get_bytes(f"{checkpoint_prefix(job.id, 'claim')}/{FILES[0]}") == b"state"
    assert JobPublic.from_record(job).checkpoint == CheckpointPublic(
        step=100, saved_at=stores.clock.now
    )


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"config": {"total_steps": 100}}, ValidationFailed, "/config/total_steps: .* step 100"),
        ({"config": {"max_forward_passes": 999}}, ValidationFailed, "took 1000 already"),
        ({"config": {"seed": 2}}, ConfigMismatch, "this request changes seed"),
        ({"config": {"sigma": 0.4}}, ConfigMismatch, "this request changes cma"),
        ({"backbone": "ViT-B-32:openai"}, ConfigMismatch, "changes backbone"),
        ({"preset": "fast"}, ValidationFailed, "/preset: cannot be combined with from_checkpoint"),
        ({"dataset_id": None}, ConfigMismatch, "changes dataset_id"),
        ({"from_checkpoint": "job_unknown"}, NotFound, "no such job"),
    ],
)
def test_a_run_that_goes_on_must_be_the_same_run(
    stores: Stores,
    settings: Settings,
    changes: dict[str, Any],
    error: type[CoreError],
    message: str,
) -> None:
    origin = with_checkpoint(stores, settings)
    request = {"dataset_id": origin.dataset_id, "from_checkpoint": origin.id} | changes
    if request["dataset_id"] is None:
        request["dataset_id"] = stores.ready_dataset().id
    with pytest.raises(error, match=message):
        submit(stores, settings, **request)
    assert [job.id for job in stores.jobs.list().items] == [origin.id]


def test_a_job_without_a_checkpoint_is_nothing_to_begin_with(
    stores: Stores, settings: Settings
) -> None:
    origin = submit(stores, settings)
    request = {"dataset_id": origin.dataset_id, "from_checkpoint": origin.id}
    with pytest.raises(StateConflict, match="no checkpoint yet"):
        submit(stores, settings, **request)


def test_a_checkpoint_that_is_just_being_replaced_leaves_nothing_behind(
    stores: Stores, settings: Settings
) -> None:
    origin = with_checkpoint(stores, settings)
    artifacts = ArtifactStore.from_url(settings.artifacts)
    artifacts.delete_prefix(checkpoint_prefix(origin.id))
    with pytest.raises(StateConflict, match="try again"):
        submit(
            stores,
            settings,
            dataset_id=origin.dataset_id,
            from_checkpoint=origin.id,
            config={"total_steps": 5000},
        )
    assert [job.id for job in stores.jobs.list().items] == [origin.id]


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
