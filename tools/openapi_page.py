"""Write the reference of the REST API as Markdown, from the OpenAPI document of the application.

`python tools/openapi_page.py FILE`; `make docs` does so before it builds the site.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from service.app import create_app
from sharpzo_core.settings import Settings

Schema = Mapping[str, Any]
_BOUNDS = (
    ("minimum", "maximum", "{}"),
    ("exclusiveMinimum", "exclusiveMaximum", "{}, exclusive"),
    ("minLength", "maxLength", "{} characters"),
    ("minItems", "maxItems", "{} entries"),
)


def openapi_document() -> dict[str, Any]:
    """What a service of this version answers at `/openapi.json`."""
    with tempfile.TemporaryDirectory() as folder:
        document: dict[str, Any] = create_app(Settings(data_dir=Path(folder))).openapi()
    return document


def page(document: Mapping[str, Any]) -> str:
    """The whole reference: routes by their first tag, then the schemas that they name."""
    lines: list[str] = []
    for tag, routes in _by_tag(document).items():
        lines += [f"## {tag[0].upper()}{tag[1:]}", ""]
        for method, path, operation in routes:
            lines += _route(method, path, operation)
    lines += ["## Schemas", ""]
    for name, schema in sorted(document["components"]["schemas"].items()):
        lines += _schema(name, schema)
    return "\n".join(lines)


def _by_tag(document: Mapping[str, Any]) -> dict[str, list[tuple[str, str, Schema]]]:
    found: dict[str, list[tuple[str, str, Schema]]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            tag = operation.get("tags", ["other"])[0]
            found.setdefault(tag, []).append((method.upper(), path, operation))
    return found


def _route(method: str, path: str, operation: Schema) -> Iterator[str]:
    yield from (f"### {method} `{path}`", "", _text(operation.get("description", "")), "")
    if parameters := operation.get("parameters"):
        yield from ("| parameter | in | is | |", "|---|---|---|---|")
        for one in parameters:
            told = [_text(one.get("description", "")).rstrip("."), _bounds(one["schema"])]
            required = "required" if one.get("required") and one["in"] != "path" else ""
            about = "; ".join(filter(None, [*told, required]))
            yield f"| `{one['name']}` | {one['in']} | {_type(one['schema'])} | {about} |"
        yield ""
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        yield from (f"Body, `{media}`: {_type(content['schema'])}", "")
        if "properties" in content["schema"]:
            yield from _fields(content["schema"])
    yield from (f"Answers: {_answers(operation['responses'])}", "")


def _answers(responses: Schema) -> str:
    """Successes with what they hold, then the statuses of problems."""
    good, bad = [], []
    for status, response in sorted(responses.items()):
        content = response.get("content", {})
        if status < "400":
            kinds = [
                _type(body["schema"]) if body.get("schema") else f"`{media}`"
                for media, body in content.items()
            ]
            good.append(f"**{status}** {' or '.join(dict.fromkeys(kinds))}".strip())
        else:
            bad.append(status)
    problem = " with [Problem](#problem)" if bad else ""
    return "; ".join([*good, *([f"{', '.join(bad)}{problem}"] if bad else [])])


def _schema(name: str, schema: Schema) -> Iterator[str]:
    yield from (f"### {name}", "", _text(schema.get("description", "")), "")
    if "properties" in schema:
        yield from _fields(schema)
    else:
        yield from (_type(schema), "")


def _fields(schema: Schema) -> Iterator[str]:
    yield from ("| field | is | |", "|---|---|---|")
    required = schema.get("required", ())
    for name, field in schema["properties"].items():
        told = [_text(field.get("description", "")).rstrip("."), _bounds(field)]
        told += ["required"] if name in required else []
        told += [f"default `{field['default']}`"] if _worth_telling(field) else []
        yield f"| `{name}` | {_type(field)} | {'; '.join(filter(None, told))} |"
    yield ""


def _worth_telling(field: Schema) -> bool:
    return field.get("default") not in (None, "", [], {})


def _type(schema: Schema) -> str:
    """A type in words, with links to the schemas of the page."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})"
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " or ".join(dict.fromkeys(_type(one) for one in schema[several]))
    if "allOf" in schema:
        return " and ".join(_type(one) for one in schema["allOf"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    return _plain(schema)


def _plain(schema: Schema) -> str:
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if kind == "string" and "format" in schema:
        return {"binary": "file", "date-time": "time"}.get(schema["format"], schema["format"])
    return {"string": "text", "object": "object"}.get(str(kind), str(kind))


def _bounds(schema: Schema) -> str:
    """Bounds of a value, or of its length."""
    told = []
    for part in (schema, *schema.get("anyOf", ())):
        for low, high, words in _BOUNDS:
            least, most = part.get(low), part.get(high)
            if most is not None:
                told.append(words.format(f"{0 if least is None else least} to {most}"))
            elif least:
                told.append(words.format(f"at least {least}"))
    return ", ".join(dict.fromkeys(told))


def _text(text: str) -> str:
    """A description on one line, safe inside a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page(openapi_document()), encoding="utf-8")
