"""What an archive may unpack to, and the account of what it has unpacked to."""

import hashlib
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field

from sharpzo_core.errors import ArchiveError
from sharpzo_core.storage.archives.names import safe_path, unsafe_path

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True)
class Limits:
    """Bounds on one archive; sizes are bytes that were really unpacked, regardless of headers."""

    members: int = 100_000  #: Files and folders
    unpacked_bytes: int = 16 * GIB  #: Of all members
    member_bytes: int = 64 * MIB  #: Of one member
    ratio: int = 100  #: Unpacked bytes per byte of the archive, and of one zip member
    free_bytes: int = 16 * MIB  #: What even the smallest archive may unpack to
    free_member_bytes: int = 4 * MIB  #: What even the smallest zip member may unpack to
    name_bytes: int = 32 * MIB  #: Of all names
    extension_bytes: int = 128 * MIB  #: Of all extended tar headers


@dataclass
class Account:
    """Counts what an archive unpacks to; `tick` is called often, and may stop the walk by raising.

    Raises:
        ArchiveError: from every method, when a limit is exceeded.
    """

    limits: Limits
    archive_bytes: int
    tick: Callable[[], object] = lambda: None
    unpacked: int = 0
    members: int = 0
    name_bytes: int = 0
    extension_bytes: int = 0
    #: 16 bytes per file instead of its name.
    _seen: set[bytes] = field(default_factory=set)

    def admit(self, name: str, *, folder: bool = False) -> str:
        """Count one member and return its safe path; no two files may have the same name."""
        self.tick()
        self.members += 1
        self.check_count(self.members)
        self.name_bytes += len(name.encode("utf-8", "surrogateescape"))
        if self.name_bytes > self.limits.name_bytes:
            raise unsafe_path("the names of the members are too long in total")
        path = safe_path(name)
        if not folder:
            self._check_unique(path)
        return path

    def check_count(self, members: int) -> None:
        if members > self.limits.members:
            message = f"the archive has more than {self.limits.members} members"
            raise ArchiveError("too_many_files", message)

    def _check_unique(self, path: str) -> None:
        """On some systems, names that differ in case or Unicode composition are the same file."""
        same = path.lower() if path.isascii() else _folded(path)
        key = hashlib.blake2b(same.encode(), digest_size=16).digest()
        if key in self._seen:
            raise unsafe_path("two members have the same name (ignoring case)")
        self._seen.add(key)

    def spend(self, count: int) -> None:
        self.tick()
        self.unpacked += count
        self.check_sum(self.unpacked)

    def check_sum(self, unpacked: int) -> None:
        by_ratio = self.limits.free_bytes + self.limits.ratio * self.archive_bytes
        if unpacked > min(self.limits.unpacked_bytes, by_ratio):
            raise ArchiveError("archive_bomb", "the archive unpacks to too many bytes")

    def check_member(self, unpacked: int, packed: int | None = None) -> None:
        """Check the size of one member, which takes `packed` bytes if that is known."""
        if unpacked > self.limits.member_bytes:
            message = f"a member is larger than {self.limits.member_bytes} bytes"
            raise ArchiveError("archive_bomb", message)
        if packed is not None:
            allowed = max(self.limits.free_member_bytes, self.limits.ratio * packed)
            if unpacked > allowed:
                raise ArchiveError("archive_bomb", "a member unpacks to too many bytes")

    def extend(self, count: int) -> None:
        self.extension_bytes += count
        if self.extension_bytes > self.limits.extension_bytes:
            raise corrupt()


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def corrupt() -> ArchiveError:
    return ArchiveError("archive_corrupt", "the archive is damaged or cut (pack it again)")


def encrypted() -> ArchiveError:
    return ArchiveError("archive_encrypted", "the archive is encrypted (pack it without password)")


def unsupported(what: str) -> ArchiveError:
    return ArchiveError(
        "archive_unsupported", f"{what} is not supported (repack it as one archive with deflate)"
    )


def unsafe_entry(path: str) -> ArchiveError:
    message = f"{path!r} is a link, a device or another special file"
    return ArchiveError("archive_unsafe_entry", message)
