"""The soak test: its rules on made-up series, its visitors on faulty services, and a short run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest

from benchmarks import soak
from benchmarks.support.soak_load import (
    Entry,
    Fault,
    FaultFound,
    Pictures,
    Registry,
    Tally,
    Visitor,
    check_labels,
)
from benchmarks.support.soak_verdict import Sample, Verdict, judge
from sharpzo_engine.clip.loading import load_backbone
from tests.helpers import eventually

pytestmark = pytest.mark.fast

NO_FAULTS = dict.fromkeys([*(fault.value for fault in Fault), soak.TRACEBACKS], 0)
ENTRY = Entry("prm_1", "soak-0", 2, "prompt 1")


def steady(count: int = 120) -> list[Sample]:
    """Ten minutes of a healthy server: it warms up, and then its figures go up and down."""
    rng = np.random.default_rng(0)
    return [
        Sample(
            seconds=5.0 * index,
            rss_mib=900 - 300 * np.exp(-index / 8) + float(rng.uniform(-10, 10)),
            descriptors=30 + int(rng.integers(0, 12)),
            threads=18 + int(rng.integers(0, 8)),
        )
        for index in range(count)
    ]


def missed(verdict: Verdict) -> list[str]:
    assert verdict.passed == all(item.verdict == "met" for item in verdict.comparisons)
    return [item.name for item in verdict.comparisons if item.verdict != "met"]


def test_a_healthy_server_passes() -> None:
    verdict = judge(steady(), NO_FAULTS)
    assert missed(verdict) == []
    assert [len(table.rows) for table in verdict.tables()] == [3, 3 + len(NO_FAULTS)]


def leaking(share: float) -> list[Sample]:
    """Memory that grows by so much of itself in the whole time."""
    return [replace(s, rss_mib=s.rss_mib * (1 + share * s.seconds / 600)) for s in steady()]


@pytest.mark.parametrize(("share", "caught"), [(0.04, False), (0.15, True), (1.0, True)])
def test_memory_that_keeps_growing_fails(share: float, caught: bool) -> None:
    assert missed(judge(leaking(share), NO_FAULTS)) == (["memory"] if caught else [])


def test_memory_that_grows_late_fails() -> None:
    samples = [replace(s, rss_mib=s.rss_mib + (60 if s.seconds > 400 else 0)) for s in steady()]
    assert missed(judge(samples, NO_FAULTS)) == ["memory"]


def test_one_peak_is_no_leak() -> None:
    samples = steady()
    samples[-3] = replace(samples[-3], rss_mib=3000, descriptors=500, threads=90)
    assert missed(judge(samples, NO_FAULTS)) == []


def test_a_descriptor_a_minute_fails() -> None:
    samples = [replace(s, descriptors=s.descriptors + int(s.seconds / 30)) for s in steady()]
    assert missed(judge(samples, NO_FAULTS)) == ["more descriptors"]


def test_a_thread_in_two_minutes_fails() -> None:
    samples = [replace(s, threads=s.threads + int(s.seconds / 90)) for s in steady()]
    assert missed(judge(samples, NO_FAULTS)) == ["more threads"]


@pytest.mark.parametrize("fault", NO_FAULTS)
def test_a_single_fault_fails(fault: str) -> None:
    assert missed(judge(steady(), {**NO_FAULTS, fault: 1})) == [fault]


@pytest.mark.parametrize("samples", [[], steady()[:1], steady()[:9]])
def test_too_few_samples_are_not_judged(samples: Sequence[Sample]) -> None:
    with pytest.raises(ValueError, match="too few"):
        judge(samples, NO_FAULTS)


def answer(*labels: str | None, prompt_id: str = "prm_1", version: int = 2) -> dict[str, object]:
    results = [
        {"error": {}} if label is None else {"predictions": [{"label": label}]} for label in labels
    ]
    return {"prompt_id": prompt_id, "version": version, "results": results}


def test_right_labels_are_right() -> None:
    given = answer("prompt 1 4", None, "prompt 1 0")
    check_labels(given, [4, None, 0], {ENTRY.id: ENTRY})


@pytest.mark.parametrize(
    "given",
    [
        answer("prompt 1 4", None, "prompt 1 1"),  # another image
        answer("prompt 1 4", None, "prompt 0 0"),  # another prompt's label
        answer("prompt 1 4", "prompt 1 2", "prompt 1 0"),  # a broken image was answered
        answer("prompt 1 4", None, None),  # a good one was not
        answer("prompt 1 4", None),
        answer("prompt 1 4", None, "prompt 1 0", prompt_id="prm_2"),
        answer("prompt 1 4", None, "prompt 1 0", version=1),
    ],
)
def test_wrong_labels_are_seen(given: dict[str, object]) -> None:
    with pytest.raises(FaultFound) as caught:
        check_labels(given, [4, None, 0], {ENTRY.id: ENTRY})
    assert caught.value.fault is Fault.WRONG


async def visits(handler: Callable[[httpx.Request], httpx.Response], count: int = 60) -> Tally:
    """What a visitor of a service of one function tells; for those who leave nobody listens."""
    backbone, tally = load_backbone("tiny", device="cpu"), Tally()
    transport = httpx.MockTransport(handler)
    async with httpx.AsyncClient(base_url="http://127.0.0.1:9", transport=transport) as http:
        registry = Registry(http, backbone, Pictures.draw(backbone))
        registry.entries.append(ENTRY)
        visitor = Visitor(http, registry, tally, job_id="job_1", aliases=True, seed=1, pause=0.0)
        for _ in range(count):
            await visitor.visit()
    assert sum(map(len, tally.seconds.values())) == count
    return tally


async def test_answers_of_a_broken_service_are_counted() -> None:
    tally = await visits(lambda _: httpx.Response(500, text="oops"))
    left = len(tally.seconds["leave half-way"])
    assert tally.faults == {Fault.SERVER_ERROR: 60 - left, Fault.UNANSWERED: left}
    assert len(tally.details) == 10
    assert any("-> 500 oops" in detail for detail in tally.details)


async def test_a_busy_service_is_in_order_if_it_says_when_to_come_again() -> None:
    tally = await visits(lambda _: httpx.Response(429, headers={"retry-after": "1"}))
    assert set(tally.faults) == {Fault.UNANSWERED}  # of those who leave
    assert sum(tally.busy.values()) == 60 - tally.faults[Fault.UNANSWERED]
    tally = await visits(lambda _: httpx.Response(429))
    assert tally.faults[Fault.UNEXPECTED] > 40
    assert sum(tally.busy.values()) == 0


async def test_a_service_that_mixes_prompts_up_is_caught() -> None:
    def mixing(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=answer("prompt 7 0"))

    tally = await visits(mixing)
    assert tally.faults[Fault.WRONG] == len(tally.seconds["classify"]) + len(
        tally.seconds["move an alias"]
    )


def test_what_only_the_server_knows_counts() -> None:
    observed = soak.Observed(steady(), Tally(), server_errors=3)
    faults = soak.count_faults(observed, "Traceback (most recent call last):\n" * 2)
    assert faults == {**NO_FAULTS, Fault.SERVER_ERROR.value: 3, soak.TRACEBACKS: 2}


async def test_5xx_are_counted_in_the_servers_own_metrics() -> None:
    line = 'sharpzo_http_requests_total{{method="GET",route="/",status="{}"}} {}\n'
    text = "# TYPE sharpzo_http_requests counter\n" + "".join(
        line.format(*pair) for pair in [(200, 50), (404, 7), (500, 2), (503, 1)]
    )
    transport = httpx.MockTransport(lambda _: httpx.Response(200, text=text))
    async with httpx.AsyncClient(base_url="http://service", transport=transport) as http:
        assert await soak.count_server_errors(http) == 3


def test_a_process_that_has_ended_has_no_figures() -> None:
    own = soak.sample(os.getpid(), 1.0)
    assert own is not None
    assert own.rss_mib > 50
    assert min(own.descriptors, own.threads) >= 1
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        eventually(lambda: soak.sample(process.pid, 0.0) is None, 20)
    assert soak.sample(process.pid, 0.0) is None


@pytest.mark.slow
def test_a_short_soak(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "soak.json"
    options = ["--minutes", "0.15", "--prompts", "6", "--visitors", "4", "--interval", "0.2"]
    code = soak.main([*options, "--json", str(file)])
    found = json.loads(file.read_text())
    verdicts = {row["name"]: row for row in found["verdict"]}
    assert {name: verdicts[name]["value"] for name in NO_FAULTS} == NO_FAULTS
    # Nine seconds say nothing of memory; the exit code must say what the verdicts say.
    passed = all(row["verdict"] == "met" for row in found["verdict"])
    assert code == (0 if passed else 1)
    assert found["visits"]["classify"] > 5
    assert len(found["samples"]) > 20
    assert "Verdict" in capsys.readouterr().out


def find_server(parent: int) -> int | None:
    """The child that serves; libraries start short-lived children of their own when imported."""
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        with suppress(OSError):
            if b"serve" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0"):
                return int(child)
    return None


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_server_ends_with_the_soak(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "benchmarks.soak", "--minutes", "5"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            server = eventually(lambda: find_server(process.pid), 60, "the server")
            time.sleep(1)  # in the middle of something
            process.send_signal(number)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert not Path(f"/proc/{server}").exists()
    assert list(tmp_path.iterdir()) == []
