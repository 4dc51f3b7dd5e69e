"""A call to the API as data: what to send, how to read the answer, when it may be retried.

Nothing here does input or output. A *flow* is a generator that yields effects (an operation, a
pause, a function that blocks) and receives their results. The transports perform the effects,
blocking or not, so that every flow is written once for both clients.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, BinaryIO, Generic, TypeAlias, TypeVar

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")


class Retry(Enum):
    """When a failed call may be sent again."""

    ALWAYS = "always"  #: Sending it twice changes nothing, or it has an idempotency key.
    NEVER = "never"


@dataclass(frozen=True)
class Part:
    """One file of a multipart body; an open file is read from its start on every attempt."""

    field: str
    filename: str
    content: bytes | BinaryIO
    content_type: str


@dataclass(frozen=True, kw_only=True)
class Operation(Generic[T]):
    """One request and the reader of its answer."""

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    params: Mapping[str, str | int] = field(default_factory=dict)
    json: object = None
    fields: Mapping[str, str] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    retry: Retry = Retry.ALWAYS

    def __iter__(self) -> Flow[T]:
        """Make an operation a flow of one effect: `yield from operation` returns a typed answer."""
        answer: T = yield self
        return answer


@dataclass(frozen=True)
class Sleep:
    """Pause a flow."""

    seconds: float


@dataclass(frozen=True)
class Blocking(Generic[T]):
    """Work on files: the sync client does it in place, the async client in a thread."""

    run: Callable[[], T]

    def __iter__(self) -> Flow[T]:
        """Make it a flow: `yield from Blocking(work)` returns the typed result."""
        result: T = yield self
        return result


Effect: TypeAlias = Operation[Any] | Sleep | Blocking[Any]
Flow: TypeAlias = Generator[Effect, Any, T]
