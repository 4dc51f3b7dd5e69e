# ruff: noqa: N818 - errors are named after what happened
"""Errors of the API process, in addition to those of the core, sorted by status."""

from dataclasses import dataclass

from sharpzo_core.errors import CoreError


class MalformedJson(CoreError, status=400, code="malformed_json", title="Malformed JSON"):
    """The body is not strict JSON."""


class MalformedMultipart(
    CoreError, status=400, code="malformed_multipart", title="Malformed multipart body"
):
    """The multipart body is broken or incomplete."""


class HostNotAllowed(CoreError, status=400, code="host_not_allowed", title="Host not allowed"):
    """The Host header is not an allowed name (add it to SHARPZO_ALLOWED_HOSTS)."""


class OriginNotAllowed(
    CoreError, status=403, code="origin_not_allowed", title="Origin not allowed"
):
    """Pages of other sites may not change anything here (create an API key to require keys)."""


class ForbiddenLocation(
    CoreError, status=403, code="path_not_allowed", title="Location not allowed"
):
    """Datasets may not be imported from there (add it to SHARPZO_ALLOWED_DATASET_URIS)."""


class PageMissing(CoreError, status=404, code="page_missing", title="No dashboard"):
    """The dashboard was not built (run `make dashboard`); the API works without it."""


class ReportMissing(CoreError, status=404, code="report_not_available", title="No report"):
    """The job has no report: only succeeded jobs have one."""


class ContactSheetMissing(
    CoreError, status=404, code="contact_sheet_missing", title="No contact sheet"
):
    """The dataset has no contact sheet: only ready datasets have one (upload it again)."""


class ResultsMissing(CoreError, status=404, code="results_not_available", title="No results"):
    """The job has no results: only classification jobs have."""


class RequestTimeout(CoreError, status=408, code="request_timeout", title="Request timeout"):
    """The request's body made no progress for too long."""


class NotCalibrated(CoreError, status=409, code="not_calibrated", title="Not calibrated"):
    """The prompt has no temperature (leave out `calibrated`, or tune it again)."""


class NoZeroShot(CoreError, status=409, code="zero_shot_unavailable", title="No zero-shot answer"):
    """The zero-shot prompt cannot be encoded (leave out `zero_shot`)."""


class TooManyFiles(CoreError, status=413, code="too_many_files", title="Too many files"):
    """The request contains more files than allowed (send several requests)."""


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


class RateLimited(CoreError, status=429, code="rate_limited", title="Too many requests"):
    """Too many requests."""

    def __init__(self, detail: str, left: Allowance) -> None:
        super().__init__(detail)
        self.retry_after = left.reset  # seconds
        self.headers = left.headers


class Busy(CoreError, status=429, code="busy", title="Busy"):
    """Too many images are waiting to be classified (try again later)."""

    def __init__(self, retry_after: int) -> None:
        super().__init__()
        self.retry_after = retry_after  # seconds


class TooManyBytesAtOnce(CoreError, status=429, code="busy", title="Busy"):
    """The service is receiving too much data (try again later, or send less at a time)."""

    retry_after = 1  # seconds


class Unavailable(CoreError, status=503, title="Unavailable"):
    """Something that the request needs cannot be loaded.

    `code` is `artifact_corrupt`, `backbone_unavailable` or `package_missing`.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class NotReady(CoreError, status=503, code="not_ready", title="Not ready"):
    """Something that serving needs is missing."""

    retry_after = 1  # seconds


class DeadlineExceeded(CoreError, status=504, code="deadline_exceeded", title="Deadline exceeded"):
    """The deadline in X-Timeout-Ms passed (send fewer images, or allow more time)."""
