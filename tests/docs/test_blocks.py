"""Every block of code in README.md and docs/ runs, in order, as it stands."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.docs.blocks import (
    OPT_OUT,
    PAGES,
    ROOT,
    RUN,
    SHOWN,
    Page,
    differences,
    document,
    json_values,
    languages,
    opt_outs,
)
from tests.docs.conftest import MakePage, environment

MOST_OPT_OUTS = 8


def needs(path: Path) -> list[pytest.MarkDecorator]:
    servers = {"redis": "redis://localhost", "postgres": "postgresql+psycopg://user"}
    return [pytest.mark.needs(name) for name, sign in servers.items() if sign in path.read_text()]


def cases() -> list[object]:
    return [
        pytest.param(path, id=str(path.relative_to(ROOT)), marks=needs(path))
        for path in PAGES
        if any(document(path).examples())
    ]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("path", cases())
def test_every_block_of_the_page_runs(path: Path, make_page: MakePage) -> None:
    assert make_page(path).run() > 0


@pytest.mark.fast
@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_block_says_what_it_is(path: Path) -> None:
    unknown = [(line, name) for line, name in languages(path) if name not in RUN + SHOWN]
    assert not unknown, "give the block a language that is run or shown"


@pytest.mark.fast
def test_few_blocks_are_not_run_and_each_has_a_reason() -> None:
    reasons = [reason for path in PAGES for reason in opt_outs(path)]
    assert len(reasons) <= MOST_OPT_OUTS
    assert all(len(reason.split()) >= 3 for reason in reasons)


@pytest.mark.fast
def test_an_opt_out_stands_right_above_a_block() -> None:
    for path in PAGES:
        text = path.read_text()
        for match in re.finditer("<!-- not run: .*? -->", text, re.DOTALL):
            assert OPT_OUT.search(text[: match.end()])
            assert text[match.end() :].lstrip().startswith("```"), f"{path}: {match[0]}"


# That the tests above can fail


def broken_page(path: Path, *blocks: str) -> Path:
    path.write_text("# A page\n\n" + "\n\n".join(f"```{block}\n```" for block in blocks) + "\n")
    return path


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("python\nx = 1\nassert x == 2", "block at line 7: AssertionError"),
        ("python\nclient.jobs.vanish()", "block at line 7: NameError"),
        ("sh\nsharpzo tune nowhere --out p.safetensors", "error: nowhere"),
        ("sh\nfalse\ntrue", "exit code 1"),
        ("sh\nfalse | true", "exit code 1"),
        ("sh\necho $undefined", "unbound variable"),
        ("sh\nmake demonstration", "exit code 2"),
        ("sh\ndocker build --target cliend .", "no stage cliend"),
        pytest.param(
            "sh\ndocker compose exec apo sharpzo keys list",
            "no service apo",
            marks=pytest.mark.needs("docker-compose"),
        ),
        ('json\n{"id": "job_1"}', "/id is not in the answer"),
        ('json\n{"a": "text"}', "/a is 1"),
    ],
)
def test_a_broken_block_is_found(
    block: str, message: str, bin_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = broken_page(folder / "page.md", "sh\necho '{\"a\": 1}'", block)
    page = Page(path, folder, environment(bin_folder, tmp_path / "data"), {})
    with pytest.raises(AssertionError, match=re.escape(message)):
        page.run()


@pytest.mark.fast
def test_blocks_share_what_they_define(bin_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = broken_page(
        folder / "page.md",
        "sh\nanswer=42\ntwice() { echo $(($1 * 2)); }",
        "python\nimport os\n\nx = int(os.environ['answer'])",
        "sh\ntest $(twice $answer) = 84",
        "python\nassert x == 42",
    )
    assert Page(path, folder, environment(bin_folder, tmp_path / "data"), {}).run() == 4


def test_a_block_may_be_left_out(bin_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("<!-- not run: it would fail -->\n```sh\nfalse\n```\n\n```sh\ntrue\n```\n")
    page = Page(path, tmp_path, environment(bin_folder, tmp_path / "data"), {})
    assert page.run() == 1


@pytest.mark.fast
def test_answers_are_found_in_what_was_printed() -> None:
    assert json_values('{"a": 1}{"b": [2]}\nrest {"c": 3}\n[4]') == [{"a": 1}, {"b": [2]}, [4]]


@pytest.mark.fast
@pytest.mark.parametrize(
    ("shown", "found", "same"),
    [
        ({"a": 1}, {"a": 2.5, "b": None}, True),
        ({"a": None}, {"a": None}, True),
        ({"a": None}, {"a": 1}, False),
        ({"a": True}, {"a": 1}, False),
        ({"a": [{"b": 1}]}, {"a": [{"b": 3}, {}]}, True),
        ({"a": [{"b": 1}]}, {"a": []}, False),
        ({"title": "x", "code": "y"}, {"title": "x", "code": "z"}, False),
    ],
)
def test_an_answer_has_the_shape_that_a_page_shows(shown: Any, found: Any, same: bool) -> None:
    assert (differences(shown, found) == "") == same


@pytest.mark.fast
def test_make_demo_is_the_command_that_is_tested(bin_folder: Path, tmp_path: Path) -> None:
    """`tests/cli/test_demo.py` runs it."""
    told = subprocess.run(
        ["make", "-n", "demo"], env=environment(bin_folder, tmp_path), cwd=tmp_path,
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert re.search(r"bin/sharpzo demo$", told.stdout, re.MULTILINE)
