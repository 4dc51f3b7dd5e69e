# ruff: noqa: N818 - errors are named for the fact
"""Errors of the API process, beside those of the core.

CoreError
 ├── MalformedJson         400  the body is not strict JSON
 ├── MalformedMultipart    400  the multipart framing is broken
 ├── HostNotAllowed        400  the request calls the service by another name
 ├── OriginNotAllowed      403  another site's page sends the request
 ├── ForbiddenLocation     403  a dataset URI outside what the operator allows
 ├── PageMissing           404  the dashboard was not built
 ├── ReportMissing         404  the job has no report, or not yet
 ├── ContactSheetMissing   404  the dataset has no contact sheet, or not yet
 ├── ResultsMissing        404  the job is of a kind that has no results
 ├── RequestTimeout        408  the body makes no progress
 ├── NotCalibrated         409  a prompt has no temperature
 ├── NoZeroShot            409  a prompt's hand-written words cannot be encoded
 ├── TooManyFiles          413  more files than one request may carry
 ├── RateLimited           429  too many requests with this key, or wrong keys from this address
 ├── Busy                  429  the classification queue is full
 ├── TooManyBytesAtOnce    429  the bodies of all requests together fill their memory
 ├── Unavailable           503  a prompt's artifact or its backbone cannot be loaded
 ├── NotReady              503  something that serving needs is missing
 └── DeadlineExceeded      504  the request's own deadline passed
"""

from __future__ import annotations

from dataclasses import dataclass

from sharpzo_core.errors import CoreError


class MalformedJson(CoreError):
    """The body is not strict JSON."""

    status = 400
    code = "malformed_json"
    title = "Malformed JSON"


class MalformedMultipart(CoreError):
    """The multipart body is broken or incomplete."""

    status = 400
    code = "malformed_multipart"
    title = "Malformed multipart body"


class HostNotAllowed(CoreError):
    """The service has no such name (the operator sets SHARPZO_ALLOWED_HOSTS)."""

    status = 400
    code = "host_not_allowed"
    title = "Host not allowed"


class OriginNotAllowed(CoreError):
    """A page of another site may not change anything here (the operator can require API keys)."""

    status = 403
    code = "origin_not_allowed"
    title = "Origin not allowed"


class ForbiddenLocation(CoreError):
    """Datasets may not be imported from there (the operator sets SHARPZO_ALLOWED_DATASET_URIS)."""

    status = 403
    code = "path_not_allowed"
    title = "Location not allowed"


class PageMissing(CoreError):
    """The pages were not built with the package (`make dashboard` does it); the API is all here."""

    status = 404
    code = "page_missing"
    title = "No dashboard"


class ReportMissing(CoreError):
    """The job has no report: only one that has succeeded has."""

    status = 404
    code = "report_not_available"
    title = "No report"


class ContactSheetMissing(CoreError):
    """The dataset has no contact sheet: only one that is ready has one (upload it again)."""

    status = 404
    code = "contact_sheet_missing"
    title = "No contact sheet"


class ResultsMissing(CoreError):
    """The job has no results: only one that classifies a dataset has."""

    status = 404
    code = "results_not_available"
    title = "No results"


class RequestTimeout(CoreError):
    """The request's body made no progress for too long."""

    status = 408
    code = "request_timeout"
    title = "Request timeout"


class NotCalibrated(CoreError):
    """The prompt has no temperature: ask for it without `calibrated`, or tune it again."""

    status = 409
    code = "not_calibrated"
    title = "Not calibrated"


class NoZeroShot(CoreError):
    """The prompt's hand-written words or classes cannot be encoded (ask without `zero_shot`)."""

    status = 409
    code = "zero_shot_unavailable"
    title = "No zero-shot answer"


class TooManyFiles(CoreError):
    """The request carries more files than allowed."""

    status = 413
    code = "too_many_files"
    title = "Too many files"


@dataclass(frozen=True)
class Allowance:
    """What is left of a rate."""

    limit: int  #: requests
    window: int  #: seconds
    remaining: int
    reset: int  #: seconds until there is more

    @property
    def headers(self) -> dict[str, str]:
        """As draft-ietf-httpapi-ratelimit-headers has it."""
        return {
            "RateLimit-Policy": f'"key";q={self.limit};w={self.window}',
            "RateLimit": f'"key";r={self.remaining};t={self.reset}',
        }


class RateLimited(CoreError):
    """There were too many requests."""

    status = 429
    code = "rate_limited"
    title = "Too many requests"

    def __init__(self, detail: str, left: Allowance) -> None:
        super().__init__(detail)
        self.retry_after = left.reset  # seconds
        self.headers = left.headers


class Busy(CoreError):
    """Too many images are waiting to be classified (try again)."""

    status = 429
    code = "busy"
    title = "Busy"

    def __init__(self, retry_after: int) -> None:
        super().__init__()
        self.retry_after = retry_after  # seconds


class TooManyBytesAtOnce(CoreError):
    """The service receives too much at the moment (try again, or send less at a time)."""

    status = 429
    code = "busy"
    title = "Busy"
    retry_after = 1  # seconds


class Unavailable(CoreError):
    """What the request needs cannot be loaded.

    `code` says what: `artifact_corrupt`, `backbone_unavailable` or `package_missing`.
    """

    status = 503
    title = "Unavailable"

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class NotReady(CoreError):
    """Something that serving needs is missing."""

    status = 503
    code = "not_ready"
    title = "Not ready"
    retry_after = 1  # seconds


class DeadlineExceeded(CoreError):
    """The answer was not there within the time that the request gives (send fewer images)."""

    status = 504
    code = "deadline_exceeded"
    title = "Deadline exceeded"
