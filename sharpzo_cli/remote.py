"""The connection of a command to a service, and messages for the service's errors."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from sharpzo_cli.errors import CliError, RunFailed, UsageProblem
from sharpzo_client import (
    APIConnectionError,
    APIResponseError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    ConflictError,
    DatasetFailed,
    InputError,
    JobEnded,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    SharpzoError,
    UnprocessableEntityError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sharpzo_client import Client

_ADDRESS_FIX = "correct --url, SHARPZO_URL or SHARPZO_API_KEY"

#: Error of the SDK -> fix; the first match is used. `{url}` is the service's address.
FIXES: tuple[tuple[type[SharpzoError], str], ...] = (
    (APITimeoutError, "try again, or look at {url}/readyz"),
    (
        APIConnectionError,
        "start it with `sharpzo serve`, or set its address with --url or SHARPZO_URL",
    ),
    (APIResponseError, "check that {url} is the address of a SharpZO service"),
    (
        AuthenticationError,
        "put a valid key into SHARPZO_API_KEY; create one: `sharpzo keys create`",
    ),
    (PermissionDeniedError, "use a key with the required scope in SHARPZO_API_KEY"),
    (NotFoundError, "see the existing ones with the command `list`"),
    (ConflictError, "see the current state with the command `show`"),
    (RateLimitError, "wait a little, or ask the operator for a higher limit"),
    (UnprocessableEntityError, "correct the named values"),
    (DatasetFailed, "see every problem with `sharpzo datasets check`"),
    (JobEnded, "see its events with `sharpzo jobs show`"),
    (InputError, "give another path"),
    (APIStatusError, "see the request in the service's log"),
    (SharpzoError, "try again"),
)
#: Code of an error -> fix, if its class is too general.
FIXES_BY_CODE = {
    "gate_failed": "promote a better prompt, or require less",
    "alias_moved": "see its changes with `sharpzo prompts history`",
    "alias_ambiguous": "write name@alias",
    "prompt_in_use": "move its aliases and end its jobs first",
    "backbone_mismatch": "configure the service to offer the prompt's backbone",
}
#: Statuses of wrong requests (exit code 2), unlike those of failures (exit code 1).
_OF_INPUT = frozenset({400, 401, 403, 404, 405, 413, 415, 422})


@contextmanager
def service(url: str) -> Iterator[Client]:
    """Connect to a service that answers.

    Raises:
        UsageProblem: the request is wrong.
        RunFailed: the service is unreachable, or the request failed.
    """
    try:
        with _client(url) as client:
            yield client
    except SharpzoError as error:
        raise translated(error, url) from error


def translated(error: SharpzoError, url: str) -> CliError:
    """Turn an error of the SDK into one of the command line."""
    code = error.code if isinstance(error, APIStatusError) else None
    fix = FIXES_BY_CODE.get(code or "") or next(f for kind, f in FIXES if isinstance(error, kind))
    fix = fix.replace("{url}", url)
    return (UsageProblem if _is_input(error) else RunFailed)(_what(error, url), fix)


def _client(url: str) -> Client:
    """Connect and check that the service answers; later calls would be retried for seconds."""
    from sharpzo_client import Client

    try:
        client = Client(url)
        with suppress(APIStatusError, APIResponseError):  # a gateway may not offer this address
            client.health.livez()
    except InputError as error:
        raise UsageProblem(str(error), _ADDRESS_FIX) from error
    return client


def _is_input(error: SharpzoError) -> bool:
    if isinstance(error, APIStatusError):
        return error.status in _OF_INPUT
    return isinstance(error, InputError | DatasetFailed)


def _what(error: SharpzoError, url: str) -> str:
    if isinstance(error, APIConnectionError) and not error.sent:
        return f"no service answers at {url}"
    if isinstance(error, APIStatusError):
        text = (error.detail or error.title or f"the service answered {error.status}").rstrip(".")
        others = [fault for fault in error.errors if fault.message not in text]
        faults = "; ".join(f"{fault.pointer}: {fault.message}" for fault in others)
        request = (
            f" (request {error.request_id})" if error.status >= 500 and error.request_id else ""
        )
        return (f"{text}: {faults}" if faults else text) + request
    return str(error)
