"""Streams multipart bodies to their destination.

The framework would spool every file to the system's temporary folder first; gigabyte uploads go to
their own file instead, and a body that ends before its last boundary is an error.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool

from service.errors import MalformedMultipart, TooManyFiles
from sharpzo_core.errors import PayloadTooLarge, ValidationFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from python_multipart.multipart import MultipartCallbacks
    from starlette.requests import Request

_BATCH_BYTES = 1 << 20  # handed to the parser (and to the disk) at a time, in a worker thread
_OVERHEAD_BYTES = 64 << 10  # of a form around its files, at most
_INLINE_BYTES = 256 << 10  # parsed on the event loop: a thread would cost more


class Sink(Protocol):
    def write(self, data: bytes, /) -> object: ...


S = TypeVar("S", bound=Sink)


@dataclass(frozen=True)
class FormRules(Generic[S]):
    file_field: str
    open_file: Callable[[], S]  #: receives the next file; closed by the caller
    max_files: int = 1
    text_fields: Mapping[str, int] = field(default_factory=dict)  #: name -> maximum bytes


@dataclass
class Form(Generic[S]):
    fields: dict[str, str] = field(default_factory=dict)
    files: list[S] = field(default_factory=list)


def announced_bytes(request: Request) -> int:
    """A lower bound for the bytes of the files, from Content-Length; 0 if it is missing."""
    announced = request.headers.get("content-length", "")
    return max(0, int(announced) - _OVERHEAD_BYTES) if announced.isdecimal() else 0


async def read_form(request: Request, rules: FormRules[S]) -> Form[S]:
    """Read a multipart request, with at most one batch of it in memory.

    Raises:
        MalformedMultipart: no boundary, broken framing, or a truncated body.
        ValidationFailed: an unexpected, repeated or missing part.
        PayloadTooLarge, TooManyFiles: it exceeds the rules.
    """
    reader = _FormReader(rules)
    try:
        parser = MultipartParser(_boundary(request), reader.callbacks())
        batch = bytearray()
        async for chunk in request.stream():
            batch += chunk
            if len(batch) >= _BATCH_BYTES:
                await run_in_threadpool(parser.write, bytes(batch))
                batch.clear()
        if len(batch) <= _INLINE_BYTES:
            parser.write(bytes(batch))
        else:
            await run_in_threadpool(parser.write, bytes(batch))
    except FormParserError:
        raise MalformedMultipart from None
    return reader.finish()


def _boundary(request: Request) -> bytes:
    _, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary")
    if not boundary:
        raise MalformedMultipart("the Content-Type has no boundary")
    return boundary


class _FormReader(Generic[S]):
    """Parser callbacks that write each part to a file or a text field."""

    def __init__(self, rules: FormRules[S]) -> None:
        self._rules = rules
        self._form: Form[S] = Form()
        self._texts: dict[str, bytearray] = {}
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._disposition = b""
        self._write: Callable[[bytes], object] = len
        self._ended = False

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._part_begin,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._part_data,
            "on_end": self._end,
        }

    def finish(self) -> Form[S]:
        if not self._ended:
            raise MalformedMultipart("the body ends before its last boundary")
        if not self._form.files:
            raise ValidationFailed(errors=[(f"/{self._rules.file_field}", "a file is required")])
        self._form.fields = {name: _decode(name, text) for name, text in self._texts.items()}
        return self._form

    def _part_begin(self) -> None:
        self._disposition = b""

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _header_end(self) -> None:
        if bytes(self._header_name).lower() == b"content-disposition":
            self._disposition = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        # The client's file name, in `options`, is ignored.
        if name == self._rules.file_field:
            self._write = self._next_file().write
        else:
            self._write = self._next_text(name)

    def _next_file(self) -> S:
        if len(self._form.files) >= self._rules.max_files:
            raise TooManyFiles(f"at most {self._rules.max_files} files are allowed")
        self._form.files.append(self._rules.open_file())
        return self._form.files[-1]

    def _next_text(self, name: str) -> Callable[[bytes], object]:
        if name not in self._rules.text_fields:
            raise ValidationFailed(errors=[("", "the form has an unknown field (remove it)")])
        if name in self._texts:
            raise ValidationFailed(errors=[(f"/{name}", "the field is given twice")])
        text = self._texts[name] = bytearray()
        limit = self._rules.text_fields[name]

        def append(data: bytes) -> None:
            if len(text) + len(data) > limit:
                raise PayloadTooLarge(f"the field {name} is longer than {limit} bytes")
            text.extend(data)

        return append

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._write(data[start:end])

    def _end(self) -> None:
        self._ended = True


def _decode(name: str, text: bytearray) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        raise ValidationFailed(errors=[(f"/{name}", "must be UTF-8")]) from None
