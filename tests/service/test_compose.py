"""The container files agree with the code; no container is started."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import pytest
import yaml

from sharpzo_core.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
KNOWN = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
SECRETS = {"POSTGRES_PASSWORD": "a", "REDIS_PASSWORD": "b"}
PROFILES = {"worker-gpu": ["gpu"], "prometheus": ["observability"], "grafana": ["observability"]}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return content


def fill(text: str) -> str:
    """What compose puts in where no variable is set but the secrets."""
    text = re.sub(r"\$\{[A-Z_]+:\?[^}]*\}", "secret", text)
    return re.sub(r"\$\{[A-Z_]+:-([^}]*)\}", r"\1", text)


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


def test_the_example_names_what_compose_reads_with_the_same_defaults() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    read = dict(re.findall(r"\$\{([A-Z_]+):?[-?]?([^}]*)\}", text))
    example = dict(
        re.findall(r"^([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE)
    )
    assert example.keys() <= read.keys()
    for name, value in example.items():
        assert not value or value == read[name], name


def test_the_settings_that_containers_get_are_accepted(
    compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
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
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert {name: [fill(port) for port in ports] for name, ports in published.items()} == {
        "api": ["127.0.0.1:8000:8000"],
        "grafana": ["127.0.0.1:3000:3000"],
    }
    for name, service in services.items():
        assert "container_name" not in service, "a name would forbid --scale"
        assert re.fullmatch(r"[a-z/]+:v?\d[\w.-]*\d(-[a-z]+)?", fill(service["image"]))
        if name != "migrate":
            assert "healthcheck" in service
        assert service.get("profiles") == PROFILES.get(name)
    assert {"--appendonly", "noeviction"} <= set(services["redis"]["command"])


def test_no_container_may_do_more_than_it_must(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "cap_add" not in service, name
        assert "privileged" not in service, name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["mem_limit"], name
        assert "/tmp" in service["tmpfs"], name
        own = service["image"].startswith("sharpzo:")
        assert own or re.fullmatch(r"[1-9]\d*:\d+", service["user"]), name


def dockerfile() -> str:
    return (ROOT / "Dockerfile").read_text()


def stages() -> dict[str, str]:
    """Name of every stage of the Dockerfile -> what it says; the last one has no name."""
    parts = re.split(r"^FROM ", dockerfile(), flags=re.MULTILINE)[1:]
    named = (re.match(r"\S+(?: AS (\S+))?\n", part) for part in parts)
    return {(name[1] or "" if name else ""): part for name, part in zip(named, parts, strict=True)}


def test_nobody_is_root_in_what_we_build() -> None:
    for target in ("client", ""):
        assert re.findall(r"^USER (.+)$", stages()[target], re.MULTILINE) == ["10001:10001"]


def test_every_base_is_an_argument_with_a_pinned_default() -> None:
    arguments = dict(
        re.findall(r"^ARG ([A-Z]+)=(.+)$", dockerfile().split("FROM")[0], re.MULTILINE)
    )
    for image in arguments.values():
        assert re.fullmatch(
            r"[a-z]+:\d+\.\d+\.\d+-slim-[a-z]+|[a-z]+:\d+\.\d+\.\d+-[a-z]+-slim", image
        )
    bases = set(re.findall(r"^FROM (\S+)", dockerfile(), re.MULTILINE))
    assert bases == {f"${{{name}}}" for name in arguments} | {"base"}


def test_the_context_lets_through_what_is_copied_and_nothing_else() -> None:
    kept = set(re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    lines = re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile(), re.MULTILINE)
    copied = {source for line in lines for source in line.split()}
    beneath = {path for path in copied if path.startswith("dashboard/")}
    assert kept == copied - beneath


def test_the_client_has_no_part_of_the_service() -> None:
    build = stages()["build-client"]
    assert "client.lock" in build
    assert "torch" not in build
    assert "requirements.lock" not in build
    assert "--from=build-client" in stages()["client"]


def composed(environment: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    with NamedTemporaryFile() as empty:  # whatever .env a developer has must not fill the gaps
        return subprocess.run(
            ["docker-compose", "--env-file", empty.name, *options],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], **environment},
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.mark.needs("docker-compose")
@pytest.mark.parametrize("profiles", [(), ("gpu",), ("observability",), ("gpu", "observability")])
def test_compose_itself_accepts_the_file(profiles: tuple[str, ...]) -> None:
    options = [option for profile in profiles for option in ("--profile", profile)]
    accepted = composed(SECRETS, *options, "config", "--quiet")
    assert accepted.returncode == 0, accepted.stderr
    assert accepted.stderr == ""


@pytest.mark.needs("docker-compose")
def test_a_missing_secret_is_named() -> None:
    refused = composed({"POSTGRES_PASSWORD": "a"}, "config", "--quiet")
    assert refused.returncode != 0
    assert "REDIS_PASSWORD" in refused.stderr
    assert "set it in .env" in refused.stderr


@pytest.mark.parametrize(
    ("script", "missing"),
    [
        ("start-prometheus.sh", "METRICS_KEY: set it in .env"),
        ("start-grafana.sh", "GF_SECURITY_ADMIN_PASSWORD: set GRAFANA_PASSWORD in .env"),
    ],
)
@pytest.mark.parametrize("given", [{}, {"METRICS_KEY": "", "GF_SECURITY_ADMIN_PASSWORD": ""}])
def test_what_the_profile_needs_is_named_when_it_starts(
    script: str, missing: str, given: dict[str, str]
) -> None:
    started = subprocess.run(
        ["/bin/sh", ROOT / "docker" / "observability" / script],
        env={"PATH": os.environ["PATH"], **given},
        capture_output=True,
        text=True,
        check=False,
    )
    assert started.returncode != 0
    assert missing in started.stderr


def test_grafana_asks_nobody_and_tells_nobody(compose: dict[str, Any]) -> None:
    said = compose["services"]["grafana"]["environment"]
    off = ("ANALYTICS_", "NEWS_", "AUTH_ANONYMOUS", "USERS_ALLOW", "SNAPSHOTS_", "PLUGIN_ADMIN")
    for name, value in said.items():
        if any(word in name for word in off):
            assert value == "false", name
    assert said["GF_SECURITY_DISABLE_GRAVATAR"] == "true"
    assert said["GF_PLUGINS_PREINSTALL_DISABLED"] == "true"


def test_files_that_containers_mount_are_there(compose: dict[str, Any]) -> None:
    mounted = [
        volume.split(":")[0]
        for service in compose["services"].values()
        for volume in service.get("volumes", [])
        if volume.startswith("./")
    ]
    assert mounted
    assert all((ROOT / path).exists() for path in mounted)
