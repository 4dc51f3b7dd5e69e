"""Aliases: how they move, what their history says, and what they keep from being deleted."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from threading import Barrier
from typing import Any

import pytest
import sqlalchemy as sa

from sharpzo_core.database.engine import writing
from sharpzo_core.database.tables import jobs
from sharpzo_core.database.tenants import DEFAULT_TENANT
from sharpzo_core.errors import (
    AliasAmbiguous,
    AliasMoved,
    CoreError,
    GateFailed,
    NotFound,
    NothingToRollBack,
    PromptInUse,
    StateConflict,
    ValidationFailed,
)
from sharpzo_core.ids import Prefix, new_id
from sharpzo_core.records.aliases import AliasAction, AliasChange, AliasRef, Expected, Gate
from sharpzo_core.records.jobs import TERMINAL, JobStatus
from sharpzo_core.records.prompts import NewPrompt, PromptRecord
from sharpzo_core.stores.prompt_store import lock_prompt
from tests.core.conftest import Stores

SET, ROLLBACK, DELETED = AliasAction.SET, AliasAction.ROLLBACK, AliasAction.DELETED


def publish(stores: Stores, name: str = "pets", **metrics: float | None) -> PromptRecord:
    return stores.prompts.publish(
        NewPrompt(
            id=new_id(Prefix.PROMPT),
            name=name,
            job_id=None,
            backbone={"name": "tiny", "pretrained": None, "fingerprint": "f"},
            classes=("cat", "dog"),
            metrics=metrics or {"val_accuracy": 0.5},
            sha256="1" * 64,
        )
    )


def changes(stores: Stores, alias: str = "pets@live", **where: Any) -> list[AliasChange]:
    return stores.aliases.get(alias, **where).changes.items


def assert_is_a_chain(history: list[AliasChange]) -> None:
    """Newest first, without gaps, each entry beginning where the one before ended."""
    assert [change.seq for change in history] == list(range(len(history), 0, -1))
    assert history[-1].previous_prompt_id is None
    for later, earlier in pairwise(history):
        assert later.previous_prompt_id == earlier.prompt_id
        assert later.created_at >= earlier.created_at


def test_an_alias_leads_to_its_version_wherever_a_ref_does(stores: Stores) -> None:
    first, second = publish(stores), publish(stores)
    alias = stores.aliases.set("live", first.id)
    assert (alias.name, alias.ref, alias.version, alias.seq) == ("pets", "pets@live", 1, 1)
    assert stores.prompts.get("pets@live") == replace(first, aliases=("live",))
    assert stores.prompts.get("pets") == second
    stores.aliases.set("pets@live", second.id)
    assert stores.prompts.get("pets@live").id == second.id
    assert stores.prompts.pin("pets@live").id == second.id
    for unknown in ("pets@test", "dogs@live", "pets@", "pets@1", "@live", "pets@live@x"):
        with pytest.raises(NotFound):
            stores.prompts.get(unknown)


def test_prompts_tell_their_aliases_one_by_one_and_in_lists(stores: Stores) -> None:
    first, second, other = publish(stores), publish(stores), publish(stores, "cars")
    for alias in ("live", "b", "a.1"):
        stores.aliases.set(alias, first.id)
    stores.aliases.set("live", other.id)
    expected = {first.id: ("a.1", "b", "live"), second.id: (), other.id: ("live",)}
    assert {p.id: p.aliases for p in stores.prompts.list().items} == expected
    assert stores.prompts.get(first.id).aliases == expected[first.id]
    stores.aliases.delete("pets@b")
    assert stores.prompts.get("pets:1").aliases == ("a.1", "live")


def test_a_list_takes_one_query_however_many_aliases_there_are(stores: Stores) -> None:
    for _ in range(5):
        prompt = publish(stores)
        for alias in ("a", "b"):
            stores.aliases.set(f"{alias}{prompt.version}", prompt.id)
    statements: list[str] = []
    sa.event.listen(
        stores.engine, "before_cursor_execute", lambda *args: statements.append(args[2])
    )
    assert [len(p.aliases) for p in stores.prompts.list().items] == [2] * 5
    assert len([text for text in statements if text.startswith("SELECT")]) == 1


def test_only_prompts_of_a_name_are_listed_if_it_is_asked_for(stores: Stores) -> None:
    pets = [publish(stores).id for _ in range(3)]
    publish(stores, "cars")
    page = stores.prompts.list(limit=2, name="pets")
    rest = stores.prompts.list(limit=2, after=page.next, name="pets")
    assert sorted(p.id for p in (*page.items, *rest.items)) == sorted(pets)
    assert stores.prompts.list(name="nonesuch").items == []


@pytest.mark.parametrize(
    "alias", ["", "1", "007", "-a", ".a", "a b", "a@", "@a", "a:b", "a@b@c", "ä", "a" * 101, "a\n"]
)
def test_what_an_alias_may_not_be_called(stores: Stores, alias: str) -> None:
    prompt = publish(stores)
    with pytest.raises(ValidationFailed, match="/alias"):
        stores.aliases.set(alias, prompt.id)
    for ask in (stores.aliases.get, stores.aliases.delete, stores.aliases.rollback):
        with pytest.raises(NotFound):
            ask(alias)


@pytest.mark.parametrize("alias", ["a", "A", "1a", "2026-11", "0.1", "v1", "a" * 100, "1_"])
def test_what_an_alias_may_be_called(stores: Stores, alias: str) -> None:
    prompt = publish(stores)
    assert stores.aliases.set(alias, prompt.id).alias == alias
    assert stores.prompts.get(f"pets@{alias}").id == prompt.id
    assert AliasRef.parse(f"pets@{alias}") == AliasRef("pets", alias)


def test_an_alias_belongs_to_one_name(stores: Stores) -> None:
    prompt = publish(stores)
    with pytest.raises(
        ValidationFailed, match="belongs to cars, but the prompt is a version of pets"
    ):
        stores.aliases.set("cars@live", prompt.id)
    for ref in (new_id(Prefix.PROMPT), "nonesuch"):
        with pytest.raises(NotFound):
            stores.aliases.set("live", ref)
    assert stores.aliases.list().items == []


def test_a_bare_alias_of_several_names_is_ambiguous(stores: Stores) -> None:
    pets, cars = publish(stores), publish(stores, "cars")
    stores.aliases.set("live", pets.id)
    assert stores.aliases.get("live").alias.name == "pets"
    stores.aliases.set("live", cars.id)
    for ask in (stores.aliases.get, stores.aliases.delete, stores.aliases.rollback):
        with pytest.raises(AliasAmbiguous, match="cars@live, pets@live"):
            ask("live")
    stores.aliases.delete("cars@live")
    assert stores.aliases.get("live").alias.name == "pets"


def test_many_names_with_an_alias_are_not_all_told(stores: Stores) -> None:
    for number in range(12):
        stores.aliases.set("live", publish(stores, f"name{number}").id)
    with pytest.raises(AliasAmbiguous, match="…") as caught:
        stores.aliases.get("live")
    assert caught.value.detail.count("@live") == 10


def test_the_same_target_again_changes_nothing(stores: Stores) -> None:
    first, second = publish(stores), publish(stores)
    stores.aliases.set("live", first.id)
    moved = stores.aliases.set("live", second.id, comment="better", expected=Expected(first.id))
    stores.clock.pass_seconds(5)
    # As when the answer was lost and the request is sent again.
    again = stores.aliases.set("live", second.id, comment="better", expected=Expected(first.id))
    assert again == moved
    assert [change.comment for change in changes(stores)] == ["better", None]


def test_an_alias_moves_only_from_where_it_is_expected(stores: Stores) -> None:
    first, second = publish(stores), publish(stores)
    with pytest.raises(AliasMoved, match=f"points to nothing, not to {second.id}"):
        stores.aliases.set("live", first.id, expected=Expected(second.id))
    stores.aliases.set("live", first.id, expected=Expected(None))
    for wrong in (None, second.id):
        with pytest.raises(AliasMoved, match=f"points to {first.id}"):
            stores.aliases.set("live", second.id, expected=Expected(wrong))
    with pytest.raises(AliasMoved):
        stores.aliases.rollback("live", expected=Expected(second.id))
    stores.aliases.set("live", second.id, expected=Expected(first.id))
    stores.aliases.rollback("live", expected=Expected(second.id), comment="worse")
    stores.aliases.delete("live")
    stores.aliases.set("live", second.id, expected=Expected(None))
    assert_is_a_chain(changes(stores))


GATES: list[tuple[Gate, dict[str, float | None], dict[str, float | None] | None, str | None]] = [
    # gate, candidate's metrics, those in force, what is said when it fails
    (Gate(metric="val_accuracy", min=0.9), {"val_accuracy": 0.9}, None, None),
    (
        Gate(metric="val_accuracy", min=0.9),
        {"val_accuracy": 0.8},
        None,
        "val_accuracy: wanted at least 0.9, found 0.8",
    ),
    (Gate(metric="val_accuracy", min=0.3), {"val_accuracy": 0.1 + 0.2}, None, None),
    (Gate(metric="a", min_improvement=0.2), {"a": 0.3}, {"a": 0.1}, None),
    (Gate(metric="a", min_improvement=0.0), {"a": 0.5}, {"a": 0.5}, None),
    (Gate(metric="a", min_improvement=-0.1), {"a": 0.45}, {"a": 0.5}, None),
    (
        Gate(metric="a", min_improvement=0.1),
        {"a": 0.55},
        {"a": 0.5},
        "a: wanted at least 0.6, found 0.55 (0.5 of pets:1 must be improved)",
    ),
    (Gate(metric="a", min_improvement=0.5), {"a": 0.1}, None, None),
    (Gate(metric="a", min=0.5, min_improvement=0.1), {"a": 0.7}, {"a": 0.5}, None),
    (Gate(metric="a", min=0.8, min_improvement=0.1), {"a": 0.7}, {"a": 0.5}, "at least 0.8"),
    (Gate(metric="a", min=0.5, min_improvement=0.3), {"a": 0.7}, {"a": 0.5}, "at least 0.8"),
    (
        Gate(metric="a", min_improvement=0.1),
        {"a": 0.7},
        {"b": 0.5},
        "a is not recorded for pets:1 (it has: b)",
    ),
    (Gate(metric="a", min=0.1), {"b": 1.0}, None, "a is not recorded for pets:1 (it has: b)"),
    (Gate(metric="a", min=0.1), {"a": None}, None, "not recorded for pets:1 (it has: none)"),
    (Gate(metric="a", min_improvement=0.1), {"b": 1.0}, None, "a is not recorded for pets:1"),
    (Gate(metric="val_loss", min=0.5), {"val_loss": 0.4}, None, None),
    (
        Gate(metric="val_loss", min=0.5),
        {"val_loss": 0.6},
        None,
        "val_loss: wanted at most 0.5, found 0.6",
    ),
    (Gate(metric="loss", min_improvement=0.1), {"loss": 0.4}, {"loss": 0.5}, None),
    (
        Gate(metric="loss", min_improvement=0.1),
        {"loss": 0.45},
        {"loss": 0.5},
        "loss: wanted at most 0.4, found 0.45",
    ),
    (Gate(metric="loss", min=0.0), {"loss": 1e-17}, None, None),
]


@pytest.mark.parametrize(("gate", "candidate", "current", "fault"), GATES)
def test_a_gate_lets_through_what_scores_enough(
    stores: Stores,
    gate: Gate,
    candidate: dict[str, float | None],
    current: dict[str, float | None] | None,
    fault: str | None,
) -> None:
    if current is not None:
        stores.aliases.set("live", publish(stores, **current).id)
    prompt = publish(stores, **candidate)
    if fault is not None:
        with pytest.raises(GateFailed) as caught:
            stores.aliases.set("live", prompt.id, gate=gate)
        assert fault in caught.value.detail
        kept = [alias.version for alias in stores.aliases.list().items]
        assert kept == ([] if current is None else [1])
        return
    stores.aliases.set("live", prompt.id, gate=gate)
    before = (current or {}).get(gate.metric) if gate.min_improvement is not None else None
    found = {"found": candidate[gate.metric], "current": before}
    assert changes(stores)[0].gate == {**vars(gate), **found}


def test_rolling_back_is_an_undo(stores: Stores) -> None:
    a, b, c, d = (publish(stores).id for _ in range(4))
    for prompt_id in (a, b, c):
        stores.aliases.set("live", prompt_id)
    assert stores.aliases.rollback("live", comment="oops").prompt_id == b
    assert stores.aliases.rollback("live").prompt_id == a
    with pytest.raises(NothingToRollBack):
        stores.aliases.rollback("live")
    stores.aliases.set("live", d)
    assert stores.aliases.rollback("live").prompt_id == a
    history = changes(stores)
    assert_is_a_chain(history)
    assert [(change.action, change.prompt_id) for change in reversed(history)] == [
        (SET, a),
        (SET, b),
        (SET, c),
        (ROLLBACK, b),
        (ROLLBACK, a),
        (SET, d),
        (ROLLBACK, a),
    ]
    assert history[3].comment == "oops"


def test_a_rollback_passes_over_prompts_that_are_gone(stores: Stores) -> None:
    a, b, c = (publish(stores).id for _ in range(3))
    for prompt_id in (a, b, c):
        stores.aliases.set("live", prompt_id)
    stores.prompts.delete(b)
    assert stores.aliases.rollback("live").prompt_id == a
    assert [change.prompt_id for change in changes(stores)] == [a, c, b, a]
    stores.aliases.set("live", c)
    stores.prompts.delete(a)
    with pytest.raises(NothingToRollBack, match="pets@live"):
        stores.aliases.rollback("live")


def test_a_rollback_never_goes_where_the_alias_is(stores: Stores) -> None:
    a, b = (publish(stores).id for _ in range(2))
    for prompt_id in (a, b, a):
        stores.aliases.set("live", prompt_id)
    stores.prompts.delete(b)
    with pytest.raises(NothingToRollBack):
        stores.aliases.rollback("live")


def test_a_deleted_alias_keeps_its_history_and_goes_on_with_it(stores: Stores) -> None:
    a, b = (publish(stores).id for _ in range(2))
    stores.aliases.set("live", a)
    stores.aliases.delete("live")
    for ask in (stores.aliases.get, stores.aliases.delete, stores.aliases.rollback):
        with pytest.raises(NotFound):
            ask("live")
    with pytest.raises(NotFound):
        stores.prompts.get("pets@live")
    assert stores.aliases.list().items == []
    assert stores.aliases.set("live", b).seq == 3
    history = changes(stores)
    assert_is_a_chain(history)
    assert [change.action for change in history] == [SET, DELETED, SET]
    assert (history[1].prompt_id, history[1].version) == (None, None)
    assert stores.aliases.rollback("live").prompt_id == a


def test_what_was_in_force_when(stores: Stores) -> None:
    a, b = publish(stores), publish(stores)
    start = stores.clock.now
    for minute, move in enumerate(
        (
            lambda: stores.aliases.set("live", a.id),
            lambda: stores.aliases.set("live", b.id),
            lambda: stores.aliases.rollback("live"),
            lambda: stores.aliases.delete("live"),
            lambda: stores.aliases.set("live", b.id),
        )
    ):
        stores.clock.now = start + timedelta(minutes=minute)
        move()

    def then(minutes: float) -> tuple[int, int]:
        found = stores.aliases.get("live", at=start + timedelta(minutes=minutes))
        assert found.changes.items[0].seq == found.alias.seq
        assert_is_a_chain(found.changes.items)
        assert found.alias.updated_at == start + timedelta(minutes=found.alias.seq - 1)
        return found.alias.version, found.alias.seq

    assert [then(m) for m in (0, 0.5, 1, 1.9, 2.5, 4, 999)] == [
        (1, 1),
        (1, 1),
        (2, 2),
        (2, 2),
        (1, 3),
        (2, 5),
        (2, 5),
    ]
    for nowhere in (-1, 3, 3.5):
        with pytest.raises(NotFound):
            then(nowhere)
    with pytest.raises(NotFound):
        stores.aliases.get("pets@other", at=start)


def test_a_bare_alias_means_the_name_that_had_it_then(stores: Stores) -> None:
    pets, cars = publish(stores), publish(stores, "cars")
    stores.aliases.set("live", pets.id)
    then = stores.clock.now
    stores.clock.pass_seconds(60)
    stores.aliases.set("live", cars.id)
    both = stores.clock.now
    stores.clock.pass_seconds(60)
    stores.aliases.delete("pets@live")
    assert stores.aliases.get("live", at=then).alias.name == "pets"
    with pytest.raises(AliasAmbiguous, match="cars@live, pets@live"):
        stores.aliases.get("live", at=both)
    assert stores.aliases.get("pets@live", at=both).alias.prompt_id == pets.id
    assert stores.aliases.get("live").alias.name == "cars"


def test_the_history_is_in_order_even_if_a_clock_is_behind(stores: Stores) -> None:
    a, b = publish(stores), publish(stores)
    stores.aliases.set("live", a.id)
    moment = stores.clock.now
    stores.clock.pass_seconds(-30)
    assert stores.aliases.set("live", b.id).updated_at == moment
    assert stores.aliases.get("live", at=moment).alias.prompt_id == b.id


def test_a_history_is_read_page_by_page(stores: Stores) -> None:
    a, b = publish(stores), publish(stores)
    for prompt in (a, b, a, b, a):
        stores.aliases.set("live", prompt.id)
    found, after = [], None
    while True:
        page = stores.aliases.get("live", limit=2, after=after).changes
        found += [change.seq for change in page.items]
        if not page.has_more:
            break
        after = page.next
    assert found == [5, 4, 3, 2, 1]
    for wrong in ("x", "", "-1", "1.0", "٣", "9" * 19, "pets@live"):
        with pytest.raises(ValidationFailed, match="/after"):
            stores.aliases.get("live", after=wrong)
    with pytest.raises(ValidationFailed, match="/limit"):
        stores.aliases.get("live", limit=0)


def test_aliases_are_listed_by_name(stores: Stores) -> None:
    for name in ("cars", "pets", "car"):
        prompt = publish(stores, name)
        for alias in ("live", "a", "test"):
            stores.aliases.set(alias, prompt.id)
    found, after = [], None
    while True:
        page = stores.aliases.list(limit=2, after=after)
        found += [alias.ref for alias in page.items]
        if not page.has_more:
            break
        after = page.next
    refs = [
        f"{name}@{alias}" for name in ("car", "cars", "pets") for alias in ("a", "live", "test")
    ]
    assert found == refs
    assert [alias.ref for alias in stores.aliases.list(name="cars").items] == refs[3:6]
    for wrong in ("x", "", "prm_1", "a@b@c", new_id(Prefix.PROMPT)):
        with pytest.raises(ValidationFailed, match="/after"):
            stores.aliases.list(after=wrong)
    with pytest.raises(ValidationFailed, match="/limit"):
        stores.aliases.list(limit=10**9)


def test_a_prompt_that_an_alias_points_to_is_not_deleted(stores: Stores) -> None:
    prompt, other = publish(stores), publish(stores)
    for alias in ("live", "a"):
        stores.aliases.set(alias, prompt.id)
    for ref in (prompt.id, "pets:1", "pets@live"):
        with pytest.raises(PromptInUse, match="pets@a, pets@live"):
            stores.prompts.delete(ref)
    stores.aliases.delete("a")
    stores.aliases.set("live", other.id)
    stores.prompts.delete(prompt.id)
    assert [change.prompt_id for change in changes(stores)] == [other.id, prompt.id]


@pytest.mark.parametrize("status", list(JobStatus))
def test_a_prompt_that_a_job_uses_is_not_deleted(stores: Stores, status: JobStatus) -> None:
    prompt, job = publish(stores), stores.job()
    with writing(stores.engine) as connection:
        connection.execute(sa.update(jobs).values(status=status, prompt_id=prompt.id))
    if status in TERMINAL:
        stores.prompts.delete(prompt.id)
        return
    with pytest.raises(PromptInUse, match=job.id):
        stores.prompts.delete(prompt.id)
    assert stores.prompts.get(prompt.id) == prompt


def test_pins_are_kept_until_they_are_taken_away(stores: Stores) -> None:
    first, second, third = (publish(stores) for _ in range(3))
    assert not first.pinned
    assert list(stores.prompts.pinned()) == []
    for _ in range(2):
        assert stores.prompts.pin("pets:1") == replace(first, pinned=True)
    stores.prompts.pin(third.id)
    stores.aliases.set("live", third.id)
    pinned = stores.prompts.pinned()
    assert pinned == [stores.prompts.get("pets:1"), stores.prompts.get("pets@live")]
    assert pinned[1].aliases == ("live",)
    assert stores.prompts.pin("pets:3", pinned=False).pinned is False
    stores.prompts.delete(first.id)
    assert list(stores.prompts.pinned()) == []
    assert not stores.prompts.get(second.id).pinned
    with pytest.raises(NotFound):
        stores.prompts.pin("pets:9")


def at_once(*calls: Any) -> list[Any]:
    """Results or errors of calls that begin together."""
    start = Barrier(len(calls))

    def run(call: Any) -> Any:
        start.wait(30)
        try:
            return call()
        except CoreError as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


def test_racing_moves_leave_a_chain(stores: Stores) -> None:
    prompts = [publish(stores) for _ in range(8)]
    results = at_once(*(lambda p=p: stores.aliases.set("live", p.id) for p in prompts))
    assert sorted(result.seq for result in results) == list(range(1, 9))
    assert_is_a_chain(changes(stores))
    mixed = at_once(
        *(lambda p=p: stores.aliases.set("live", p.id) for p in prompts),
        *(lambda: stores.aliases.rollback("live") for _ in range(4)),
    )
    assert not [
        error
        for error in mixed
        if isinstance(error, CoreError) and not isinstance(error, NothingToRollBack)
    ]
    history = changes(stores, limit=100)
    assert_is_a_chain(history)
    assert stores.aliases.get("live").alias.prompt_id == history[0].prompt_id


def test_of_racing_moves_with_one_expectation_one_wins(stores: Stores) -> None:
    first, *others = (publish(stores) for _ in range(7))
    stores.aliases.set("live", first.id)
    results = at_once(
        *(lambda p=p: stores.aliases.set("live", p.id, expected=Expected(first.id)) for p in others)
    )
    assert sum(isinstance(result, AliasMoved) for result in results) == len(others) - 1
    assert len(changes(stores)) == 2


def test_an_alias_never_points_to_a_prompt_that_is_being_deleted(stores: Stores) -> None:
    stores.aliases.set("live", publish(stores).id)
    for _ in range(10):
        prompt = publish(stores)
        moved, deleted = at_once(
            lambda p=prompt: stores.aliases.set("live", p.id),
            lambda p=prompt: stores.prompts.delete(p.id),
        )
        assert isinstance(moved, NotFound) != isinstance(deleted, PromptInUse)
        assert stores.prompts.get("pets@live").id == stores.aliases.get("live").alias.prompt_id


def test_a_rollback_never_goes_to_a_prompt_that_is_being_deleted(stores: Stores) -> None:
    bottom = publish(stores)
    for _ in range(10):
        beneath, top = publish(stores), publish(stores)
        for prompt in (bottom, beneath, top):
            stores.aliases.set("live", prompt.id)
        moved, deleted = at_once(
            lambda: stores.aliases.rollback("live"),
            lambda p=beneath: stores.prompts.delete(p.id),
        )
        expected = beneath if isinstance(deleted, PromptInUse) else bottom
        assert moved.prompt_id == expected.id
        assert stores.prompts.get("pets@live").id == expected.id


def test_a_prompt_that_is_held_stays_until_the_end(stores: Stores) -> None:
    prompt = publish(stores)
    job = stores.job()
    with ThreadPoolExecutor(1) as pool:
        with writing(stores.engine) as connection:
            assert lock_prompt(connection, prompt.id, DEFAULT_TENANT) == prompt
            deletion = pool.submit(stores.prompts.delete, prompt.id)
            update = sa.update(jobs).where(jobs.c.id == job.id)
            connection.execute(update.values(prompt_id=prompt.id))
        with pytest.raises(PromptInUse, match=job.id):
            deletion.result(30)


def test_what_is_written_with_a_rollback_is_written_or_nothing_is(stores: Stores) -> None:
    a, b = publish(stores), publish(stores)
    for prompt in (a, b):
        stores.aliases.set("live", prompt.id)

    def refuse(connection: sa.Connection, alias: object) -> None:
        raise StateConflict

    with pytest.raises(StateConflict):
        stores.aliases.rollback("live", in_transaction=refuse)
    assert len(changes(stores)) == 2
    assert stores.prompts.get("pets@live").id == b.id
