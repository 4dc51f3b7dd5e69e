"""`sharpzo datasets check`: the report on a dataset, for people and for programs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from sharpzo_cli.check_inputs import DatasetInput, Examined, examine_images, open_input
from sharpzo_cli.errors import UsageProblem
from sharpzo_cli.output import plain, print_json, writable
from sharpzo_engine.data.contact_sheet import MAX_CLASSES, PER_CLASS, contact_sheet
from sharpzo_engine.data.layout import SPLITS, Layout, Part, part_of
from sharpzo_engine.data.preflight import MAX_NAME_TOKENS, Preflight, Spread, inspect

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from sharpzo_engine.data.diagnostics import Finding
    from sharpzo_engine.data.preflight import CountTokens, ImageSizes

LISTED_CLASSES = 30  # of more classes, those with the fewest training images are shown
BAR = 16  # characters of the longest bar
SHEET_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
SIGNS = {"error": ("✗", "red"), "warning": ("!", "yellow")}


@dataclass(frozen=True)
class CheckRequest:
    dataset: str  #: a path, or a name of the catalogue
    root: Path | None
    shots: int | None
    seed: int
    classes: Part
    fast: bool  #: without opening the images
    sheet: Path | None


def check_dataset(request: CheckRequest, *, as_json: bool) -> None:
    """Print the report, and draw the contact sheet if requested.

    Raises:
        UsageProblem: the dataset has errors, an archive cannot be read, or an option is wrong.
        DatasetError: the dataset does not exist, or a file of it is missing.
    """
    sheet = None if request.sheet is None else _sheet_path(request.sheet)
    dataset = open_input(request.dataset, request.root, request.seed)
    layout = part_of(dataset.layout, request.classes)
    shown = _to_show(layout) if sheet else {}
    thumbnails = {path for paths in shown.values() for path in paths}
    examined = _examine(dataset, layout, thumbnails, request)
    counter = token_counter(layout.class_names)
    found = inspect(layout, examined.facts, shots=request.shots, count_tokens=counter)
    if sheet:
        _draw(sheet, shown, examined)
    if as_json:
        print_json(
            {"dataset": dataset.name, **found.as_json(), "contact_sheet": sheet and str(sheet)}
        )
    else:
        print_report(dataset.name, found)
        if sheet:
            Console().print(plain(f"contact sheet: {sheet}"))
    if not found.ok:
        count = _counted(len(found.errors), "error")
        raise UsageProblem(f"{request.dataset} has {count}", "fix the errors listed above")


def token_counter(names: Sequence[str]) -> CountTokens | None:
    """Return CLIP's count of a name's tokens; None if no name can have none or too many.

    A token stands for at least one byte, and every word has a token. So most datasets need no
    tokenizer, whose package takes seconds to load.
    """
    if all(_is_surely_fine(name) for name in names):
        return None
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    return lambda name: len(tokenizer.encode(name))


def _is_surely_fine(name: str) -> bool:
    letters = any(character.isalnum() for character in name)
    return letters and "&" not in name and len(name.encode()) <= MAX_NAME_TOKENS


def _sheet_path(path: Path) -> Path:
    if path.suffix.lower() not in SHEET_SUFFIXES:
        fix = f"use a name that ends in {', '.join(SHEET_SUFFIXES)}"
        raise UsageProblem(f"--contact-sheet {path} is not a picture file", fix)
    return writable(path)


def _to_show(layout: Layout) -> dict[str, list[str]]:
    """Class name -> images for the contact sheet, from the first split that has any."""
    split = next((split for split in SPLITS if layout.splits[split]), "train")
    shown: dict[str, list[str]] = {name: [] for name in layout.class_names}
    drawn = set(layout.class_names[:MAX_CLASSES])
    for entry in layout.splits[split]:
        name = layout.class_names[entry.label]
        if name in drawn and len(shown[name]) < PER_CLASS:
            shown[name].append(entry.path)
    return shown


def _examine(
    dataset: DatasetInput, layout: Layout, shown: Collection[str], request: CheckRequest
) -> Examined:
    paths = shown if request.fast else {entry.path for entry in layout.entries()}
    with _bar(len(paths)) as advance:
        return examine_images(dataset, paths, shown, advance)


@contextmanager
def _bar(total: int) -> Iterator[Callable[[], None]]:
    """Show a bar on standard error; yields a function that advances it by one image."""
    columns = (
        TextColumn("examining images"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    quiet = not sys.stderr.isatty()  # not rich's own test: FORCE_COLOR would draw into a log
    with Progress(*columns, console=console, transient=True, disable=quiet) as progress:
        task = progress.add_task("", total=total)
        yield lambda: progress.advance(task)


def _draw(sheet: Path, shown: Mapping[str, Sequence[str]], examined: Examined) -> None:
    small = examined.thumbnails
    picture = contact_sheet(
        {name: [small[p] for p in paths if p in small] for name, paths in shown.items()}
    )
    picture.save(sheet)


# The report


def print_report(name: str, found: Preflight) -> None:
    console = Console()
    contents = (
        f"{_counted(found.images, 'image')} in {_counted(len(found.classes), 'class', 'classes')}"
    )
    skipped = f", {_counted(found.skipped, 'other file')} skipped" if found.skipped else ""
    console.print(plain(name, "bold"), plain(f"({found.form}): {contents}{skipped}"))
    if found.classes:
        console.print(_class_table(found))
    if found.sizes is not None:
        for line in _size_lines(found.sizes, found.bytes):
            console.print(plain(line))
    for item in found.findings:
        console.print()
        console.print(*_finding_lines(item), sep="\n", soft_wrap=True)
    console.print()
    console.print(_verdict(found))


def _class_table(found: Preflight) -> Table:
    """One row per class, or the classes with the fewest training images."""
    splits = [split for split in SPLITS if any(found.counts[split].values())] or ["train"]
    measure = splits[0]
    counts = found.counts[measure]
    names = found.classes
    if len(names) > LISTED_CLASSES:
        names = tuple(sorted(names, key=lambda name: counts[name])[:LISTED_CLASSES])
    table = Table(box=None, padding=(0, 2, 0, 0), show_footer=True, footer_style="bold")
    rest = len(found.classes) - len(names)
    table.add_column("class", footer=f"all, {rest} more included" if rest else "all")
    for split in splits:
        total = sum(found.counts[split].values())
        table.add_column(split, footer=f"{total:,}", justify="right")
    table.add_column("", justify="left", style="cyan")
    longest = max(1, *counts.values())
    for name in names:
        cells = [f"{found.counts[split][name]:,}" for split in splits]
        bar = "█" * max(round(BAR * counts[name] / longest), counts[name] > 0)
        table.add_row(plain(name), *cells, bar)
    return table


def _size_lines(sizes: ImageSizes, total: int) -> Iterator[str]:
    formats = ", ".join(f"{count:,} {name}" for name, count in sizes.formats.items())
    yield f"formats  {formats}; {_bytes(total)} in all"
    yield f"width    {_spread(sizes.width, _pixels)}"
    yield f"height   {_spread(sizes.height, _pixels)}"
    yield f"file     {_spread(sizes.bytes, _bytes)}"


def _spread(spread: Spread, show: Callable[[float], str]) -> str:
    if spread.min == spread.max:
        return f"{show(spread.min)} each"
    return f"{show(spread.min)} to {show(spread.max)}, median {show(spread.median)}"


def _pixels(value: float) -> str:
    return f"{value:,.0f} px"


def _bytes(value: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{value:,.0f} {unit}" if value >= 10 or unit == "B" else f"{value:,.1f} {unit}"


def _finding_lines(item: Finding) -> Iterator[Text]:
    """The lines of a finding: what is wrong, examples, and the fix."""
    sign, colour = SIGNS[item.severity]
    head = Text(f"{sign} {item.severity}  ", f"bold {colour}")
    head.append_text(plain(item.message))
    if item.examples and item.count > 1:
        head.append(f" ({item.count:,})")
    head.append(f"  [{item.code}]", "dim")
    yield head
    for example in item.examples:
        yield plain(f"    {example}")
    more = item.count - len(item.examples)
    if item.examples and more > 0:
        yield plain(f"    and {more:,} more")
    yield plain(f"  → {item.fix}", "green")


def _verdict(found: Preflight) -> Text:
    errors, warnings = len(found.errors), len(found.warnings)
    counts = f"{_counted(errors, 'error')}, {_counted(warnings, 'warning')}"
    if errors:
        return Text(f"✗ {counts}: not usable for tuning", "bold red")
    unseen = "" if found.examined == found.images else "; images were not opened"
    return Text(f"✓ {counts}{unseen}", "bold green")


def _counted(count: int, one: str, many: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"
