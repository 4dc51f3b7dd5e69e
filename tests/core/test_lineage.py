"""Where prompts come from: what is kept, and what a file may claim."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from sharpzo_core.lineage import MAX_CONFIG_BYTES, claimed_lineage, tuned_lineage
from sharpzo_core.records.jobs import CheckpointRef
from sharpzo_core.schemas.prompts import PromptPublic
from sharpzo_core.stores.job_leases import lease_of
from tests.core.conftest import Stores
from tests.core.stores.test_job_states import prompt_of

CONFIG = {"seed": 3, "shots": 16, "cma": {"sigma": 0.4, "rho": None}, "head": "auto"}


def test_a_prompt_keeps_what_it_was_made_of(stores: Stores) -> None:
    job = stores.claimed(name="pets")
    dataset = stores.datasets.get(job.dataset_id)
    lineage = tuned_lineage(job, dataset, "1.0")
    prompt = replace(prompt_of(job), lineage=lineage)
    stores.leases.succeed(lease_of(job), prompt, {})
    stored = stores.prompts.get("pets")
    assert stored.lineage == lineage
    assert lineage["dataset_sha256"] == dataset.sha256
    told = PromptPublic.from_record(stored).lineage
    assert (told.source, told.job_id, told.seed, told.engine_version) == ("job", job.id, 1, "1.0")
    assert (told.dataset_id, told.dataset_name) == (dataset.id, "photos")


@pytest.mark.parametrize("published", [True, False])
def test_the_parent_is_what_the_first_job_published(stores: Stores, published: bool) -> None:
    origin = stores.claimed(name="pets")
    checkpoint = CheckpointRef("f", 3, datetime(2026, 1, 1, tzinfo=UTC))
    stores.leases.save_checkpoint(lease_of(origin), checkpoint)
    if published:
        stores.leases.succeed(lease_of(origin), prompt_of(origin), {})
    origin = stores.jobs.get(origin.id)
    job = stores.claimed(name="longer", from_checkpoint=origin.id)
    lineage = tuned_lineage(job, stores.datasets.get(job.dataset_id), "1.0")
    stores.leases.succeed(lease_of(job), replace(prompt_of(job), lineage=lineage), {})
    told = PromptPublic.from_record(stores.prompts.get("longer")).lineage
    assert (told.from_checkpoint, told.parent) == (origin.id, origin.prompt_id)
    assert (told.parent is not None) is published


def test_a_file_may_claim_what_it_was_made_of() -> None:
    metadata = {
        "config": CONFIG,
        "dataset": {"name": "photos", "shots": 16},
        "engine_version": "0.1.0",
        "from_checkpoint": "job_1",
        "dataset_id": "ds_1",
    }
    assert claimed_lineage(metadata) == {
        "config": CONFIG,
        "seed": 3,
        "dataset_name": "photos",
        "engine_version": "0.1.0",
    }
    assert claimed_lineage({}) == {}


@pytest.mark.parametrize(
    "config",
    [
        None,
        [],
        "x",
        {"seed": 1, "a": float("nan")},
        {"seed": 1, "a": [[[[[[[[[[1]]]]]]]]]]},
        {"seed": 1, "a": "\x1b"},
        {"seed": 1, "a": "x" * MAX_CONFIG_BYTES},
        {"seed": 1, "a": 2**63},
        {1: 2},
    ],
)
def test_a_configuration_that_no_row_should_hold_is_left_out(config: Any) -> None:
    claimed = claimed_lineage({"config": config, "engine_version": "0.1.0"})
    assert "config" not in claimed
    assert claimed["engine_version"] == "0.1.0"


@pytest.mark.parametrize("seed", [True, -1, 2**63, 1.0, "1", None, [1]])
def test_a_seed_is_a_number_that_could_be_one(seed: Any) -> None:
    assert "seed" not in claimed_lineage({"config": {"seed": seed}})
