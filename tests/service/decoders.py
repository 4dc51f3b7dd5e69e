"""Decoding without child processes, for tests of something else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sharpzo_engine.data.images import inspect_image
from sharpzo_engine.errors import ImageError

if TYPE_CHECKING:
    from service.ingest.decoding.decoders import DecodeRules, Done


class InProcess:
    """What `Decoders` does, with the same function on the same bytes, in the calling thread."""

    def __init__(self, rules: DecodeRules) -> None:
        self._rules = rules

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def decode(self, chunks: Iterable[bytes], thumbnail: int, done: Done) -> None:
        data = b"".join(chunks)
        try:
            found = inspect_image(data, self._rules.max_pixels, thumbnail)
        except ImageError as error:
            done(error)
        else:
            done(found)

    def finish(self) -> None:
        pass
