"""A real application that needs keys, and keys of several tenants."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.app import create_app
from service.services import Services
from sharpzo_core.database.engine import make_engine
from sharpzo_core.migrations import migrate
from sharpzo_core.records.keys import NewKey, Scope
from sharpzo_core.settings import Settings
from sharpzo_core.stores.key_store import KeyStore
from sharpzo_engine import Backbone
from tests.service.toys import make_backbone, with_backbones

ALL = tuple(Scope)
#: Headers that differ from answer to answer and tell nothing of objects.
VARYING = frozenset({"x-request-id", "date", "ratelimit"})


def bearer(key: NewKey | str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key if isinstance(key, str) else key.text}"}


@dataclass
class Door:
    """An application and whoever stands before it."""

    client: TestClient
    keys: KeyStore

    @property
    def services(self) -> Services:
        services: Services = self.client.app.state.services  # type: ignore[attr-defined]
        return services

    def key(self, tenant: str = "default", *scopes: Scope, **options: Any) -> NewKey:
        return self.keys.for_tenant(tenant).create("a test's", scopes or ALL, **options)

    def ask(self, method: str, path: str, key: NewKey | str | None = None, **options: Any) -> Any:
        headers = {**(bearer(key) if key else {}), **options.pop("headers", {})}
        return self.client.request(method, path, headers=headers, **options)

    def as_(self, key: NewKey) -> TestClient:
        """A client of the same application that sends this key."""
        client = TestClient(self.client.app, "http://localhost", raise_server_exceptions=False)
        client.headers.update(bearer(key))
        return client


def essence(response: Any) -> tuple[int, Any, Mapping[str, str]]:
    """All that an answer tells but its request."""
    headers = {k: v for k, v in response.headers.items() if k not in VARYING}
    try:
        body = response.json()
    except ValueError:
        return response.status_code, response.content, headers
    if isinstance(body, dict):
        body.pop("request_id", None)
        if "content-length" in headers:
            headers.pop("content-length")
    return response.status_code, body, headers


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return make_backbone(tmp_path_factory.mktemp("models") / "toy", seed=1)


@pytest.fixture
def settings(data_dir: Path, backbone: Backbone) -> Settings:
    return with_backbones(data_dir, backbone)


OpenDoor = Callable[..., Door]


@pytest.fixture
def open_door() -> Iterator[OpenDoor]:
    """Opens applications, and closes them at the end; `keyed` ones have had a key before."""
    opened: list[TestClient] = []
    engines = []

    def make(settings: Settings, *, keyed: bool = True) -> Door:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        migrate(settings)
        engines.append(make_engine(settings))
        keys = KeyStore(engines[-1])
        if keyed:
            keys.revoke(keys.create("the first", [Scope.INFER]).record.id)
        client = TestClient(create_app(settings), "http://localhost", raise_server_exceptions=False)
        opened.append(client.__enter__())
        return Door(opened[-1], keys)

    yield make
    for client in opened:
        client.__exit__(None, None, None)
    for engine in engines:
        engine.dispose()


@pytest.fixture
def door(open_door: OpenDoor, settings: Settings) -> Door:
    return open_door(settings)


def problem_of(response: Any, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    body: dict[str, Any] = response.json()
    assert (body["status"], body["code"]) == (status, code)
    assert response.headers["content-type"] == "application/problem+json"
    return body


def changed(settings: Settings, **values: Any) -> Settings:
    """The settings, checked again."""
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    return Settings.load(**given | values)


def scopes_text(scopes: Collection[Scope]) -> str:
    return " or ".join(f"`{scope}`" for scope in sorted(scopes))
