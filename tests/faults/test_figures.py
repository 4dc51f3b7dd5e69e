"""Short forms of what `make faults` measures at length, and the runner itself."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.cluster import FAST, open_mode
from tests.faults.conftest import MODES
from tests.faults.excuses import excuses
from tests.faults.figures import FIGURES, Lab
from tests.faults.scenarios.chaos import random_kills
from tests.faults.scenarios.writers import write_together
from tests.figures import END, Book, Figure, Measured

LONGEST_WAIT_SECONDS = 10.0


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", MODES)
def test_random_kills_lose_and_double_nothing(
    mode: str, tmp_path: Path, small_backbone: Path
) -> None:
    with open_mode(mode, tmp_path, small_backbone, **FAST) as cluster:
        cluster.start_api()
        losses = random_kills(cluster, workers=2, jobs=4, kills=3)

    assert losses.accepted == 4
    assert losses.kills.total() == 3
    assert (losses.lost, losses.doubled) == ([], [])


def test_writers_of_one_sqlite_file_wait_for_each_other(tmp_path: Path) -> None:
    waits = write_together(tmp_path / "data", processes=4, transactions=25)

    assert waits.errors == []
    assert len(waits.seconds) == 100
    assert waits.seconds[-1] < LONGEST_WAIT_SECONDS


@pytest.mark.fast
def test_no_fault_is_excused() -> None:
    assert excuses() == []


@pytest.mark.fast
def test_every_figure_has_a_name_of_its_own() -> None:
    assert max(Counter(figure.name for figure in FIGURES).values()) == 1


def kept(lab: Lab) -> Measured:
    return Measured("0 lost", lab.runs(20), "none", kept=True)


def missed(lab: Lab) -> Measured:
    raise TimeoutError("a job did not end")


@pytest.mark.fast
def test_the_runner_keeps_results_and_tells_of_a_miss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = tmp_path / "reliability.md"
    promises = (Figure("jobs lost", "0", kept), Figure("jobs late", "0", missed))
    book = Book("faults", promises, document, root=tmp_path)
    document.write_text(f"# Reliability\n\n{book.begin}\nold\n{END}\n\nMore.\n")

    (tmp_path / "lab").mkdir()
    assert book.measure(Lab(tmp_path / "lab", 0.1), 0.1, only="kept") == 0
    assert "old" in document.read_text()
    assert json.loads(book.results_file.read_text())["kept"]["runs"] == 2

    (tmp_path / "lab 2").mkdir()
    assert book.measure(Lab(tmp_path / "lab 2", 1.0), 1.0) == 1
    text = document.read_text()
    assert "| jobs lost | 0 | 0 lost | 20 | none |" in text
    assert "| jobs late | 0 | TimeoutError | 0 | a job did not end |" in text
    assert "old" not in text
    assert text.endswith("\n\nMore.\n")
    assert "MISSED" in capsys.readouterr().out
