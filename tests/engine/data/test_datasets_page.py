"""`docs/datasets.md` says what the code does."""

import re
from pathlib import Path

import pytest

from sharpzo_engine.data.catalogue import CATALOGUE, SPLIT_FILES_URL, KnownDataset
from sharpzo_engine.data.catalogue_readers import VARIANTS
from sharpzo_engine.data.contact_sheet import MAX_CLASSES, PER_CLASS
from sharpzo_engine.data.diagnostics import CODES, EXAMPLES
from sharpzo_engine.data.layout import Form
from sharpzo_engine.data.layout_detection import detect_layout
from sharpzo_engine.data.preflight import FORMAT, LISTED_CLASSES, LISTED_UNREADABLE, inspect

PAGE = Path(__file__).parents[3] / "docs" / "datasets.md"


@pytest.fixture(scope="module")
def page() -> str:
    return PAGE.read_text(encoding="utf-8")


def rows(page: str, first: str) -> list[list[str]]:
    """The table whose first column is called so, without its head."""
    _, _, table = page.partition(f"| {first} |")
    lines = table.split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_every_code_is_in_the_table_and_no_other(page: str) -> None:
    expected = [[f"`{code}`", severity, when] for code, (severity, when) in CODES.items()]
    assert rows(page, "code") == expected


def told_by(known: KnownDataset) -> str:
    if known.form is Form.SPLIT_FILE:
        return f"`{known.split_file}`"
    return f"`{VARIANTS}`, lists" if known.form is Form.LISTS else "folders, `classnames.txt`"


def test_the_table_is_the_catalogue(page: str) -> None:
    def size(count: int) -> str:
        return f"{count:,}" if count else "-"

    expected = [
        [
            f"[`{known.key}`]({known.url})",
            f"{known.classes:,}",
            " / ".join(map(size, known.sizes)),
            f"`{known.folder}/{known.images}`",
            told_by(known),
            known.template,
        ]
        for known in CATALOGUE
    ]
    assert rows(page, "name") == expected
    assert f"({SPLIT_FILES_URL})" in page


def test_the_keys_of_the_report_are_those_of_the_table(page: str) -> None:
    told = [key for row in rows(page, "key") for key in re.findall(r"`(\w+)`", row[0])]
    assert sorted(told) == sorted(inspect(detect_layout([], str), {}).as_json())
    assert f"`{FORMAT}`" in page


def test_numbers_on_the_page_are_those_of_the_code(page: str) -> None:
    assert (EXAMPLES, PER_CLASS, MAX_CLASSES) == (5, 6, 60)
    assert "first five examples" in page
    assert "six images of each class, of at most 60 classes" in page
    assert f"the first {LISTED_CLASSES:,} with" in page
    assert f"the first {LISTED_UNREADABLE} with" in page


def test_the_check_in_python_runs_as_it_stands(
    page: str,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (code,) = (b for b in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "examine" in b)
    (tmp_path / "photos").symlink_to(pictures)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    printed = capsys.readouterr().out
    assert printed.startswith("False {")  # 6 images of a class are fewer than 16 shots
    assert "too_few_images" in printed
