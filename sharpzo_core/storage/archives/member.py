"""One file of an archive."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

CHUNK = 256 << 10  # bytes of a member in memory at a time


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file of an archive; it can be read once, until the walk moves on.

    Folders are members too if requested; their path ends in a slash.
    """

    path: str
    chunks: Callable[[], Iterator[bytes]]
    """Its bytes, at most `CHUNK` at a time.

    Raises:
        ArchiveError: it is damaged, or larger than allowed.
    """

    def read(self) -> bytes:
        return b"".join(self.chunks())

    @property
    def folder(self) -> bool:
        return self.path.endswith("/")


def folder(path: str) -> Member:
    return Member(f"{path}/", lambda: iter(()))
