from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sharpzo_core.logging import (
    JsonFormatter,
    QueuedHandler,
    TextFormatter,
    _add_context,
    log_context,
    logged,
)
from sharpzo_core.periodic import Periodic

LINES = 200_000
#: Logs far more than a pipe and the queue hold, tells what it has done, and ends.
CHATTY = f"""
import logging, sys
from sharpzo_core.logging import configure_logging, dropped_records
from sharpzo_core.settings import Settings
configure_logging(Settings.load())
for number in range({LINES}):
    logging.getLogger("chatty").info("line %d", number)
print(dropped_records(), flush=True)
sys.stdin.read()
"""


def record(message: str, **extra: object) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": "worker", "levelname": "INFO", "msg": message})
    vars(made).update(extra)
    return made


def test_a_json_line_holds_what_extra_held() -> None:
    line = JsonFormatter().format(record("hello", action="job_claimed", job_id="job_1"))
    assert "\n" not in line
    parsed = json.loads(line)
    assert parsed["message"] == "hello"
    assert (parsed["action"], parsed["job_id"]) == ("job_claimed", "job_1")


def test_a_message_cannot_fake_another_line() -> None:
    line = TextFormatter().format(record("name\n2026-01-01 INFO forged\x1b[31m"))
    assert "\n" not in line
    assert "\x1b" not in line


@pytest.fixture
def handlers() -> Iterator[list[QueuedHandler]]:
    """Handlers to close at the end."""
    made: list[QueuedHandler] = []
    yield made
    for handler in made:
        handler.close()


def test_what_does_not_fit_is_dropped_counted_and_told(handlers: list[QueuedHandler]) -> None:
    written: list[str] = []
    stuck, go_on = threading.Event(), threading.Event()

    def write(line: str) -> None:
        stuck.set()
        assert go_on.wait(20)
        written.append(line)

    handlers.append(handler := QueuedHandler(write, limit=4))
    handler.setFormatter(JsonFormatter())
    handler.handle(record("0"))
    assert stuck.wait(20)
    for number in range(1, 8):
        handler.handle(record(str(number)))
    assert handler.dropped == 3
    go_on.set()
    handler.flush()
    lines = [json.loads(line) for line in written]
    told = [line["dropped"] for line in lines if line.get("action") == "log_records_dropped"]
    assert told == [3]
    kept = [line["message"] for line in lines if "dropped" not in line]
    assert kept == ["0", "1", "2", "3", "4"]


def test_a_signal_handler_may_log_at_any_moment(handlers: list[QueuedHandler]) -> None:
    """A record whose formatting logs another one, as a signal in the middle would."""
    written: list[str] = []
    handlers.append(handler := QueuedHandler(written.append))

    class Nested:
        def __str__(self) -> str:
            handler.handle(record("inner"))
            return "outer"

    handler.handle(logging.makeLogRecord({"msg": Nested()}))
    handler.flush()
    assert written == ["inner", "outer"]


@contextmanager
def chatty_process(log_format: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-c", CHATTY],
        env={**os.environ, "SHARPZO_LOG_FORMAT": log_format},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_log_that_nobody_reads_stops_nothing(log_format: str) -> None:
    with chatty_process(log_format) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert int(process.stdout.readline()) > LINES / 2
        process.stdin.close()
        assert process.wait(20) == 0


def test_a_log_that_is_read_late_tells_what_is_missing() -> None:
    with chatty_process("text") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdin is not None
        dropped = int(process.stdout.readline())  # until here nothing was read
        process.stdin.close()
        log = process.stderr.read().decode()
        assert process.wait(20) == 0
    told = [int(number) for number in re.findall(r"(\d+) log records were dropped", log)]
    assert sum(told) == dropped
    assert len(re.findall(r"chatty: line \d+$", log, re.MULTILINE)) == LINES - dropped


def test_lines_never_go_to_a_file_that_took_a_closed_descriptors_number(tmp_path: Path) -> None:
    """That file could be the database."""
    code = f"""
import logging, os, sys
from sharpzo_core.logging import configure_logging
from sharpzo_core.settings import Settings
sys.stderr = open({str(tmp_path / "log")!r}, "w")
configure_logging(Settings.load())
number = sys.stderr.fileno()
sys.stderr.close()
other = os.open({str(tmp_path / "other")!r}, os.O_RDWR | os.O_CREAT)
assert other == number
logging.getLogger("test").warning("hello")
logging.getLogger().handlers[0].flush()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert (tmp_path / "other").read_bytes() == b""
    assert "hello" in (tmp_path / "log").read_text()


def test_a_replaced_handler_gives_its_descriptor_back() -> None:
    code = """
import logging, os, time
from sharpzo_core.logging import configure_logging
from sharpzo_core.settings import Settings
for _ in range(20):
    configure_logging(Settings.load())
deadline = time.monotonic() + 10
while len(os.listdir("/proc/self/fd")) > 12 and time.monotonic() < deadline:
    time.sleep(0.01)
print(len(os.listdir("/proc/self/fd")))
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True
    )
    assert int(ran.stdout) <= 12


def test_lines_say_what_their_context_holds(handlers: list[QueuedHandler]) -> None:
    written: list[str] = []
    handlers.append(handler := QueuedHandler(written.append))
    handler.setFormatter(JsonFormatter())
    handler.addFilter(_add_context)
    with log_context(request_id="r1", job_id="job_1", key_id=None):
        with log_context(job_id="job_2"):
            handler.handle(record("inner"))
            handler.handle(record("told", job_id="job_3"))
        handler.handle(record("outer"))
    handler.handle(record("outside"))
    handler.flush()
    lines = [json.loads(line) for line in written]
    found = [(line["message"], line.get("request_id"), line.get("job_id")) for line in lines]
    assert found == [
        ("inner", "r1", "job_2"),
        ("told", "r1", "job_3"),
        ("outer", "r1", "job_1"),
        ("outside", None, None),
    ]
    assert "key_id" not in lines[0]


def test_text_shows_the_ids_at_the_end() -> None:
    line = TextFormatter().format(record("hello", request_id="r1", job_id="job_1", tenant="a"))
    assert line.endswith("INFO worker: hello [request_id=r1 job_id=job_1]")


def test_what_is_done_again_and_again_has_the_context_of_who_began_it() -> None:
    seen: list[object] = []
    done = threading.Event()

    def look() -> None:
        seen.append(logged("job_id"))
        done.set()

    with log_context(job_id="job_1"):
        periodic = Periodic("looks", 60, look)
    periodic.start()
    assert done.wait(20)
    periodic.stop()
    assert seen == ["job_1"]
