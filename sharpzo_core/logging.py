"""Log lines: text for people, JSON for machines; both by stdlib logging.

Logging never blocks. Lines go through a queue to a thread that writes them, because standard error
may be a pipe that nobody reads; when the queue is full, lines are dropped and counted.

Every line carries the fields that `log_context` holds where it is logged.
"""

import json
import logging
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import partial
from types import MappingProxyType
from typing import TextIO

from sharpzo_core.records.jobs import Job
from sharpzo_core.settings import Settings

MAX_QUEUED = 10_000  # lines in the queue
FLUSH_SECONDS = 1.0  # how long the process waits for them when it ends

_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
#: Attributes that every record has; all others come from `extra=`.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
#: Fields of the context that text shows at the end of the line.
_SHOWN = ("request_id", "dataset_id", "job_id", "prompt_id")

_context: ContextVar[Mapping[str, object]] = ContextVar(
    "sharpzo_log_context", default=MappingProxyType({})
)


@contextmanager
def log_context(**fields: object) -> Iterator[None]:
    """Add these fields, without those that are None, to every line that is logged inside.

    Fields of `extra` take precedence. Other threads do not see the fields, unless they run in a
    copy of the context (`contextvars.copy_context`).
    """
    known = {name: value for name, value in fields.items() if value is not None}
    token = _context.set({**_context.get(), **known})
    try:
        yield
    finally:
        _context.reset(token)


def job_context(job: Job) -> AbstractContextManager[None]:
    return log_context(
        request_id=job.request_id,
        tenant=job.tenant,
        job_id=job.id,
        kind=job.kind,
        attempt=job.attempt,
        prompt_id=job.prompt_id,
    )


def logged(name: str) -> object:
    """The value of this field in the current log context, or None."""
    return _context.get().get(name)


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, message and the fields of `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """One line per record; control characters are escaped, so that none can fake a record."""

    def __init__(self) -> None:
        super().__init__(_TEXT)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        line = super().formatMessage(record)
        about = [f"{name}={vars(record)[name]}" for name in _SHOWN if name in vars(record)]
        if about:
            line = f"{line} [{' '.join(about)}]"
        return "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)


class QueuedHandler(logging.Handler):
    """Passes lines to a thread that writes them; never blocks, drops lines if the queue is full."""

    def __init__(
        self,
        write: Callable[[str], object],
        limit: int = MAX_QUEUED,
        at_end: Callable[[], object] = lambda: None,
    ) -> None:
        """`at_end` is called after the last line."""
        super().__init__()
        self._write = write
        self._at_end = at_end
        self._limit = limit
        # A SimpleQueue, because a signal handler may log while its own thread is in `put`.
        self._queue: queue.SimpleQueue[str | threading.Event | None] = queue.SimpleQueue()
        self._dropped = 0
        self._reported = 0
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        return self._dropped

    def emit(self, record: logging.LogRecord) -> None:
        if self._queue.qsize() >= self._limit:
            self._dropped += 1
            return
        try:
            self._queue.put(self.format(record))
        except Exception:  # a record that cannot be formatted must not stop the program
            self.handleError(record)

    def flush(self) -> None:
        written = threading.Event()
        self._queue.put(written)
        written.wait(FLUSH_SECONDS)

    def close(self) -> None:
        self._queue.put(None)
        super().close()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if isinstance(item, str):
                self._write(item)
            self._report_dropped()
            if isinstance(item, threading.Event):
                item.set()
        self._at_end()

    def _report_dropped(self) -> None:
        missing = self._dropped - self._reported
        if missing and self._queue.qsize() <= self._limit // 2:
            self._reported += missing
            self._write(self.format(_dropped_record(missing)))


def _dropped_record(count: int) -> logging.LogRecord:
    return logging.makeLogRecord(
        {
            "name": __name__,
            "levelno": logging.WARNING,
            "levelname": "WARNING",
            "msg": f"{count} log records were dropped: the log was not read",
            "action": "log_records_dropped",
            "dropped": count,
        }
    )


def dropped_records() -> int:
    """How many log records this process has dropped because nobody read its log."""
    handlers = logging.getLogger().handlers
    return sum(handler.dropped for handler in handlers if isinstance(handler, QueuedHandler))


def configure_logging(settings: Settings) -> None:
    handler = _handler(sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else TextFormatter())
    handler.addFilter(_has_logger)
    handler.addFilter(_add_context)
    root = logging.getLogger()
    replaced, root.handlers[:] = root.handlers[:], [handler]
    for old in replaced:
        if isinstance(old, QueuedHandler):
            old.close()
    root.setLevel(settings.log_level.upper())
    logging.captureWarnings(capture=True)
    # Their INFO lines are about themselves, not about the service.
    for name in ("alembic", "kombu", "amqp", "PIL", "celery", "uvicorn"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _handler(stream: TextIO) -> QueuedHandler:
    """A handler that writes lines to the stream's file, past its buffer.

    When the interpreter ends, it takes the buffer's lock, and would wait for, or abort because of,
    a thread that is stuck in a write.
    """
    try:
        # Our own descriptor: if other code closed a shared one, its number could soon belong to
        # another file, perhaps a database.
        file = os.dup(stream.fileno())
    except (AttributeError, OSError):  # replaced by an object that is not a file
        return QueuedHandler(lambda line: stream.write(f"{line}\n"))
    return QueuedHandler(
        lambda line: _write_all(file, f"{line}\n".encode(errors="backslashreplace")),
        at_end=partial(os.close, file),
    )


def _write_all(file: int, data: bytes) -> None:
    """Write everything; ignore a log that was closed."""
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(file, view) :]
    except OSError:
        return


def _has_logger(record: logging.LogRecord) -> bool:
    """Drop what a library writes to the root logger below WARNING, as open_clip does."""
    return record.name != "root" or record.levelno >= logging.WARNING


def _add_context(record: logging.LogRecord) -> bool:
    for name, value in _context.get().items():
        vars(record).setdefault(name, value)
    return True
