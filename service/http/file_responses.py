"""File responses with their hash as ETag."""

from typing import Annotated

from fastapi import Header, Response

MEDIA_TYPE = "application/octet-stream"

IfNoneMatch = Annotated[str, Header()]
#: `responses=` of a route that answers with a file.
RESPONSES: dict[int | str, dict[str, object]] = {
    200: {"content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}},
    304: {"description": "Not modified"},
}


def not_modified(sha256: str) -> Response:
    """The response to a client that has this version."""
    return Response(status_code=304, headers=_headers(sha256))


def attachment(data: bytes, filename: str, sha256: str) -> Response:
    """A file download; `ETag` and `X-Checksum-SHA256` are its hash."""
    headers = {
        **_headers(sha256),
        "Content-Disposition": f'attachment; filename="{filename}"',
    }
    return Response(data, media_type=MEDIA_TYPE, headers=headers)


def _headers(sha256: str) -> dict[str, str]:
    return {"ETag": f'"{sha256}"', "X-Checksum-SHA256": sha256}
