"""What a route adds to its own entry in the OpenAPI document."""

from http import HTTPStatus
from typing import Any

from service.http.problems import MEDIA_TYPE
from sharpzo_engine.clip.remote.wire import MEDIA_TYPE as TENSORS

REF = "#/components/schemas/{model}"


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    schema = {"$ref": REF.format(model="Problem")}
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": schema}},
        }
        for status in statuses
    }


def body(*, required: bool = True, **contents: dict[str, Any]) -> dict[str, Any]:
    """`openapi_extra=` of a route that reads its body itself.

    `contents` are the schemas of `multipart`, `json` and `tensors`.
    """
    media = {"multipart": "multipart/form-data", "json": "application/json", "tensors": TENSORS}
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
