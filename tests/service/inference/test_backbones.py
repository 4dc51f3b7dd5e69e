"""Which of several loaded backbones answers for a prompt."""

from __future__ import annotations

from pathlib import Path

from service.inference.backbones import Backbones
from sharpzo_core.settings import Settings
from tests.service.toys import make_backbone, with_backbones


def test_the_recorded_name_decides_between_equal_weights(data_dir: Path, tmp_path: Path) -> None:
    toy = make_backbone(tmp_path / "toy", seed=1)
    settings: Settings = with_backbones(data_dir, toy, f"twin={toy.name}")
    backbones, specs = Backbones(settings), settings.backbone_specs
    described = {name: {"name": name, "fingerprint": toy.fingerprint} for name in ("toy", "twin")}
    elsewhere = {"name": "elsewhere", "fingerprint": toy.fingerprint}
    first = backbones.load(specs["toy"])
    assert backbones.find(described["toy"]) is first
    assert backbones.find(described["twin"]) is None  # it is loaded first
    assert backbones.find(elsewhere) is first
    second = backbones.for_prompt(described["twin"])
    assert second is not first
    assert backbones.find(described["twin"]) is second
    assert backbones.find(described["toy"]) is first
    assert backbones.find({"name": "toy", "fingerprint": "0"}) is None
