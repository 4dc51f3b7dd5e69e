"""The OpenAPI document: what FastAPI derives, with the problem answers that are really given."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from service.problems import MEDIA_TYPE
from sharpzo_core.schemas import Problem

if TYPE_CHECKING:
    from fastapi import FastAPI

_REF = "#/components/schemas/{model}"
_UNUSED = ("HTTPValidationError", "ValidationError")  # FastAPI's own form of a 422


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses=` of a route that may answer with these statuses."""
    schema = {"$ref": _REF.format(model="Problem")}
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": schema}},
        }
        for status in statuses
    }


def body(*, required: bool = True, **contents: dict[str, Any]) -> dict[str, Any]:
    """`openapi_extra=` of a route that reads its body itself: `multipart`, `json` -> schema."""
    media = {"multipart": "multipart/form-data", "json": "application/json"}
    content = {media[kind]: {"schema": schema} for kind, schema in contents.items()}
    return {"requestBody": {"required": required, "content": content}}


def form(file_field: str, *, many: bool = False, **texts: dict[str, Any]) -> dict[str, Any]:
    """The schema of a multipart form with one file field and some text fields."""
    file: dict[str, Any] = {"type": "string", "format": "binary"}
    if many:
        file = {"type": "array", "items": file, "minItems": 1}
    required = [file_field, *(name for name, schema in texts.items() if schema.pop("required", 0))]
    return {
        "type": "object",
        "properties": {file_field: file, **texts},
        "required": required,
        "additionalProperties": False,
    }


def install(app: FastAPI) -> None:
    """Add the schema of a problem to the document, and drop FastAPI's."""
    derive = app.openapi

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            schemas = derive().setdefault("components", {}).setdefault("schemas", {})
            for name in _UNUSED:
                schemas.pop(name, None)
            schema = Problem.model_json_schema(ref_template=_REF)
            schemas |= schema.pop("$defs", {}) | {"Problem": schema}
        return derive()

    app.openapi = document  # type: ignore[method-assign] # how FastAPI is extended
