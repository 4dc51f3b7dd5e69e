"""Idempotency keys and the leases of datasets, on both databases."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa

from sharpzo_core.database.engine import reading, writing
from sharpzo_core.database.tables import idempotency_keys
from sharpzo_core.errors import IdempotencyInProgress, LeaseLost
from sharpzo_core.records.datasets import DatasetRecord
from sharpzo_core.records.jobs import NewJob
from sharpzo_core.stores.dataset_leases import DatasetLeases
from sharpzo_core.stores.idempotency import (
    RESERVED_SECONDS,
    IdempotencyStore,
    Reservation,
    StoredAnswer,
    fingerprint,
)
from tests.core.conftest import LEASE_SECONDS, Stores

KEPT_HOURS = 24.0
ANSWER = StoredAnswer("f" * 64, 201, '{"id":"job_1"}')


@pytest.fixture
def keys(stores: Stores) -> IdempotencyStore:
    return IdempotencyStore(stores.engine, KEPT_HOURS, stores.clock)


def reserve(keys: IdempotencyStore, key: str = "k") -> Reservation:
    reservation = keys.reserve(key)
    assert isinstance(reservation, Reservation)
    return reservation


def complete(stores: Stores, keys: IdempotencyStore, reservation: Reservation) -> None:
    with writing(stores.engine) as connection:
        keys.complete(connection, reservation, ANSWER)


def count(stores: Stores) -> int:
    with reading(stores.engine) as connection:
        query = sa.select(sa.func.count()).select_from(idempotency_keys)
        return int(connection.execute(query).scalar_one())


def test_a_completed_key_gives_its_answer_until_its_time_is_over(
    stores: Stores, keys: IdempotencyStore
) -> None:
    complete(stores, keys, reserve(keys))
    stores.clock.pass_seconds(KEPT_HOURS * 3600 - 1)
    assert keys.reserve("k") == ANSWER
    keys.delete_expired()
    assert count(stores) == 1
    stores.clock.pass_seconds(1)
    assert isinstance(keys.reserve("k"), Reservation)


def test_a_reserved_key_blocks_until_it_is_released(stores: Stores, keys: IdempotencyStore) -> None:
    reservation = reserve(keys)
    with pytest.raises(IdempotencyInProgress):
        keys.reserve("k")
    reserve(keys, "K")  # keys are told apart by case
    keys.release(reservation)
    reserve(keys)


def test_the_key_of_a_process_that_died_is_free_after_its_lease(
    stores: Stores, keys: IdempotencyStore
) -> None:
    alive, dead = reserve(keys, "alive"), reserve(keys, "dead")
    stores.clock.pass_seconds(RESERVED_SECONDS - 1)
    keys.renew([alive])
    stores.clock.pass_seconds(2)
    with pytest.raises(IdempotencyInProgress):
        keys.reserve("alive")
    taken = reserve(keys, "dead")
    with pytest.raises(IdempotencyInProgress):
        complete(stores, keys, dead)
    keys.release(dead)
    complete(stores, keys, taken)
    assert keys.reserve("dead") == ANSWER


def test_release_and_renewal_leave_a_completed_key(stores: Stores, keys: IdempotencyStore) -> None:
    reservation = reserve(keys)
    complete(stores, keys, reservation)
    keys.release(reservation)
    keys.renew([reservation])
    stores.clock.pass_seconds(2 * RESERVED_SECONDS)
    assert keys.reserve("k") == ANSWER


def test_expired_keys_are_forgotten(stores: Stores, keys: IdempotencyStore) -> None:
    complete(stores, keys, reserve(keys, "old"))
    stores.clock.pass_seconds(KEPT_HOURS * 3600)
    complete(stores, keys, reserve(keys, "new"))
    keys.delete_expired()
    assert count(stores) == 1


def test_what_was_created_and_its_answer_are_stored_together_or_not_at_all(
    stores: Stores, keys: IdempotencyStore
) -> None:
    late = reserve(keys)
    stores.clock.pass_seconds(RESERVED_SECONDS)
    reserve(keys)  # another process took the key

    def within(connection: sa.Connection, _: object) -> None:
        keys.complete(connection, late, ANSWER)

    dataset_id = stores.ready_dataset().id
    new = NewJob(dataset_id=dataset_id, backbone="tiny", config={})
    with pytest.raises(IdempotencyInProgress):
        stores.jobs.create(new, in_transaction=within)
    with pytest.raises(IdempotencyInProgress):
        stores.datasets.create("pets", in_transaction=within)
    assert not stores.jobs.list().items
    assert [dataset.id for dataset in stores.datasets.list().items] == [dataset_id]


def test_of_many_at_once_one_gets_the_key(keys: IdempotencyStore) -> None:
    def attempt(_: int) -> bool:
        try:
            return isinstance(keys.reserve("k"), Reservation)
        except IdempotencyInProgress:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(24))) == 1


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (("jobs", {"b": [1, 2], "a": "é"}), True),
        (("prompts", {"a": "é", "b": [1, 2]}), False),
        (("jobs", {"a": "é", "b": [2, 1]}), False),
        (("jobs", {"a": "é"}), False),
    ],
)
def test_a_fingerprint_is_of_the_meaning(other: tuple[str, Any], same: bool) -> None:
    assert (fingerprint("jobs", {"a": "é", "b": [1, 2]}) == fingerprint(*other)) is same


@pytest.fixture
def mine(stores: Stores) -> DatasetLeases:
    return DatasetLeases(stores.engine, "me", LEASE_SECONDS, stores.clock)


@pytest.fixture
def other(stores: Stores) -> DatasetLeases:
    return DatasetLeases(stores.engine, "other", LEASE_SECONDS, stores.clock)


def held(stores: Stores, leases: DatasetLeases) -> DatasetRecord:
    def within(connection: sa.Connection, dataset: DatasetRecord) -> None:
        leases.lock(connection, dataset.id)

    return stores.datasets.create("pets", in_transaction=within)


def test_a_dataset_is_taken_only_when_its_lease_ran_out(
    stores: Stores, mine: DatasetLeases, other: DatasetLeases
) -> None:
    dataset = held(stores, mine)
    stores.clock.pass_seconds(LEASE_SECONDS - 1)
    assert mine.renew([dataset.id]) == {dataset.id}
    stores.clock.pass_seconds(LEASE_SECONDS - 1)
    assert other.abandoned() == []
    assert not other.take(dataset.id)
    stores.clock.pass_seconds(1)
    assert other.abandoned() == [dataset.id]
    assert other.take(dataset.id)
    assert not mine.take(dataset.id)
    assert mine.renew([dataset.id]) == set()


def test_who_lost_the_lease_cannot_end_the_dataset(
    stores: Stores, mine: DatasetLeases, other: DatasetLeases
) -> None:
    dataset = held(stores, mine)
    stores.clock.pass_seconds(LEASE_SECONDS)
    assert other.take(dataset.id)
    with pytest.raises(LeaseLost):
        stores.datasets.mark_failed(dataset.id, "x", "y", owner=mine.owner)
    ready = stores.datasets.mark_ready(
        dataset.id, classes=["a"], counts={}, sha256="0" * 64, owner=other.owner
    )
    assert ready.lease_owner is None
    stores.clock.pass_seconds(LEASE_SECONDS)
    assert other.abandoned() == []


def test_a_released_dataset_is_free_at_once(
    stores: Stores, mine: DatasetLeases, other: DatasetLeases
) -> None:
    dataset = held(stores, mine)
    other.release([dataset.id])
    assert other.abandoned() == []
    mine.release([dataset.id])
    assert other.take(dataset.id)


def test_a_dataset_that_never_had_a_lease_is_taken_after_a_while(
    stores: Stores, mine: DatasetLeases
) -> None:
    dataset = stores.datasets.create("pets")
    assert mine.abandoned() == []
    stores.clock.pass_seconds(LEASE_SECONDS)
    assert mine.take(dataset.id)
