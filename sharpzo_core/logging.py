"""Log lines: text for people, JSON for machines; stdlib logging in both."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sharpzo_core.settings import Settings

_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
#: Attributes that every record has; what else it has came by `extra=`.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, message, and whatever `extra` held."""

    def format(self, record: logging.LogRecord) -> str:
        """The line; control characters are escaped by JSON itself."""
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
    """One line per record; a line break inside a message cannot fake another record."""

    def __init__(self) -> None:
        super().__init__(_TEXT)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The line, without control characters."""
        line = super().formatMessage(record)
        return "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)


def configure_logging(settings: Settings) -> None:
    """Send this process's log to stderr in the configured form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else TextFormatter())
    handler.addFilter(_is_somebodys)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    logging.captureWarnings(capture=True)
    # Their INFO lines tell how they work, not what the service does.
    for name in ("alembic", "kombu", "amqp", "PIL"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _is_somebodys(record: logging.LogRecord) -> bool:
    """Drop chatter that a library writes to the root logger, as open_clip does."""
    return record.name != "root" or record.levelno >= logging.WARNING
