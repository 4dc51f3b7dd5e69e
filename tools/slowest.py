"""Print which tests took longest in the last run, and what each folder of tests cost.

`python tools/slowest.py [FILE]`; the file is the JUnit report that `make test` and `make test-all`
write.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree as ET

REPORT = Path("build") / "tests.xml"
SHOWN = 40


def main(report: Path) -> str:
    """The two tables."""
    try:
        cases = ET.parse(report).findall(".//testcase")  # noqa: S314 - pytest's own report
    except FileNotFoundError:
        sys.exit(f"error: {report} is missing (run `make test` or `make test-all` first)")
    seconds: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for case in cases:
        folder = case.attrib["classname"].split(".")[:2][-1]
        seconds[folder] += float(case.attrib["time"])
        counts[folder] += 1
    lines = ["folder          cases  seconds"]
    lines += [f"{name:<14} {counts[name]:>6} {took:>8.1f}" for name, took in seconds.most_common()]
    lines += [f"{'all':<14} {counts.total():>6} {seconds.total():>8.1f}", "", "seconds  test"]
    slowest = sorted(cases, key=lambda case: -float(case.attrib["time"]))
    lines += [f"{float(case.attrib['time']):>7.2f}  {name_of(case)}" for case in slowest[:SHOWN]]
    return "\n".join(lines) + "\n"


def name_of(case: ET.Element) -> str:
    """File and test, without the group that pytest-xdist appends."""
    name = re.sub(r"@[\w/]+(\.py)?$", "", case.attrib["name"])
    return f"{case.attrib['classname'].replace('.', '/')}.py::{name}"


if __name__ == "__main__":
    sys.stdout.write(main(Path(sys.argv[1]) if len(sys.argv) > 1 else REPORT))
