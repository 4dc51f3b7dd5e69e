"""A route class whose JSON bodies are strict."""

from collections.abc import Callable, Coroutine
from email.message import Message
from functools import lru_cache
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool

from service.auth.authorization import authorize
from service.http.strict_json import loads
from sharpzo_core.database.pagination import Listing
from sharpzo_core.errors import PayloadTooLarge, UnsupportedMedia, ValidationFailed
from sharpzo_core.json_safety import json_pointer
from sharpzo_core.schemas.base import Page

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")

MAX_JSON_BYTES = 1 << 20  # of a request body, by default
_INLINE_BYTES = 64 << 10  # larger bodies are parsed off the event loop


class StrictRequest(Request):
    """A request whose JSON was already parsed strictly."""

    parsed: Any = None

    async def json(self) -> Any:  # noqa: ANN401 - any JSON value
        return self.parsed


class StrictRoute(APIRoute):
    """Checks the caller's scope before it reads the body, and parses JSON strictly.

    Errors of `strict_json.loads` reach the error handlers unchanged.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            await authorize(request)
            if self.body_field is None:
                return await handle(request)
            parsing = StrictRequest(request.scope, request.receive)
            parsing.parsed = await read_json(parsing)
            return await handle(parsing)

        return strict


async def read_json(request: Request, max_bytes: int | None = None) -> Any:  # noqa: ANN401 - any JSON value
    """Parse a request's JSON body; `max_bytes` is for routes with a larger limit for uploads.

    Raises:
        UnsupportedMedia: its Content-Type is not JSON.
        PayloadTooLarge: it exceeds `max_bytes`.
        MalformedJson, ValidationFailed: see `strict_json.loads`.
    """
    if media_type(request) != "application/json":
        raise UnsupportedMedia("the body is not JSON (send application/json)")
    body = await _read(request, max_bytes)
    if len(body) <= _INLINE_BYTES:
        return loads(body)
    return await run_in_threadpool(loads, body)


async def _read(request: Request, max_bytes: int | None) -> bytes:
    if max_bytes is None:
        return await request.body()
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise PayloadTooLarge(f"the JSON body exceeds {max_bytes} bytes (shorten it)")
    return bytes(body)


def parse(model: type[M], value: object) -> M:
    """Validate a parsed body.

    Raises:
        ValidationFailed: with a JSON pointer to each fault, without the input.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False, include_context=False)
        raise ValidationFailed(
            [(json_pointer(fault["loc"]), fault["msg"]) for fault in faults]
        ) from None


def public_page(found: Listing[T], public: Callable[[T], M]) -> Page[M]:
    return Page(
        data=[public(item) for item in found.items], has_more=found.has_more, next=found.next
    )


def media_type(request: Request) -> str:
    """The Content-Type without its parameters, lower-case."""
    return _media_type(request.headers.get("content-type", "application/octet-stream"))


@lru_cache
def _media_type(content_type: str) -> str:
    header = Message()
    header["content-type"] = content_type
    return header.get_content_type()
