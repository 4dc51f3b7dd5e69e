"""Splitting a stream of JSON lines into records."""

from __future__ import annotations

import json
from collections.abc import Iterator

from pydantic import ValidationError

from sharpzo_client.errors import APIResponseError
from sharpzo_client.models import ImageRecord


class Lines:
    """Takes chunks of any size; keeps at most one line in memory."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> Iterator[ImageRecord]:
        """Return the records that the chunk completes.

        Raises:
            APIResponseError: a line is not a record.
        """
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        return (_record(line) for line in lines if line)

    def end(self) -> None:
        """Check that the stream is complete.

        Raises:
            APIResponseError: it ended in the middle of a line.
        """
        if self._rest:
            raise APIResponseError("the results end in the middle of a line")


def _record(line: bytes) -> ImageRecord:
    try:
        return ImageRecord.read(json.loads(line))
    except (ValueError, ValidationError) as error:
        raise APIResponseError("a line of the results is not a record") from error
