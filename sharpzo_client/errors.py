"""The SDK's errors.

SharpzoError
 ├── APIConnectionError              the service is unreachable, or the connection broke
 │    └── APITimeoutError            … or it did not answer in time
 ├── APIResponseError                an answer that does not match the API
 ├── APIStatusError                  an answer with an error status
 │    ├── BadRequestError            400
 │    ├── AuthenticationError        401
 │    ├── PermissionDeniedError      403
 │    ├── NotFoundError              404
 │    ├── MethodNotAllowedError      405
 │    ├── RequestTimeoutError        408
 │    ├── ConflictError              409
 │    ├── PayloadTooLargeError       413
 │    ├── UnsupportedMediaTypeError  415
 │    ├── UnprocessableEntityError   422
 │    ├── RateLimitError             429
 │    └── ServerError                any 5xx
 │         ├── ServiceUnavailableError   503
 │         ├── DeadlineExceededError     504
 │         └── InsufficientStorageError  507
 ├── InputError                      a local file, folder or image cannot be sent
 ├── DownloadError                   a downloaded file is damaged
 ├── WaitTimeoutError                the job or dataset did not finish in time
 ├── DatasetFailed                   the service cannot use the dataset
 └── JobEnded                        the job ended without success
      ├── JobFailed
      └── JobCancelled
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sharpzo_client.models import Dataset, Job


class SharpzoError(Exception):
    """Base of the SDK's errors."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").strip())


class APIConnectionError(SharpzoError):
    """The service cannot be reached, or the connection broke.

    `sent` is false if the request certainly never left this machine.
    """

    def __init__(self, message: str | None = None, *, sent: bool = True) -> None:
        super().__init__(message)
        self.sent = sent


class APITimeoutError(APIConnectionError):
    """The service did not answer in time."""


class APIResponseError(SharpzoError):
    """The answer does not match the API; is this the address of a SharpZO service?"""


@dataclass(frozen=True)
class FieldFault:
    """One error in a request: a JSON pointer to the value, and what is wrong with it."""

    pointer: str
    message: str


class APIStatusError(SharpzoError):
    """The service rejected the request (an RFC 9457 problem).

    Attributes:
        status: HTTP status.
        code: The service's name for the problem, such as `alias_moved`.
        title: Short description.
        detail: What is wrong in this request.
        errors: The wrong values, if any.
        request_id: The id of the request in the service's log.
        retry_after: Seconds to wait before trying again.
    """

    def __init__(
        self,
        status: int,
        *,
        detail: str = "",
        code: str | None = None,
        title: str | None = None,
        errors: Sequence[FieldFault] = (),
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        self.status = status
        self.code = code
        self.title = title
        self.detail = detail
        self.errors = tuple(errors)
        self.request_id = request_id
        self.retry_after = retry_after
        super().__init__(self._message())

    def _message(self) -> str:
        faults = "; ".join(f"{fault.pointer}: {fault.message}" for fault in self.errors)
        text = self.detail or self.title or "no reason given"
        text = f"{text} [{faults}]" if faults else text
        name = f"{self.status} {self.code}" if self.code else str(self.status)
        return f"{name}: {text}"


class BadRequestError(APIStatusError):
    """400: the request cannot be read."""


class AuthenticationError(APIStatusError):
    """401: the API key is missing or wrong."""


class PermissionDeniedError(APIStatusError):
    """403: the API key may not do this."""


class NotFoundError(APIStatusError):
    """404: the object does not exist."""


class MethodNotAllowedError(APIStatusError):
    """405: the address does not take this method."""


class RequestTimeoutError(APIStatusError):
    """408: the service waited too long for the request."""


class ConflictError(APIStatusError):
    """409: the object's state does not allow this."""


class PayloadTooLargeError(APIStatusError):
    """413: the upload is too large."""


class UnsupportedMediaTypeError(APIStatusError):
    """415: the service does not accept this type of upload."""


class UnprocessableEntityError(APIStatusError):
    """422: a value in the request is wrong; see `errors`."""


class RateLimitError(APIStatusError):
    """429: too many requests or jobs; see `retry_after`."""


class ServerError(APIStatusError):
    """5xx: the service failed."""


class ServiceUnavailableError(ServerError):
    """503: the service is not ready."""


class DeadlineExceededError(ServerError):
    """504: the request's deadline passed before the answer was ready."""


class InsufficientStorageError(ServerError):
    """507: the service's storage is full."""


#: Status -> class; other statuses use `ServerError` or `APIStatusError`.
STATUS_ERRORS: Mapping[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    405: MethodNotAllowedError,
    408: RequestTimeoutError,
    409: ConflictError,
    413: PayloadTooLargeError,
    415: UnsupportedMediaTypeError,
    422: UnprocessableEntityError,
    429: RateLimitError,
    503: ServiceUnavailableError,
    504: DeadlineExceededError,
    507: InsufficientStorageError,
}


def status_error(status: int) -> type[APIStatusError]:
    """Return the error class for an HTTP status of 300 or more."""
    family = ServerError if status >= 500 else APIStatusError
    return STATUS_ERRORS.get(status, family)


class InputError(SharpzoError):
    """A local file, folder or image cannot be sent, or an argument is wrong."""


class DownloadError(SharpzoError):
    """The downloaded file is damaged: its SHA-256 is not the expected one."""


class WaitTimeoutError(SharpzoError, TimeoutError):
    """The job or dataset did not finish in time; it keeps running."""


class DatasetFailed(SharpzoError):  # noqa: N818 - named for the fact
    """The service cannot use the dataset; see `dataset.error`."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        reason = dataset.error.message if dataset.error else "no reason given"
        super().__init__(f"dataset {dataset.id} failed: {reason}")


class JobEnded(SharpzoError):  # noqa: N818 - named for the fact
    """The job ended without success; see `job`."""

    def __init__(self, job: Job) -> None:
        self.job = job
        reason = f": {job.error.message}" if job.error else ""
        super().__init__(f"job {job.id} {job.status}{reason}")


class JobFailed(JobEnded):
    """The job failed; see `job.error`."""


class JobCancelled(JobEnded):
    """The job was cancelled."""
