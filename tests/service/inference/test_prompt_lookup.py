"""Prompts are looked up without a query, and what is found is never out of date."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.inference import prompt_lookup
from service.inference.prompt_lookup import PromptLookup
from sharpzo_core.database.changes import ChangeStamp
from sharpzo_core.database.engine import make_engine
from sharpzo_core.database.tenants import DEFAULT_TENANT
from sharpzo_core.errors import NotFound
from sharpzo_core.ids import Prefix, new_id
from sharpzo_core.migrations import migrate
from sharpzo_core.records.prompts import NewPrompt, PromptRecord
from sharpzo_core.settings import Settings
from sharpzo_core.stores.alias_store import AliasStore
from sharpzo_core.stores.prompt_store import PromptStore

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class CountingStore(PromptStore):
    """Counts queries."""

    queries = 0

    def get(self, ref: str) -> PromptRecord:
        CountingStore.queries += 1
        return super().get(ref)


class World:
    """A database with the lookup of one process and the stores of another."""

    def __init__(self, folder: Path) -> None:
        settings = Settings(data_dir=folder)
        migrate(settings)
        self.engine, self.other = make_engine(settings), make_engine(settings)
        self.store = CountingStore(self.engine)
        self.prompts, self.aliases = PromptStore(self.other), AliasStore(self.other)
        self.stamp = ChangeStamp(self.engine)
        self.lookup = PromptLookup(self.stamp)
        CountingStore.queries = 0

    def publish(self, name: str = "pets") -> PromptRecord:
        backbone = {"name": "tiny", "pretrained": None, "fingerprint": "f"}
        return self.prompts.publish(
            NewPrompt(
                id=new_id(Prefix.PROMPT),
                name=name,
                job_id=None,
                backbone=backbone,
                classes=("cat", "dog"),
                metrics={},
                sha256="1" * 64,
            )
        )

    async def get(self, ref: str, tenant: str = DEFAULT_TENANT) -> PromptRecord:
        return await self.lookup.get(self.store.for_tenant(tenant), tenant, ref)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.stamp.close()
    world.engine.dispose()
    world.other.dispose()


async def test_an_unchanged_database_is_asked_once(world: World) -> None:
    prompt = world.publish()
    assert [await world.get("pets") for _ in range(5)] == [prompt] * 5
    assert CountingStore.queries == 1


async def test_a_new_version_counts_at_once(world: World) -> None:
    first = world.publish()
    assert await world.get("pets") == first
    second = world.publish()
    assert await world.get("pets") == second
    assert (await world.get("pets:1")).id == first.id


async def test_an_alias_that_moved_leads_to_its_new_prompt(world: World) -> None:
    for prompt in (world.publish(), world.publish(), world.publish()):
        world.aliases.set("live", prompt.id)
        assert (await world.get("pets@live")).id == prompt.id
        assert (await world.get("pets@live")).aliases == ("live",)


async def test_a_deleted_prompt_is_gone(world: World) -> None:
    prompt = world.publish()
    await world.get(prompt.id)
    world.prompts.delete(prompt.id)
    for _ in range(2):
        with pytest.raises(NotFound):
            await world.get(prompt.id)
    assert CountingStore.queries == 3  # what is not found is not remembered


async def test_tenants_do_not_share_what_is_found(world: World) -> None:
    world.publish()
    await world.get("pets")
    with pytest.raises(NotFound):
        await world.get("pets", tenant="other")


async def test_what_is_published_during_a_query_is_seen_by_the_next(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = world.publish()
    query = CountingStore.get

    def meanwhile(store: CountingStore, ref: str) -> PromptRecord:
        found = query(store, ref)
        monkeypatch.setattr(CountingStore, "get", query)
        world.publish()  # after the query, before its result is kept
        return found

    monkeypatch.setattr(CountingStore, "get", meanwhile)
    assert await world.get("pets") == first
    assert (await world.get("pets")).version == 2


async def test_several_refs_take_one_turn_each_is_found_or_not(world: World) -> None:
    pets, cars = world.publish(), world.publish("cars")
    await world.get("pets")
    found: list[Any] = await world.lookup.get_each(
        world.store, DEFAULT_TENANT, ["cars", "dogs", "pets", "cars"]
    )
    assert [found[0], found[2], found[3]] == [cars, pets, cars]
    assert isinstance(found[1], NotFound)


async def test_without_a_stamp_every_lookup_is_a_query(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.publish()
    monkeypatch.setattr(world.stamp, "read", lambda: None)
    for _ in range(3):
        await world.get("pets")
    assert CountingStore.queries == 3


async def test_not_more_than_a_limit_is_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_lookup, "MAX_KNOWN", 2)
    names = ["a", "b", "c"]
    for name in names:
        world.publish(name)
    for name in names * 2:
        assert (await world.get(name)).name == name
        assert len(world.lookup._known) <= 2
