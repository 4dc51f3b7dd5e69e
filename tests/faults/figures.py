"""The figures of `docs/reliability.md`, measured with real processes.

`make faults`, or `python -m tests.faults`. Needs `redis-server` on the PATH and a PostgreSQL in
which databases may be made (SHARPZO_TEST_POSTGRES_URL; default: user postgres on this machine).
Takes half an hour on 2 cores. `--only NAME` measures one figure, `--scale 0.1` a tenth of the
runs. Every result is kept in `build/faults.json` as soon as there is one; a whole run writes the
table of the document. Ends with 1 if a figure is missed.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from tests.conftest import missing_postgres, missing_redis
from tests.faults.cluster import EMBEDDED, FAST, SERVERS, Cluster, open_mode
from tests.faults.excuses import excuses
from tests.faults.scenarios.broker import emptied, empty, kill
from tests.faults.scenarios.chaos import Losses, random_kills
from tests.faults.scenarios.delivery import COPIES, duplicates
from tests.faults.scenarios.pages import read_while_others_write
from tests.faults.scenarios.workers import drains, identical_results, preempted, recoveries
from tests.faults.scenarios.writers import write_together
from tests.figures import ROOT, Book, Figure, Measured
from tests.helpers import write_small_backbone

RECOVERY_SECONDS = 30.0
DRAIN_SECONDS = 10.0
PAGE_SECONDS = 0.1
PREEMPTIONS, PREEMPTION_SECONDS = 20, 3.0


class Lab:
    """A folder for clusters, the backbone they use, and how much of the runs to make."""

    def __init__(self, folder: Path, scale: float) -> None:
        self._folder = folder
        self._scale = scale
        self._clusters = 0
        self._backbone = folder / "backbone"
        self._backbone.mkdir()
        write_small_backbone(self._backbone)

    def runs(self, count: int) -> int:
        """So many runs, scaled."""
        return max(1, round(count * self._scale))

    def folder(self) -> Path:
        """A new folder."""
        self._clusters += 1
        folder = self._folder / str(self._clusters)
        folder.mkdir()
        return folder

    def cluster(self, mode: str, **settings: Any) -> AbstractContextManager[Cluster]:
        """A new cluster without processes."""
        return open_mode(mode, self.folder(), self._backbone, **settings)


def random_kills_with_servers(lab: Lab) -> Measured:
    return _random_kills(lab, SERVERS, jobs=200, kills=140)


def random_kills_embedded(lab: Lab) -> Measured:
    return _random_kills(lab, EMBEDDED, jobs=100, kills=60)


def _random_kills(lab: Lab, mode: str, jobs: int, kills: int) -> Measured:
    with lab.cluster(mode, **FAST) as cluster:
        cluster.start_api()
        losses: Losses = random_kills(
            cluster, workers=3, jobs=lab.runs(jobs), kills=lab.runs(kills)
        )
    wrong = [*losses.lost, *(f"doubled: {name}" for name in losses.doubled)]
    killed = ", ".join(f"{count} {name}" for name, count in sorted(losses.kills.items()))
    return Measured(
        f"{len(losses.lost)} lost, {len(losses.doubled)} doubled of {losses.accepted}; "
        f"{losses.hits} kills took a job from its worker",
        losses.kills.total(),
        f"{'; '.join(wrong) or 'none'} (killed: {killed})",
        not wrong,
    )


def recovery_on_one_host(lab: Lab) -> Measured:
    return _recovery(lab, isolated=False)


def recovery_across_hosts(lab: Lab) -> Measured:
    return _recovery(lab, isolated=True)


def _recovery(lab: Lab, *, isolated: bool) -> Measured:
    with lab.cluster(SERVERS) as cluster:
        cluster.start_api()
        cluster.start_workers(4, isolated=isolated)
        times = recoveries(cluster, lab.runs(20), jobs_at_once=2, isolated=isolated)
    return _within(RECOVERY_SECONDS, times)


def resumed_results(lab: Lab) -> Measured:
    with lab.cluster(SERVERS, **FAST) as cluster:
        cluster.start_api()
        cluster.start_workers(2)
        runs = lab.runs(20)
        same, in_stage1 = identical_results(cluster, runs)
    measured = f"{same} of {runs} ({in_stage1} in stage 1)"
    return Measured(measured, runs, f"{runs - same} differ", same == runs)


def preempted_job(lab: Lab) -> Measured:
    with lab.cluster(SERVERS) as cluster:
        cluster.start_api()
        cluster.start_workers(2)
        result = preempted(cluster, lab.runs(PREEMPTIONS), PREEMPTION_SECONDS)
    same = "identical" if result.same else "other"
    return Measured(
        f"{result.job.status}, {same} result, in {result.seconds:.0f} s; "
        f"{result.undisturbed_seconds:.0f} s undisturbed",
        result.kills,
        "; ".join(result.faults) or "none",
        result.job.status == "succeeded" and result.same and not result.faults,
    )


def drained_workers(lab: Lab) -> Measured:
    with lab.cluster(SERVERS) as cluster:
        cluster.start_api()
        cluster.start_workers(2)
        drained = drains(cluster, lab.runs(20))
    result = _within(DRAIN_SECONDS, [one.seconds for one in drained])
    ill = [
        one
        for one in drained
        if one.exit_code or one.attempt != 1 or one.resumed_step < one.signalled_step
    ]
    measured = f"{result.measured}; {len(ill)} without checkpoint, with an attempt or an error"
    return Measured(measured, result.runs, result.worst, result.kept and not ill)


def repeated_messages(lab: Lab) -> Measured:
    with lab.cluster(SERVERS, **FAST) as cluster:
        cluster.start_api()
        cluster.start_workers(3)
        jobs = lab.runs(200)
        wrong = duplicates(cluster, jobs)
    measured = f"{len(wrong)} of {jobs} jobs with other than one run and one prompt"
    return Measured(measured, jobs * (COPIES + 1), "; ".join(wrong[:3]) or "none", not wrong)


def emptied_broker(lab: Lab) -> Measured:
    with lab.cluster(SERVERS, **FAST) as cluster:
        cluster.start_api()
        cluster.start_workers(2)
        faults = [empty] * lab.runs(10) + [kill] * lab.runs(50)
        result = emptied(cluster, faults)
    return Measured(
        f"{result.lost} lost; the running job was disturbed {result.disturbed} times",
        len(faults),
        f"a waiting job took {result.slowest:.1f} s",
        (result.lost, result.disturbed) == (0, 0),
    )


def sqlite_writers(lab: Lab) -> Measured:
    waits = write_together(lab.folder() / "data", processes=16, transactions=lab.runs(200))
    return Measured(
        f"{len(waits.errors)} errors; p99 {_p99(waits.seconds) * 1000:.0f} ms",
        len(waits.seconds),
        f"{max(waits.seconds):.2f} s" + "".join(f"; {error}" for error in waits.errors[:1]),
        not waits.errors,
    )


def pages_of_a_long_list(lab: Lab) -> Measured:
    seconds, wrong = [], 0
    for mode in (EMBEDDED, SERVERS):
        with lab.cluster(mode, **FAST) as cluster:
            cluster.start_api()
            pages = read_while_others_write(cluster, jobs=1000, readings=lab.runs(5))
        seconds += pages.seconds
        wrong += pages.repeated + pages.missing
    return Measured(
        f"{wrong} repeated or missing; median {sorted(seconds)[len(seconds) // 2] * 1000:.0f} ms",
        len(seconds),
        f"{max(seconds) * 1000:.0f} ms",
        wrong == 0 and max(seconds) <= PAGE_SECONDS,
    )


def excused_tests(lab: Lab) -> Measured:
    found = excuses()
    return Measured(f"{len(found)}", 1, "; ".join(found) or "none", not found)


def _within(limit: float, seconds: Sequence[float]) -> Measured:
    p99 = _p99(seconds)
    measured = f"p99 {p99:.1f} s, median {sorted(seconds)[len(seconds) // 2]:.1f} s"
    return Measured(measured, len(seconds), f"{max(seconds):.1f} s", p99 <= limit)


def _p99(values: Sequence[float]) -> float:
    """The smallest value that 99 % of them do not exceed."""
    return sorted(values)[math.ceil(0.99 * len(values)) - 1]


FIGURES = (
    Figure(
        "accepted jobs lost or doubled under random `kill -9` of workers, API and Redis "
        "(PostgreSQL; Redis without persistence)",
        "0",
        random_kills_with_servers,
    ),
    Figure(
        "the same with SQLite and the embedded broker: workers and API", "0", random_kills_embedded
    ),
    Figure(
        "a worker killed, its job runs elsewhere on the same machine (default timings)",
        "p99 <= 30 s",
        recovery_on_one_host,
    ),
    Figure(
        "the same where workers cannot see each other's processes, as across hosts",
        "p99 <= 30 s",
        recovery_across_hosts,
    ),
    Figure("a killed job learns what an undisturbed one does, bit for bit", "all", resumed_results),
    Figure(
        "one job: its whole worker (supervisor included) is killed 20 times, 3 s after it took the "
        "job (default timings)",
        "succeeded, identical",
        preempted_job,
    ),
    Figure(
        "SIGTERM to exit 0 with a checkpoint, the attempt not counted",
        "p99 <= 10 s",
        drained_workers,
    ),
    Figure(
        "five copies of every message and one after the end: jobs that ran or published twice",
        "0",
        repeated_messages,
    ),
    Figure(
        "Redis emptied or killed while jobs run and wait: jobs lost, running jobs disturbed",
        "0",
        emptied_broker,
    ),
    Figure("16 processes write to one SQLite file: errors", "0", sqlite_writers),
    Figure(
        "1,000 queued jobs and more read in pages of 100 while others are accepted, on SQLite and "
        "PostgreSQL",
        "0 wrong, no page > 100 ms",
        pages_of_a_long_list,
    ),
    Figure("fault tests that are skipped, expected to fail, or run again", "0", excused_tests),
)


BOOK = Book("faults", FIGURES, ROOT / "docs" / "reliability.md")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and keep; returns the exit code."""
    options = _parse(arguments)
    missing = missing_redis() or missing_postgres()
    if missing:
        print(f"error: {missing}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="sharpzo-faults-") as folder:
        return BOOK.measure(Lab(Path(folder), options.scale), options.scale, options.only)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    names = [figure.name for figure in FIGURES]
    parser.add_argument("--only", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--scale", type=float, default=1.0, help="share of the runs; default: all")
    return parser.parse_args(arguments)
