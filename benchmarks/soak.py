"""A server under mixed load for a while: does it leak, fail or mix anything up?

    python -m benchmarks.soak [--minutes 10] [--prompts 300] [--visitors 8] [--interval 5]
                              [--json FILE]

Starts `sharpzo serve` on a port and a folder of its own, imports prompts, and lets visitors of
this process classify with them, send broken images, leave half-way, import, export and delete
prompts, move aliases, read metrics and listen to events, while the server's memory, descriptors
and threads are sampled. Exit code 1 if one of these grows after the warm-up, or if there was a 5xx,
a wrong label or anything else that should not be. 429 with Retry-After is no fault.

Linux only: figures come from /proc.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory

import httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.support.output import RESULTS, Table, machine_facts, write_json
from benchmarks.support.soak_load import (
    TIMEOUT,
    Fault,
    FaultFound,
    Pictures,
    Registry,
    Tally,
    Visitor,
    ask,
    has_aliases,
    submit_job,
)
from benchmarks.support.soak_verdict import Sample, judge
from sharpzo_cli.demo.server import Running, running_process
from sharpzo_cli.errors import RunFailed
from sharpzo_cli.interrupts import interrupt
from sharpzo_cli.main import INTERRUPTED

#: Also counted: what visitors who had left did not see.
TRACEBACKS = "tracebacks in the server's log"


@dataclass(frozen=True)
class Plan:
    """How long and how much."""

    seconds: float
    prompts: int
    visitors: int
    interval: float  #: seconds between samples
    seed: int = 0


@dataclass(frozen=True)
class Observed:
    """What a soak saw."""

    samples: list[Sample]
    tally: Tally
    server_errors: int  #: by the server's own count


def sample(pid: int, seconds: float) -> Sample | None:
    """Look at a process; None if it has ended."""
    folder = Path("/proc") / str(pid)
    try:
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        return Sample(
            seconds=seconds,
            rss_mib=int(status["VmRSS"].split()[0]) / 1024,
            descriptors=sum(1 for _ in (folder / "fd").iterdir()),
            threads=int(status["Threads"]),
        )
    except (OSError, KeyError):  # a zombie process has no memory
        return None


async def soak(running: Running, plan: Plan, backbone: str) -> Observed:
    """Fill the registry, let the visitors in, and watch the server meanwhile."""
    from sharpzo_engine import load_backbone

    model = load_backbone(backbone, device="cpu")
    # Without `trust_env`, proxies set in the environment are ignored.
    async with httpx.AsyncClient(base_url=running.url, timeout=TIMEOUT, trust_env=False) as http:
        registry = Registry(http, model, Pictures.draw(model))
        await registry.fill(plan.prompts)
        job_id, aliases = await submit_job(http), await has_aliases(http)
        await backbone_loaded(http)
        before, tally = await count_server_errors(http), Tally()
        visitors = [
            Visitor(http, registry, tally, job_id=job_id, aliases=aliases, seed=plan.seed + number)
            for number in range(plan.visitors)
        ]
        loop = asyncio.get_running_loop()
        began = loop.time()

        async def keep_coming(visitor: Visitor) -> None:
            while loop.time() < began + plan.seconds:
                await visitor.visit()

        samples: list[Sample] = []

        async def watch() -> None:
            while (now := loop.time() - began) < plan.seconds:
                if (found := sample(running.pid, now)) is None:
                    return  # the visitors will report the failure
                samples.append(found)
                await asyncio.sleep(plan.interval)

        async with asyncio.TaskGroup() as group:
            group.create_task(watch())
            for visitor in visitors:
                group.create_task(keep_coming(visitor))
        try:
            errors = await count_server_errors(http) - before
        except FaultFound as error:
            tally.record("the end", error)
            errors = 0
        return Observed(samples, tally, errors)


async def backbone_loaded(http: httpx.AsyncClient) -> None:
    """Return once the server has its backbone; visits before that would wait for nothing else."""
    loaded = False
    while not loaded:
        offered = (await ask(http, "GET", "/v1/backbones")).json()["data"]
        loaded = any(row["loaded"] for row in offered)
        await asyncio.sleep(0 if loaded else 0.1)


async def count_server_errors(http: httpx.AsyncClient) -> int:
    """How many 5xx answers the server says it gave."""
    text = (await ask(http, "GET", "/metrics")).text
    return int(
        sum(
            line.value
            for family in text_string_to_metric_families(text)
            for line in family.samples
            if line.name == "sharpzo_http_requests_total" and line.labels["status"] >= "500"
        )
    )


def count_faults(observed: Observed, log: str) -> dict[str, int]:
    """Faults of every kind by name, those that the server alone knows of included."""
    faults: dict[str, int] = {fault.value: observed.tally.faults[fault] for fault in Fault}
    seen = faults[Fault.SERVER_ERROR]
    return {
        **faults,
        Fault.SERVER_ERROR.value: max(seen, observed.server_errors),
        TRACEBACKS: log.count("Traceback (most recent call last)"),
    }


def visits_table(tally: Tally) -> Table:
    """What the visitors did."""
    rows = [
        (
            kind,
            f"{len(seconds):,}",
            f"{tally.busy[kind]:,}",
            f"{1000 * median(seconds):,.0f}",
            f"{1000 * _high(seconds):,.0f}",
        )
        for kind, seconds in sorted(tally.seconds.items())
    ]
    header = ("visits", "number", "asked to retry", "median, ms", "99 %, ms")
    return Table("The load", header, rows)


def _high(seconds: Sequence[float]) -> float:
    return quantiles(seconds, n=100)[-1] if len(seconds) > 1 else seconds[0]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--visitors", type=int, default=8)
    parser.add_argument("--interval", type=float, default=5, help="seconds between samples")
    parser.add_argument("--backbone", default="tiny")
    parser.add_argument("--json", type=Path, default=RESULTS / "soak.json")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Soak, print, write, and return the exit code."""
    options = parse(arguments)
    plan = Plan(60 * options.minutes, options.prompts, options.visitors, options.interval)
    settings = {
        "SHARPZO_BACKBONES": f"soak={options.backbone}",
        "SHARPZO_DEFAULT_BACKBONE": "soak",
        "SHARPZO_PROMPT_CACHE_MB": "1",  # so that prompts make room for others all the time
    }
    with TemporaryDirectory(prefix="sharpzo-soak-") as folder:
        data, log = Path(folder) / "data", Path(folder) / "log"
        with running_process(data, log, settings, with_worker=False) as running:
            observed = asyncio.run(soak(running, plan, options.backbone))
        faults = count_faults(observed, log.read_text(errors="replace"))
    visits_table(observed.tally).print()
    for detail in observed.tally.details:
        print(detail)
    try:
        verdict = judge(observed.samples, faults)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    for table in verdict.tables():
        table.print()
    found = {
        "machine": machine_facts(),
        "plan": asdict(plan),
        "verdict": verdict.rows(),
        "visits": {kind: len(seconds) for kind, seconds in observed.tally.seconds.items()},
        "samples": [asdict(item) for item in observed.samples],
    }
    write_json(options.json, found)
    print(f"{'passed' if verdict.passed else 'FAILED'}; written to {options.json}")
    return 0 if verdict.passed else 1


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGHUP):  # else they would leave the server behind
        signal.signal(number, interrupt)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except RunFailed as problem:
        sys.exit(f"error: {problem}")
