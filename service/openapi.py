"""The OpenAPI document: what FastAPI derives, with our problem documents and API keys."""

from typing import Any

from fastapi import FastAPI

from service.auth.authorization import PUBLIC, declared
from service.route_docs import REF, problems
from sharpzo_core.schemas.problems import Problem
from sharpzo_engine.config import TuningConfig

_SCHEME = "key"
_BEARER = {
    "type": "http",
    "scheme": "bearer",
    "bearerFormat": "szo_...",
    "description": "An API key (`sharpzo keys create`). Not needed until the first one exists.",
}
_ALWAYS = (400,)  # the Host header is not allowed
_WITH_KEY = (401, 403, 429)
_UNUSED = ("HTTPValidationError", "ValidationError")  # FastAPI's own form of a 422


def install(app: FastAPI) -> None:
    derive = app.openapi

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            components = derive().setdefault("components", {})
            schemas = components.setdefault("schemas", {})
            for name in _UNUSED:
                schemas.pop(name, None)
            for model in (Problem, TuningConfig):
                schema = model.model_json_schema(ref_template=REF)
                schemas |= schema.pop("$defs", {}) | {model.__name__: schema}
            # The service checks `config` itself, so that FastAPI sees any object in it.
            config = schemas["JobCreate"]["properties"]["config"]
            config["$ref"] = REF.format(model=TuningConfig.__name__)
            components["securitySchemes"] = {_SCHEME: _BEARER}
            _declare_keys(derive()["paths"], app)
        return derive() if _keyed(app) else _without_keys(derive())

    app.openapi = document  # type: ignore[method-assign] # how FastAPI is extended


def _keyed(app: FastAPI) -> bool:
    """Whether a key is needed now; without a running service the document says so."""
    services = getattr(app.state, "services", None)
    return services is None or services.key_cache.was_required


def _without_keys(document: dict[str, Any]) -> dict[str, Any]:
    """The same document with optional keys."""
    return {
        **document,
        "paths": {
            path: {
                method: {**operation, "security": [{}, *operation["security"]]}
                if "security" in operation
                else operation
                for method, operation in operations.items()
            }
            for path, operations in document["paths"].items()
        },
    }


def _declare_keys(paths: dict[str, Any], app: FastAPI) -> None:
    for method, path, scopes in declared(app):
        operation = paths.get(path, {}).get(method.lower())
        if operation is None:
            continue
        operation["responses"] |= {str(k): v for k, v in problems(*_ALWAYS).items()}
        if path not in PUBLIC:
            operation["security"] = [{_SCHEME: [scope]} for scope in scopes]
            operation["responses"] |= {str(k): v for k, v in problems(*_WITH_KEY).items()}
