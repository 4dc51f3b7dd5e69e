"""`make lock`: pin what the images install, with a hash of every file that may be downloaded.

Torch and what only it needs are left out: which build is right depends on the machine. `torch.txt`
pins its version, and the Dockerfile chooses the index that it comes from. The client's image has a
lock of its own, with the same versions.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "docker" / "requirements.lock"
CLIENT_LOCK = ROOT / "docker" / "client.lock"
PYTHON = "3.12"  # of the images
OF_TORCH = ("torch", "torchvision", "triton", "nvidia-", "cuda-")

_HEADER = "# Written by `make lock`; see docker/lock.py.\n"
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*")


def main() -> None:
    """Resolve all versions again and write the files."""
    of_service = ("--extra", "service", "--extra", "worker", "--constraint", "docker/torch.txt")
    LOCK.write_text(_HEADER + "".join(kept(resolve(*of_service))))
    of_client = ("--extra", "client", "--constraint", str(LOCK.relative_to(ROOT)))
    CLIENT_LOCK.write_text(_HEADER + resolve(*of_client))


def resolve(*options: str) -> str:
    """The lock of the project with these extras, and of what builds it."""
    command = [
        *(sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "-", "--quiet"),
        *options,
        *("--python-version", PYTHON, "--python-platform", "linux"),
        *("--generate-hashes", "--no-annotate", "--no-header"),
    ]
    resolved = subprocess.run(  # noqa: S603
        command, cwd=ROOT, check=True, capture_output=True, text=True, input="setuptools>=77\n"
    )
    return resolved.stdout


def kept(text: str) -> list[str]:
    """The lines of the packages that are not torch's."""
    lines, keep = [], True
    for line in text.splitlines(keepends=True):
        if name := _NAME.match(line):
            keep = not name.group().startswith(OF_TORCH)
        if keep:
            lines.append(line)
    return lines


if __name__ == "__main__":
    main()
