"""The container files agree with the code; no container is started."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from sharpzo_core.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
KNOWN = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return content


def test_every_variable_is_a_setting(compose: dict[str, Any]) -> None:
    passed = {
        name
        for service in compose["services"].values()
        for name in service.get("environment", {})
        if name.startswith(PREFIX)
    }
    assert passed
    assert passed <= KNOWN
    for file in ("Dockerfile", ".env.example"):
        assert set(re.findall(rf"\b{PREFIX}[A-Z_]+", (ROOT / file).read_text())) <= KNOWN


def test_the_settings_that_containers_get_are_accepted(
    compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(text: str) -> str:
        text = re.sub(r"\$\{[A-Z_]+:\?[^}]*\}", "secret", text)
        return re.sub(r"\$\{[A-Z_]+:-([^}]*)\}", r"\1", text)

    for name in ("api", "worker", "worker-gpu", "migrate"):
        with monkeypatch.context() as patch:
            for key, value in compose["services"][name]["environment"].items():
                patch.setenv(key, fill(value))
            settings = Settings.load()
        assert not settings.embedded_broker
        assert settings.db_url.startswith("postgresql+psycopg://sharpzo:secret@")
        assert settings.allow_unauthenticated is (name == "api")


def test_what_is_published_and_pinned(compose: dict[str, Any]) -> None:
    services = compose["services"]
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert len(ports) == 1
    assert ports[0].startswith("${API_ADDRESS:-127.0.0.1}:")
    for name, service in services.items():
        assert "container_name" not in service, "a name would forbid --scale"
        assert not service["image"].endswith("latest")
        assert re.search(r":.+\d", service["image"])
        if name != "migrate":
            assert "healthcheck" in service
    assert services["worker-gpu"]["profiles"] == ["gpu"]
    assert {"--appendonly", "noeviction"} <= set(services["redis"]["command"])
    assert re.search(r"^USER \d+", (ROOT / "Dockerfile").read_text(), re.MULTILINE)


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="docker-compose is missing")
def test_compose_itself_accepts_the_file(tmp_path: Path) -> None:
    (tmp_path / "env").touch()  # whatever .env a developer has must not fill the gaps
    options = ["--env-file", str(tmp_path / "env"), "--profile", "gpu"]
    command = ["docker-compose", *options, "config", "--quiet"]

    def check(**secrets: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": os.environ["PATH"], **secrets}
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )

    assert check(POSTGRES_PASSWORD="a", REDIS_PASSWORD="b").returncode == 0
    assert "set it in .env" in check(POSTGRES_PASSWORD="a").stderr
