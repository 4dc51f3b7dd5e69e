"""Requests to a server of encoders: several at a time, sent again when they fail for now."""

from __future__ import annotations

import random
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_before_delay

from sharpzo_engine.errors import BackboneError, EncoderAway

Item = TypeVar("Item")

#: Requests at a time: the next ones arrive while the server computes.
IN_FLIGHT = 4
CONNECT_SECONDS = 5.0
READ_SECONDS = 60.0  # without a byte
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0  # seconds; a Retry-After may ask for more
OVERHEAD_BYTES = 1 << 16  # of an answer around its numbers
_TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})
_UNAUTHORIZED = frozenset({401, 403})


@dataclass(frozen=True)
class Answer:
    """The response to one request."""

    body: bytes
    headers: httpx.Headers


class Refused(BackboneError):  # noqa: N818 - named for the fact
    """The server rejects a request; `pointers` are the JSON pointers of what is wrong with it."""

    def __init__(self, message: str, pointers: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.pointers = pointers


class _Again(Exception):  # noqa: N818 - not for callers
    """The request may succeed later."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class Connection:
    """A server's address with a key; usable from several threads."""

    def __init__(self, url: str, key: str | None, patience: float) -> None:
        """`url` is what paths are appended to; requests are sent again for `patience` seconds."""
        self.url = url.rstrip("/")
        self.patience = patience
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=IN_FLIGHT),
        )
        weakref.finalize(self, self._client.close)
        self._pool = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="remote")

    def each(self, ask: Callable[[Item], object], items: Iterable[Item]) -> None:
        """Call `ask` for every item, several at a time; the first error is raised."""
        items = list(items)
        if len(items) == 1:
            ask(items[0])
        else:
            list(self._pool.map(ask, items))

    def request(self, method: str, path: str = "", *, floats: int = 0, **body: Any) -> Answer:  # noqa: ANN401 - httpx's own arguments
        """Send a request, again and again while it fails for now.

        `floats` are the numbers that the answer may hold.

        Raises:
            EncoderAway: there was no answer for as long as the connection's patience.
            Refused: the server rejects the request.
            BackboneError: the server does not accept the key, or answers nonsense.
        """
        retrying = Retrying(
            stop=stop_before_delay(self.patience),
            wait=_pause,
            retry=retry_if_exception_type(_Again),
            reraise=True,
        )
        most = OVERHEAD_BYTES + 8 * floats  # base64 in JSON takes 5.4 bytes for each
        try:
            return retrying(self._send, method, path, most, body)
        except _Again as error:
            raise EncoderAway(f"the encoder at {self.url} does not answer: {error}") from error

    def _send(self, method: str, path: str, most: int, body: dict[str, Any]) -> Answer:
        try:
            with self._client.stream(method, self.url + path, **body) as response:
                content = _read(response, most)
        except httpx.RequestError as error:
            raise _Again(type(error).__name__) from error
        if response.is_success:
            return Answer(content, response.headers)
        raise self._problem(response, content)

    def _problem(self, response: httpx.Response, content: bytes) -> Exception:
        status = response.status_code
        if status in _TEMPORARY:
            return _Again(f"status {status}", _seconds(response.headers.get("retry-after")))
        if status in _UNAUTHORIZED:
            return BackboneError(
                f"{self.url} answers {status} (set SHARPZO_ENCODER_KEY to a key with the scope "
                "encode)"
            )
        detail, pointers = _detail(content)
        return Refused(f"{self.url} answers {status}: {detail}", pointers)


def _read(response: httpx.Response, most: int) -> bytes:
    body = bytearray()
    for chunk in response.iter_bytes():
        body += chunk
        if len(body) > most:
            raise BackboneError(f"{response.url} answers with more than {most} bytes")
    return bytes(body)


def _detail(content: bytes) -> tuple[str, tuple[str, ...]]:
    """What a problem document says, in a line."""
    try:
        problem = httpx.Response(200, content=content).json()
        faults = problem.get("errors", [])
        lines = [f"{fault['pointer']}: {fault['message']}" for fault in faults]
        detail = "; ".join(lines) or str(problem["detail"])
        return detail[:300], tuple(str(fault["pointer"]) for fault in faults)
    except (ValueError, KeyError, TypeError, AttributeError):
        return "no reason given", ()


def _pause(state: RetryCallState) -> float:
    """Seconds to wait: Retry-After, or else a backoff with jitter."""
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, _Again) and error.retry_after is not None:
        return error.retry_after
    backoff = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** (state.attempt_number - 1))
    return backoff * (0.5 + random.random())  # noqa: S311 - not a secret


def _seconds(retry_after: str | None) -> float | None:
    """The value of a Retry-After header in seconds; None for its form with a date."""
    return float(retry_after) if retry_after and retry_after.isdecimal() else None
