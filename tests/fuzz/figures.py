"""The figures of `docs/security.md`, measured on the real readers and the real service.

`make fuzz`, or `python -m tests.fuzz`. `--only NAME` measures one figure, `--scale 0.01` a
hundredth of the mutants and cases, `--seed N` makes others. Every result is kept in
`build/fuzz.json` as soon as there is one; a whole run writes the table of the document. Ends with 1
if a figure is missed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

from tests.figures import ROOT, Book, Figure, Measured
from tests.fuzz.api import attack, filled_server
from tests.fuzz.imports import import_mutants
from tests.fuzz.readers import prompt
from tests.fuzz.sandbox import MAX_MIB, Tally, in_a_process
from tests.helpers import write_small_backbone
from tests.security.test_bad_artifacts import undetected

CASES = 20_000
EXAMPLES_PER_CASE = 0.02  # of each operation; the phases without a number of their own add some
MUTANTS = {
    "archives": 60_000,
    "images": 60_000,
    "prompts": 30_000,
    "prompts-sealed-anew": 10_000,
    "checkpoints": 30_000,
    "split-files": 10_000,
    "json": 20_000,
    "tensors": 20_000,
}
BATCH = 2_000  # mutants of one process
IMPORTS = 3_000


@dataclass(frozen=True)
class Lab:
    """A folder, a backbone in it, how much to do and which mutants to make."""

    folder: Path
    scale: float
    seed: int

    @classmethod
    def open(cls, folder: Path, scale: float, seed: int) -> Lab:
        (folder / "backbone").mkdir()
        write_small_backbone(folder / "backbone")
        return cls(folder, scale, seed)

    def runs(self, count: int) -> int:
        """So many runs, scaled."""
        return max(1, round(count * self.scale))


def api(lab: Lab) -> Measured:
    """Rounds of schemathesis with seeds of their own, until there were as many cases as asked."""
    wanted, cases, rounds = lab.runs(CASES), 0, 0
    failures: list[str] = []
    with filled_server(lab.folder, lab.folder / "backbone") as target:
        while cases < wanted:
            examples = max(1, round((wanted - cases) * EXAMPLES_PER_CASE))
            seen = attack(target, examples, lab.seed + rounds)
            cases, rounds = cases + seen.cases, rounds + 1
            failures += seen.failures
            if seen.failures:
                print(seen.output[-5000:])
    wrong = [*failures, *seen.server_errors]
    return Measured(
        f"{len(seen.server_errors)} routes with 5xx, {len(failures)} checks that failed",
        cases,
        "; ".join(wrong)[:300] or "none",
        not wrong,
    )


def mutants(lab: Lab) -> Measured:
    """Every reader, in watched processes of its own."""
    batches = [
        (name, lab.seed * 1_000_000 + start, min(BATCH, lab.runs(count) - start))
        for name, count in MUTANTS.items()
        for start in range(0, lab.runs(count), BATCH)
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        tallies = list(pool.map(lambda batch: in_a_process(*batch), batches))
    return _measured(tallies)


def imports(lab: Lab) -> Measured:
    """Prompt files with a right hash and odd content, through the API."""
    folder, backbone = lab.folder / "imports", lab.folder / "backbone"
    return _measured([import_mutants(folder, backbone, lab.seed, lab.runs(IMPORTS))])


def doors(lab: Lab) -> Measured:
    return _counted(lab, "test_keys.py::test_every_route_and_method_wants_a_key")


def tenants(lab: Lab) -> Measured:
    return _counted(lab, "test_tenants.py::test_what_is_anothers_is_answered_as_what_never_was")


def _counted(lab: Lab, test: str) -> Measured:
    """What a test says that it has asked, and that came out wrong."""
    report = lab.folder / "report.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-o",
        "junit_family=xunit1",
        f"tests/security/{test}",
    ]
    done = subprocess.run(
        [*command, f"--junitxml={report}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    properties = {
        node.attrib["name"]: int(node.attrib["value"]) for node in ET.parse(report).iter("property")
    }
    wrong = properties["wrong"]
    if done.returncode:
        print(done.stdout[-3000:])
    return Measured(f"{wrong}", properties["asked"], "none", done.returncode == 0 and not wrong)


def byte_flips(lab: Lab) -> Measured:
    data = prompt().to_bytes()
    bits = lab.runs(8)
    missed = undetected(data, bits)
    return Measured(f"{missed} not detected", bits * len(data), "none", missed == 0)


def _measured(tallies: Iterable[Tally]) -> Measured:
    tallies = list(tallies)
    faults = [fault for tally in tallies for fault in tally.faults]
    for fault in faults[:20]:
        print(fault)
    memory, seconds = (
        max(getattr(tally, name) for tally in tallies)
        for name in ("resident_mib", "slowest_seconds")
    )
    worst = f"{memory:.0f} MiB resident, {seconds:.2f} s" if memory else "none"
    return Measured(f"{len(faults)}", sum(tally.mutants for tally in tallies), worst, not faults)


FIGURES = (
    Figure(
        "requests without a key, every route and method but the public ones: answers that are "
        "not 401",
        "0",
        doors,
    ),
    Figure(
        "requests of another tenant, every route, method and kind of object: answers that tell "
        "an object from a missing one",
        "0",
        tenants,
    ),
    Figure(
        "schemathesis, every phase and check, on a live server with real objects: cases with a "
        "5xx, an undocumented status or another failed check",
        "0 of 20,000",
        api,
    ),
    Figure(
        "mutated archives, images, prompts, checkpoints, split files and JSON: untyped errors, "
        f"writes elsewhere, programs, connections, unpickling, more than {MAX_MIB} MiB or 10 s",
        "0 of 200,000",
        mutants,
    ),
    Figure(
        "prompt files with a right hash and odd content, imported and asked: 5xx or odd numbers",
        "0",
        imports,
    ),
    Figure("flips of every bit of a prompt file that are not detected", "0", byte_flips),
)
BOOK = Book("fuzz", FIGURES, ROOT / "docs" / "security.md")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and keep; returns the exit code."""
    options = _parse(arguments)
    with tempfile.TemporaryDirectory(prefix="sharpzo-fuzz-") as folder:
        lab = Lab.open(Path(folder), options.scale, options.seed)
        return BOOK.measure(lab, options.scale, options.only)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    names = [figure.name for figure in FIGURES]
    parser.add_argument("--only", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--scale", type=float, default=1.0, help="share of the runs; default: all")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args(arguments)
