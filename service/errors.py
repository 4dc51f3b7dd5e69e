# ruff: noqa: N818 - errors are named after what happened
"""Errors of the API process, in addition to those of the core, sorted by status."""

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
    """The Host header is not an allowed name (add it to SHARPZO_ALLOWED_HOSTS)."""

    status = 400
    code = "host_not_allowed"
    title = "Host not allowed"


class OriginNotAllowed(CoreError):
    """Pages of other sites may not change anything here (create an API key to require keys)."""

    status = 403
    code = "origin_not_allowed"
    title = "Origin not allowed"


class ForbiddenLocation(CoreError):
    """Datasets may not be imported from there (add it to SHARPZO_ALLOWED_DATASET_URIS)."""

    status = 403
    code = "path_not_allowed"
    title = "Location not allowed"


class PageMissing(CoreError):
    """The dashboard was not built (run `make dashboard`); the API works without it."""

    status = 404
    code = "page_missing"
    title = "No dashboard"


class ReportMissing(CoreError):
    """The job has no report: only succeeded jobs have one."""

    status = 404
    code = "report_not_available"
    title = "No report"


class ContactSheetMissing(CoreError):
    """The dataset has no contact sheet: only ready datasets have one (upload it again)."""

    status = 404
    code = "contact_sheet_missing"
    title = "No contact sheet"


class ResultsMissing(CoreError):
    """The job has no results: only classification jobs have."""

    status = 404
    code = "results_not_available"
    title = "No results"


class RequestTimeout(CoreError):
    """The request's body made no progress for too long."""

    status = 408
    code = "request_timeout"
    title = "Request timeout"


class NotCalibrated(CoreError):
    """The prompt has no temperature (leave out `calibrated`, or tune it again)."""

    status = 409
    code = "not_calibrated"
    title = "Not calibrated"


class NoZeroShot(CoreError):
    """The zero-shot prompt cannot be encoded (leave out `zero_shot`)."""

    status = 409
    code = "zero_shot_unavailable"
    title = "No zero-shot answer"


class TooManyFiles(CoreError):
    """The request contains more files than allowed (send several requests)."""

    status = 413
    code = "too_many_files"
    title = "Too many files"


@dataclass(frozen=True)
class Allowance:
    """What is left of a rate limit."""

    limit: int  #: requests
    window: int  #: seconds
    remaining: int
    reset: int  #: seconds until it is renewed

    @property
    def headers(self) -> dict[str, str]:
        """As in draft-ietf-httpapi-ratelimit-headers."""
        return {
            "RateLimit-Policy": f'"key";q={self.limit};w={self.window}',
            "RateLimit": f'"key";r={self.remaining};t={self.reset}',
        }


class RateLimited(CoreError):
    """Too many requests."""

    status = 429
    code = "rate_limited"
    title = "Too many requests"

    def __init__(self, detail: str, left: Allowance) -> None:
        super().__init__(detail)
        self.retry_after = left.reset  # seconds
        self.headers = left.headers


class Busy(CoreError):
    """Too many images are waiting to be classified (try again later)."""

    status = 429
    code = "busy"
    title = "Busy"

    def __init__(self, retry_after: int) -> None:
        super().__init__()
        self.retry_after = retry_after  # seconds


class TooManyBytesAtOnce(CoreError):
    """The service is receiving too much data (try again later, or send less at a time)."""

    status = 429
    code = "busy"
    title = "Busy"
    retry_after = 1  # seconds


class Unavailable(CoreError):
    """Something that the request needs cannot be loaded.

    `code` is `artifact_corrupt`, `backbone_unavailable` or `package_missing`.
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
    """The deadline in X-Timeout-Ms passed (send fewer images, or allow more time)."""

    status = 504
    code = "deadline_exceeded"
    title = "Deadline exceeded"
