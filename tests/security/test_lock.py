"""The lock file of the images: whole, hashed, and what the project asks for."""

from __future__ import annotations

import re
import tomllib
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.figures import ROOT

LOCK = (ROOT / "docker" / "requirements.lock").read_text()
TORCH = (ROOT / "docker" / "torch.txt").read_text()
IN_THE_IMAGE = ("service", "worker")


def pinned(text: str) -> dict[str, str]:
    """Name -> version."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", text, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def asked() -> list[Requirement]:
    """Everything that the image's extras ask for, extras of ours resolved."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts, extras = list(project["dependencies"]), list(IN_THE_IMAGE)
    while extras:
        for text in project["optional-dependencies"][extras.pop()]:
            requirement = Requirement(text)
            if requirement.name == project["name"]:
                extras += requirement.extras
            else:
                texts.append(text)
    return [Requirement(text) for text in texts]


def test_what_the_project_asks_for_is_pinned_within_its_ranges() -> None:
    versions = pinned(LOCK) | pinned(TORCH)
    for requirement in asked():
        if requirement.marker is None or requirement.marker.evaluate({"sys_platform": "linux"}):
            version = versions.get(canonicalize_name(requirement.name))
            assert version, f"{requirement} is missing: run `make lock`"
            assert requirement.specifier.contains(version), requirement


def test_every_package_has_its_hashes() -> None:
    blocks = re.split(r"^(?=[A-Za-z0-9])", LOCK, flags=re.MULTILINE)[1:]
    assert len(blocks) == len(pinned(LOCK))
    for block in blocks:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), block
    assert not any(name.startswith(("nvidia-", "cuda-")) for name in pinned(LOCK))


def test_the_image_takes_nothing_else() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    installs = [line for line in lines if "pip install" in line]
    for line in installs:
        assert "torch.txt" in line or "--no-deps" in line, line
    assert sum("--require-hashes" in line for line in installs) == 1
