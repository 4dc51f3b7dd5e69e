"""The service that a command talks to, and what is told of its refusals."""

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
    Client,
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

_ADDRESS_FIX = "correct --url, SHARPZO_URL or SHARPZO_API_KEY"
_CHECK_ADDRESS = "see that {url} is the address of a SharpZO service"

#: Error of the SDK -> what to do; the first that fits. `{url}` is the service's address.
FIXES: tuple[tuple[type[SharpzoError], str], ...] = (
    (APITimeoutError, "try again, or look at {url}/readyz"),
    (
        APIConnectionError,
        "start it with `sharpzo serve`, or name its address with --url or SHARPZO_URL",
    ),
    (APIResponseError, _CHECK_ADDRESS),
    (AuthenticationError, "put a valid key into SHARPZO_API_KEY; `sharpzo keys create` makes one"),
    (PermissionDeniedError, "use a key with the scope that is needed, in SHARPZO_API_KEY"),
    (NotFoundError, "the command `list` shows what there is"),
    (ConflictError, "the command `show` tells the present state"),
    (RateLimitError, "wait a little, or ask the operator for more"),
    (UnprocessableEntityError, "correct what is named"),
    (DatasetFailed, "`sharpzo datasets check` lists all that is wrong"),
    (JobEnded, "`sharpzo jobs show` tells its events"),
    (InputError, "give another path"),
    (APIStatusError, "see the service's log for the request"),
    (SharpzoError, "try again"),
)
#: Code of a refusal -> what to do, where its class says too little.
FIXES_BY_CODE = {
    "gate_failed": "promote a better prompt, or ask for less",
    "alias_moved": "`sharpzo prompts history` tells who moved it",
    "alias_ambiguous": "write name@alias",
    "prompt_in_use": "move its aliases, and end its jobs, first",
    "backbone_mismatch": "have the service offer the prompt's backbone",
}
#: Statuses that blame what was asked for, not what became of it.
_OF_INPUT = frozenset({400, 401, 403, 404, 405, 413, 415, 422})


@contextmanager
def service(url: str) -> Iterator[Client]:
    """A client of the service, found to be there.

    Raises:
        UsageProblem: what the command asks for is wrong.
        RunFailed: the service is not there, or could not do it.
    """
    try:
        with _client(url) as client:
            yield client
    except SharpzoError as error:
        raise translated(error, url) from error


def translated(error: SharpzoError, url: str) -> CliError:
    """The same as an error of the command line."""
    code = error.code if isinstance(error, APIStatusError) else None
    fix = FIXES_BY_CODE.get(code or "") or next(f for kind, f in FIXES if isinstance(error, kind))
    fix = fix.replace("{url}", url)
    return (UsageProblem if _is_input(error) else RunFailed)(_what(error, url), fix)


def _client(url: str) -> Client:
    """A client of a service that is there; calls would be repeated for seconds before they fail."""
    try:
        client = Client(url)
        with suppress(APIStatusError, APIResponseError):  # a gateway need not know this address
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
        told = error.detail or error.title or f"the service answered {error.status}"
        others = [fault for fault in error.errors if fault.message not in told]
        faults = "; ".join(f"{fault.pointer}: {fault.message}" for fault in others)
        named = f" (request {error.request_id})" if error.status >= 500 and error.request_id else ""
        return (f"{told.rstrip('.')}: {faults}" if faults else told.rstrip(".")) + named
    return str(error)
