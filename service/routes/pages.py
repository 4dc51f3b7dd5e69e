"""The dashboard at `/`, the API page at `/docs`, and their assets.

They are built from `dashboard/` into `service/static/` and contain no data: their scripts call the
API like any client.
"""

import hashlib
import mimetypes
import re
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Header, Response

from service.auth.authorization import ASSETS
from service.errors import PageMissing
from service.http.file_responses import IfNoneMatch
from service.route_docs import problems
from sharpzo_core.errors import NotFound

STATIC = Path(__file__).parents[1] / "static"
_REVALIDATE = "no-cache"
_FOREVER = "public, max-age=31536000, immutable"  # an asset's name contains its hash
_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' blob: data:",
    "font-src": "'self'",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
_HEADERS = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in _POLICY.items()),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

router = APIRouter(include_in_schema=False, default_response_class=Response)

Encodings = Annotated[str, Header(alias="accept-encoding")]
_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)+")


@router.get("/", responses=problems(404))
def get_dashboard(encodings: Encodings = "", if_none_match: IfNoneMatch = "") -> Response:
    """The dashboard."""
    return _answer(STATIC / "index.html", _REVALIDATE, encodings, if_none_match)


@router.get("/docs", responses=problems(404))
def get_documentation(encodings: Encodings = "", if_none_match: IfNoneMatch = "") -> Response:
    """Get the page of the API's operations, to read and to try."""
    return _answer(STATIC / "docs.html", _REVALIDATE, encodings, if_none_match)


@router.get(f"{ASSETS}{{name}}", responses=problems(404))
def get_asset(name: str, encodings: Encodings = "", if_none_match: IfNoneMatch = "") -> Response:
    """Get a script, a style sheet or a picture of the pages."""
    if _NAME.fullmatch(name) is None:
        raise NotFound("asset", name)
    return _answer(STATIC / "assets" / name, _FOREVER, encodings, if_none_match)


def _answer(file: Path, caching: str, encodings: str, if_none_match: str) -> Response:
    """Respond with the file, or with its gzip version if there is one and the client accepts it.

    Raises:
        NotFound: there is no such file.
        PageMissing: the pages were not built.
    """
    packed = file.with_name(f"{file.name}.gz")
    headers = {**_HEADERS, "Cache-Control": caching, "Vary": "Accept-Encoding"}
    is_packed = "gzip" in encodings and packed.is_file()
    try:
        data = (packed if is_packed else file).read_bytes()
    except FileNotFoundError:
        if (STATIC / "index.html").is_file():
            raise NotFound("asset", file.name) from None
        raise PageMissing from None
    if is_packed:
        headers["Content-Encoding"] = "gzip"
    headers["ETag"] = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    if headers["ETag"] in if_none_match:
        return Response(status_code=304, headers=headers)
    kind, _ = mimetypes.guess_type(file.name)
    return Response(data, media_type=kind or "application/octet-stream", headers=headers)
