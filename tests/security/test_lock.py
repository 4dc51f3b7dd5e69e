"""The lock file of the images: whole, hashed, and what the project asks for."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.figures import ROOT

LOCK = (ROOT / "docker" / "requirements.lock").read_text()
CLIENT_LOCK = (ROOT / "docker" / "client.lock").read_text()
TORCH = (ROOT / "docker" / "torch.txt").read_text()
IN_THE_IMAGE = ("service", "worker")


def pinned(text: str) -> dict[str, str]:
    """Name -> version."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", text, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def asked(of: Sequence[str]) -> list[Requirement]:
    """Everything that an image's extras ask for, extras of ours resolved."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts, extras = list(project["dependencies"]), list(of)
    while extras:
        for text in project["optional-dependencies"][extras.pop()]:
            requirement = Requirement(text)
            if requirement.name == project["name"]:
                extras += requirement.extras
            else:
                texts.append(text)
    return [Requirement(text) for text in texts]


@pytest.mark.parametrize(
    ("extras", "lock"), [(IN_THE_IMAGE, LOCK + TORCH), (("client",), CLIENT_LOCK)]
)
def test_what_the_project_asks_for_is_pinned_within_its_ranges(
    extras: Sequence[str], lock: str
) -> None:
    versions = pinned(lock)
    for requirement in asked(extras):
        if requirement.marker is None or requirement.marker.evaluate({"sys_platform": "linux"}):
            version = versions.get(canonicalize_name(requirement.name))
            assert version, f"{requirement} is missing: run `make lock`"
            assert requirement.specifier.contains(version), requirement


@pytest.mark.parametrize("lock", [LOCK, CLIENT_LOCK])
def test_every_package_has_its_hashes(lock: str) -> None:
    blocks = re.split(r"^(?=[A-Za-z0-9])", lock, flags=re.MULTILINE)[1:]
    assert len(blocks) == len(pinned(lock))
    for block in blocks:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), block
    assert not any(name.startswith(("torch", "nvidia-", "cuda-")) for name in pinned(lock))


def test_both_images_have_the_same_versions() -> None:
    theirs = pinned(LOCK)
    assert all(theirs.get(name, own) == own for name, own in pinned(CLIENT_LOCK).items())
    assert {"setuptools", "httpx"} <= pinned(CLIENT_LOCK).keys()


def test_the_images_take_nothing_else() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    installs = [line for line in lines if "pip install" in line]
    for line in installs:
        assert "torch.txt" in line or "--no-deps" in line, line
    assert sum("--require-hashes" in line for line in installs) == 2
