"""Short forms of what `make fuzz` does at length, and proof that it would find something."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import figures
from tests.fuzz.api import attack, filled_server
from tests.fuzz.mutations import mutate
from tests.fuzz.readers import archives, pictures, readers
from tests.fuzz.sandbox import in_a_process

COUNT = 1500
#: Readers whose mutants are all refused, or that never refuse but fall back.
ALWAYS, NEVER = {"prompts"}, {"checkpoints"}


@pytest.mark.parametrize("name", readers())
def test_mutants_raise_typed_errors_and_do_nothing_else(name: str) -> None:
    tally = in_a_process(name, seed=0, count=COUNT)
    assert tally.faults == []
    assert tally.mutants == COUNT
    assert (tally.refused == COUNT) is (name in ALWAYS)
    assert (tally.refused == 0) is (name in NEVER)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_api_keeps_its_document(tmp_path: Path, small_backbone: Path) -> None:
    with filled_server(tmp_path, small_backbone) as target:
        seen = attack(target, examples=30, seed=0)
    assert seen.failures == (), seen.output[-5000:]
    assert seen.server_errors == ()
    assert seen.cases > 1500


@pytest.mark.fast
def test_mutants_are_made_again_from_their_number() -> None:
    first, again = (mutate(random.Random("images 0 7"), pictures()) for _ in range(2))
    assert first == again
    assert len({mutate(random.Random(str(i)), archives()) for i in range(50)}) > 45


FAULTY = """
import {module}, sys, tempfile
from tests.fuzz.readers import Reader
from tests.fuzz.sandbox import Trap, read_mutants
def read(data):
    {statement}
tally = read_mutants(Reader("x", lambda _: b"", read), 0, 1, Trap(tempfile.gettempdir()))
sys.exit(0 if tally.faults else 1)
"""


@pytest.mark.parametrize(
    ("module", "statement"),
    [
        ("os", "raise KeyError('x')"),
        ("os", "open('elsewhere', 'w').close()"),
        ("os", "os.close(os.open('elsewhere', os.O_CREAT | os.O_WRONLY))"),
        ("os", "os.mkdir('elsewhere')"),
        ("os", "os.system('true')"),
        ("subprocess", "subprocess.run(['true'])"),
        ("socket", "socket.socket().connect_ex(('127.0.0.1', 9))"),
        ("pickle", "pickle.loads(pickle.dumps(print))"),
        ("time", "time.sleep(60)"),
    ],
)
def test_a_faulty_reader_is_found(tmp_path: Path, module: str, statement: str) -> None:
    """In a process of its own, because an audit hook stays."""
    code = FAULTY.format(module=module, statement=statement)
    (tmp_path / "own").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(figures.ROOT), "TMPDIR": str(tmp_path / "own")},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.fast
def test_what_kills_the_process_is_found() -> None:
    tally = in_a_process("nonesuch", seed=0, count=1)
    assert len(tally.faults) == 1
    assert "KeyError" in tally.faults[0]


@pytest.mark.fast
def test_every_mutant_of_the_long_form_counts() -> None:
    assert set(figures.MUTANTS) == set(readers())
    named = ("archives", "images", "prompts", "prompts-sealed-anew", "checkpoints")
    assert sum(figures.MUTANTS[name] for name in named) >= 190_000
    assert sum(figures.MUTANTS.values()) >= 200_000
