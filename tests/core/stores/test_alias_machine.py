"""Aliases against a model of two lists: whatever is done in whatever order, they agree."""

import uuid
from datetime import datetime

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from sharpzo_core.errors import NotFound, NothingToRollBack, PromptInUse
from sharpzo_core.records.aliases import AliasAction
from tests.core.conftest import Stores
from tests.core.stores.test_aliases import assert_is_a_chain, publish

PROMPTS = st.integers(0, 3)


class Model:
    """What an alias should do, as simply as it can be said."""

    def __init__(self) -> None:
        self.current: int | None = None
        self.stack: list[int] = []  #: promotions that a rollback can undo, the newest last
        self.log: list[tuple[AliasAction, int | None]] = []

    def promote(self, prompt: int) -> None:
        if prompt != self.current:
            self.stack.append(prompt)
            self._move(AliasAction.SET, prompt)

    def delete(self) -> None:
        self._move(AliasAction.DELETED, None)

    def rollback(self, gone: set[int]) -> bool:
        stack = self.stack[:-1]
        while stack and (stack[-1] in gone or stack[-1] == self.current):
            stack.pop()
        if not stack:
            return False
        self.stack = stack
        self._move(AliasAction.ROLLBACK, stack[-1])
        return True

    def _move(self, action: AliasAction, prompt: int | None) -> None:
        self.current = prompt
        self.log.append((action, prompt))


class Aliases(RuleBasedStateMachine):
    stores: Stores

    @initialize()
    def begin(self) -> None:
        self.name = f"n{uuid.uuid4().hex}"  # a name of its own, for the database is shared
        self.ids = [publish(self.stores, self.name).id for _ in range(4)]
        self.gone: set[int] = set()
        self.model = Model()
        self.past: list[tuple[datetime, int | None]] = []

    @property
    def alias(self) -> str:
        return f"{self.name}@live"

    def remember(self) -> None:
        self.past.append((self.stores.clock.now, self.model.current))
        self.stores.clock.pass_seconds(1)

    @rule(prompts=st.lists(PROMPTS, min_size=1, max_size=4))
    def set_alias(self, prompts: list[int]) -> None:
        for prompt in prompts:
            self.promote(prompt)

    def promote(self, prompt: int) -> None:
        if prompt in self.gone:
            with pytest.raises(NotFound):
                self.stores.aliases.set(self.alias, self.ids[prompt])
            return
        moved = self.stores.aliases.set(self.alias, self.ids[prompt])
        assert moved.prompt_id == self.ids[prompt]
        self.model.promote(prompt)
        self.remember()

    @rule(times=st.integers(1, 3))
    def roll_back(self, times: int) -> None:
        for _ in range(times):
            self.undo()

    def undo(self) -> None:
        if self.model.current is None:
            with pytest.raises(NotFound):
                self.stores.aliases.rollback(self.alias)
        elif not self.model.rollback(self.gone):
            with pytest.raises(NothingToRollBack):
                self.stores.aliases.rollback(self.alias)
        else:
            self.stores.aliases.rollback(self.alias)
            self.remember()

    @rule()
    def delete_alias(self) -> None:
        if self.model.current is None:
            with pytest.raises(NotFound):
                self.stores.aliases.delete(self.alias)
            return
        self.stores.aliases.delete(self.alias)
        self.model.delete()
        self.remember()

    @rule(prompt=PROMPTS)
    def delete_prompt(self, prompt: int) -> None:
        expected = (
            NotFound
            if prompt in self.gone
            else PromptInUse
            if prompt == self.model.current
            else None
        )
        if expected is not None:
            with pytest.raises(expected):
                self.stores.prompts.delete(self.ids[prompt])
            return
        self.stores.prompts.delete(self.ids[prompt])
        self.gone.add(prompt)

    @rule(data=st.data())
    def look_back(self, data: st.DataObject) -> None:
        if not self.past:
            return
        moment, prompt = data.draw(st.sampled_from(self.past))
        if prompt is None:
            with pytest.raises(NotFound):
                self.stores.aliases.get(self.alias, at=moment)
            return
        found = self.stores.aliases.get(self.alias, at=moment)
        assert found.alias.prompt_id == self.ids[prompt]

    @invariant()
    def the_alias_is_where_it_should_be(self) -> None:
        if self.model.current is None:
            with pytest.raises(NotFound):
                self.stores.prompts.get(self.alias)
            return
        current = self.ids[self.model.current]
        assert self.stores.prompts.get(self.alias).id == current
        found = self.stores.aliases.get(self.alias, limit=1000)
        assert found.alias.prompt_id == current
        assert_is_a_chain(found.changes.items)
        told = [(change.action, change.prompt_id) for change in reversed(found.changes.items)]
        assert told == [
            (action, None if prompt is None else self.ids[prompt])
            for action, prompt in self.model.log
        ]


def test_no_order_of_moves_and_deletions_confuses_an_alias(stores: Stores) -> None:
    machine = type("Machine", (Aliases,), {"stores": stores})
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=25,
            stateful_step_count=20,
            deadline=None,
            phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking takes minutes
            suppress_health_check=list(HealthCheck),
        ),
    )
