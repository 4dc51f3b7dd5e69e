from pathlib import Path

import pytest

from sharpzo_core.backbones import BackboneSpec, parse_backbones
from sharpzo_core.errors import SettingsError, ValidationFailed
from sharpzo_core.settings import Settings
from sharpzo_engine.clip.level import Level


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("SHARPZO_")]:
        monkeypatch.delenv(name)


def test_the_defaults_are_the_embedded_mode(tmp_path: Path) -> None:
    settings = Settings.load(data_dir=tmp_path)
    assert settings.db_url == f"sqlite:///{tmp_path / 'sharpzo.db'}"
    assert settings.artifacts == str(tmp_path / "artifacts")
    assert settings.embedded_broker
    assert settings.backbone(None) == BackboneSpec("tiny", "tiny")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LEASE_SECONDS", "soon"),
        ("LEASE_SECONDS", "0"),
        ("LEASE_SECONDS", "nan"),
        ("HEARTBEAT_SECONDS", "-1"),
        ("MAX_QUEUED_JOBS", "0"),
        ("LOG_FORMAT", "xml"),
        ("LOG_LEVEL", "loud"),
        ("PORT", "70000"),
        ("DATABASE_URL", "mysql://localhost/x"),
        ("DATABASE_URL", "nonsense"),
        ("BROKER_URL", "amqp://localhost"),
        ("BACKBONES", "tiny,tiny"),
        ("BACKBONES", "x="),
        ("BACKBONES", "local-dir:/models/x"),
        ("DEFAULT_BACKBONE", "unheard-of"),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_variable(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"SHARPZO_{name}", value)
    with pytest.raises(SettingsError, match=f"SHARPZO_{name}"):
        Settings.load()


def test_a_lease_shorter_than_two_heartbeats_is_refused() -> None:
    with pytest.raises(SettingsError, match="SHARPZO_LEASE_SECONDS"):
        Settings.load(lease_seconds=9, heartbeat_seconds=5)


def test_empty_variables_are_as_if_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "BROKER_URL", "ARTIFACT_URL", "MAX_QUEUED_JOBS"):
        monkeypatch.setenv(f"SHARPZO_{name}", "")
    assert Settings.load().database_url is None


def test_a_child_process_reads_the_same_settings_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings.load(data_dir=tmp_path, lease_seconds=3.5, heartbeat_seconds=1)
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    assert Settings.load() == settings


def test_backbones_are_named_by_the_operator() -> None:
    specs = parse_backbones("tiny, lite=local-dir:/models/lite,clip=ViT-B-16:openai,own=RN50:/w.pt")
    assert list(specs.values()) == [
        BackboneSpec("tiny", "tiny"),
        BackboneSpec("lite", "local-dir:/models/lite"),
        BackboneSpec("clip", "ViT-B-16", "openai"),
        BackboneSpec("own", "RN50", "/w.pt"),
    ]


@pytest.mark.parametrize(
    ("spec", "runtime", "level"),
    [
        ("tiny", "torch", Level.TANGENTS),
        ("local-dir:/models/lite", "torch", Level.TANGENTS),
        ("onnx-dir:/models/int8", "onnxruntime", Level.CONTEXTS),
        ("remote:https://models.example.org/v1/encoders/x?a=b", "remote", Level.CONTEXTS),
        ("openai-embeddings:http://localhost:9000/v1#clip", "remote", Level.TEXTS),
    ],
)
def test_a_spec_says_what_runs_it_and_what_it_gives(spec: str, runtime: str, level: Level) -> None:
    found = parse_backbones(f"x={spec}")["x"]
    assert (found.model, found.runtime, found.level) == (spec, runtime, level)


@pytest.mark.parametrize(
    ("item", "fault"),
    [
        ("remote:http://x/y", "a path needs a name before it"),
        ("x=remote:", "has no address"),
        ("x=remote:/etc", "has no address"),
        ("x=remote:ftp://host/x", "has no address"),
        ("x=remote:http://a:b@host/x", "holds a password"),
        ("x=openai-embeddings:http://host/v1", "names no model"),
    ],
)
def test_addresses_are_checked_at_boot(item: str, fault: str) -> None:
    with pytest.raises(SettingsError, match=f"SHARPZO_BACKBONES: .*{fault}"):
        Settings.load(backbones=f"tiny,{item}")


def test_a_configured_list_admits_its_names_alone() -> None:
    settings = Settings.load(backbones="clip=ViT-B-16:openai", default_backbone="clip")
    assert settings.backbone("clip").model == "ViT-B-16"
    for name in ("tiny", "ViT-B-16:openai", "*"):
        with pytest.raises(ValidationFailed):
            settings.backbone(name)


@pytest.mark.parametrize("name", ["ViT-B-16:openai", "ViT-B/16:openai", "RN50x64:openai"])
def test_the_default_admits_every_model_with_a_tag(name: str) -> None:
    model, tag = name.split(":")
    assert Settings.load().backbone(name) == BackboneSpec(name, model, tag)


@pytest.mark.parametrize(
    "name",
    [
        "ViT-B-16",
        "local-dir:/etc",
        "local-dir:x",
        "hf-hub:evil/x",
        "hf-hub:evil",
        "../../m.pt",
        "ViT-B-16:../../m.pt",
        "ViT-B-16:m.pt",
        "/etc:openai",
        "a/b:openai",
        "https://example.org/m",
        "http:x",
        "remote:http://127.0.0.1/v1/encoders/x",
        "remote:x",
        "openai-embeddings:x",
        "*",
        "ViT-B-16:openai\n",
        "",
    ],
)
def test_requests_never_locate_a_backbone(name: str) -> None:
    if name == "":
        assert Settings.load().backbone(name).name == "tiny"
        return
    with pytest.raises(ValidationFailed) as caught:
        Settings.load().backbone(name)
    assert caught.value.errors[0][0] == "/backbone"
