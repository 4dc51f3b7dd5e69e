"""Tables of `docs/operations.md`."""

from __future__ import annotations

from tests.figures import ROOT

PAGE = ROOT / "docs" / "operations.md"


def table(first: str, page: str | None = None) -> list[list[str]]:
    """The rows of the table whose first column is called so, without its head."""
    _, found, rest = (PAGE.read_text() if page is None else page).partition(f"\n| {first} |")
    assert found, f"there is no table of {first}"
    lines = rest.split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip()[1:-1].split("|")] for line in lines]
