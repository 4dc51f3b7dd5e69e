"""The connection of a command to a service, and messages for the service's errors."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from sharpzo_cli.errors import CliError, RunFailed, UsageProblem
from sharpzo_client import errors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sharpzo_client import Client

_ADDRESS_FIX = "correct --url, SHARPZO_URL or SHARPZO_API_KEY"

#: Error of the SDK -> fix; the first match is used. `{url}` is the service's address.
FIXES: tuple[tuple[type[errors.SharpzoError], str], ...] = (
    (errors.APITimeoutError, "try again, or look at {url}/readyz"),
    (
        errors.APIConnectionError,
        "start it with `sharpzo serve`, or set its address with --url or SHARPZO_URL",
    ),
    (errors.APIResponseError, "check that {url} is the address of a SharpZO service"),
    (
        errors.AuthenticationError,
        "put a valid key into SHARPZO_API_KEY; create one: `sharpzo keys create`",
    ),
    (errors.PermissionDeniedError, "use a key with the required scope in SHARPZO_API_KEY"),
    (errors.NotFoundError, "see the existing ones with the command `list`"),
    (errors.ConflictError, "see the current state with the command `show`"),
    (errors.RateLimitError, "wait a little, or ask the operator for a higher limit"),
    (errors.UnprocessableEntityError, "correct the named values"),
    (errors.DatasetFailed, "see every problem with `sharpzo datasets check`"),
    (errors.JobEnded, "see its events with `sharpzo jobs show`"),
    (errors.InputError, "give another path"),
    (errors.APIStatusError, "see the request in the service's log"),
    (errors.SharpzoError, "try again"),
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
    except errors.SharpzoError as error:
        raise translated(error, url) from error


def translated(error: errors.SharpzoError, url: str) -> CliError:
    code = error.code if isinstance(error, errors.APIStatusError) else None
    fix = FIXES_BY_CODE.get(code or "") or next(f for kind, f in FIXES if isinstance(error, kind))
    fix = fix.replace("{url}", url)
    return (UsageProblem if _is_input(error) else RunFailed)(_what(error, url), fix)


def _client(url: str) -> Client:
    """Connect and check that the service answers; later calls would be retried for seconds."""
    from sharpzo_client import Client

    try:
        client = Client(url)
        with suppress(
            errors.APIStatusError, errors.APIResponseError
        ):  # a gateway may not offer this address
            client.health.livez()
    except errors.InputError as error:
        raise UsageProblem(str(error), _ADDRESS_FIX) from error
    return client


def _is_input(error: errors.SharpzoError) -> bool:
    if isinstance(error, errors.APIStatusError):
        return error.status in _OF_INPUT
    return isinstance(error, errors.InputError | errors.DatasetFailed)


def _what(error: errors.SharpzoError, url: str) -> str:
    if isinstance(error, errors.APIConnectionError) and not error.sent:
        return f"no service answers at {url}"
    if isinstance(error, errors.APIStatusError):
        text = (error.detail or error.title or f"the service answered {error.status}").rstrip(".")
        others = [fault for fault in error.errors if fault.message not in text]
        faults = "; ".join(f"{fault.pointer}: {fault.message}" for fault in others)
        request = (
            f" (request {error.request_id})" if error.status >= 500 and error.request_id else ""
        )
        return (f"{text}: {faults}" if faults else text) + request
    return str(error)
