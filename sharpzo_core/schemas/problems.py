"""Error answers."""

from sharpzo_core.schemas.base import PublicModel


class FieldError(PublicModel):
    """One wrong field; `pointer` is a JSON pointer into the request."""

    pointer: str
    message: str


class Problem(PublicModel):
    """An error answer, `application/problem+json` (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str | None = None
    errors: list[FieldError] | None = None
