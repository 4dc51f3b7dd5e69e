"""Which failed requests are sent again, and after how long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict

from tenacity import RetryCallState, retry_if_exception, stop_after_attempt
from tenacity.retry import retry_base
from tenacity.stop import stop_base
from tenacity.wait import wait_exponential, wait_random

from sharpzo_client._constants import INITIAL_BACKOFF, MAX_BACKOFF, MAX_RETRY_AFTER
from sharpzo_client._operation import Operation, Retry
from sharpzo_client.errors import APIConnectionError, APIStatusError

#: Statuses to retry, besides most 5xx. A 409 is retried only with Retry-After: then an earlier
#: attempt of the same call is still running.
TRANSIENT = frozenset({408, 429})
#: A full disk does not become empty within seconds, and uploads are large.
PERMANENT = frozenset({507})
#: The caller's own deadline has passed; other 504s come from gateways and are retried.
DEADLINE_PASSED = "deadline_exceeded"

_backoff = wait_exponential(multiplier=INITIAL_BACKOFF, max=MAX_BACKOFF)
_jitter = wait_random(0, INITIAL_BACKOFF)


class RetryOptions(TypedDict):
    """What `tenacity.Retrying` and `AsyncRetrying` have in common."""

    stop: stop_base
    retry: retry_base
    wait: Callable[[RetryCallState], float]
    reraise: bool


def retry_options(operation: Operation[Any], max_retries: int) -> RetryOptions:
    return RetryOptions(
        stop=stop_after_attempt(max_retries + 1),
        retry=retry_if_exception(lambda error: may_retry(error, operation.retry)),
        wait=pause_before_retry,
        reraise=True,
    )


def may_retry(error: BaseException, rule: Retry) -> bool:
    if rule is Retry.NEVER:
        return False
    if isinstance(error, APIConnectionError):
        return True
    if not isinstance(error, APIStatusError) or _asks_for_too_long(error):
        return False
    if error.code == DEADLINE_PASSED:
        return False
    if _still_running(error) or error.status in TRANSIENT:
        return True
    return error.status >= 500 and error.status not in PERMANENT


def pause_before_retry(state: RetryCallState) -> float:
    """Return the seconds to wait: Retry-After, or else a backoff with jitter."""
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, APIStatusError) and error.retry_after is not None:
        return error.retry_after
    return min(MAX_BACKOFF, _backoff(state) + _jitter(state))


def backoff(failures: int) -> float:
    """Return the seconds to wait after this many failures in a row, without jitter."""
    return min(MAX_BACKOFF, INITIAL_BACKOFF * 2.0 ** max(0, failures - 1))


def _asks_for_too_long(error: APIStatusError) -> bool:
    return error.retry_after is not None and error.retry_after > MAX_RETRY_AFTER


def _still_running(error: APIStatusError) -> bool:
    return error.status == 409 and error.retry_after is not None
