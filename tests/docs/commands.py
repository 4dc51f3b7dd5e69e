"""The commands that stand on PATH while blocks of the documentation run.

`sharpzo` is the real one, with two differences: what would run for ever (`serve`, `worker`) is
ended in order as soon as it works and must exit with 0, and `tune` has a small budget. `make`
only tells that a target exists and what it would run; `docker` checks the files that it would use;
`python` is the interpreter of the tests.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from urllib.request import urlopen

from tests.docs.warm import ask

ROOT = Path(__file__).parents[2]
NAMES = ("sharpzo", "make", "docker", "python")
#: What a process says once it works; the API begins to when it has told its address.
READY = {"serve": "listening on ", "worker": "a slot waits for jobs"}
#: Commands that load much and end soon: they run in a process that has loaded it.
SLOW = {
    "classify", "datasets", "encoders", "evaluate", "export", "jobs", "keys", "migrate", "prompts",
    "tune",
}  # fmt: skip
BUDGET = ("--passes", "300", "--shots", "4")


def install(folder: Path) -> None:
    """Write an executable file for each of them."""
    folder.mkdir()
    for name in NAMES:
        script = f'#!/bin/sh\nexec "{sys.executable}" -m tests.docs.commands {name} "$@"\n'
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)


def sharpzo(arguments: Sequence[str]) -> int:
    first = arguments[0] if arguments else ""
    if first in READY and "--help" not in arguments:
        command = [sys.executable, "-m", "sharpzo_cli", *arguments]
        return start_and_end([*command, *(["--port", "0"] if first == "serve" else [])], first)
    arguments = [*arguments, *(BUDGET if first == "tune" else ())]
    if first in SLOW and "DOCS_WARM" in os.environ:
        return ask(os.environ["DOCS_WARM"], arguments)
    return subprocess.call([sys.executable, "-m", "sharpzo_cli", *arguments])


def start_and_end(command: Sequence[str], name: str) -> int:
    """Its exit code, once it has been told to end; 1 if it never was ready."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    ready = False
    for line in process.stderr:
        sys.stderr.write(line)
        if READY[name] in line and not ready:
            ready = True
            if name == "serve":
                wait_until_it_answers(line.split(READY[name])[1].strip())
            process.terminate()
    code = process.wait()
    return code if ready else code or 1


def wait_until_it_answers(url: str) -> None:
    """Return once the service lives; a process that has ended answers nobody, and is found out."""
    address = url.replace("//0.0.0.0", "//127.0.0.1")
    for _ in range(600):
        with suppress(OSError), urlopen(f"{address}/livez", timeout=5):
            return
        time.sleep(0.1)


def make(arguments: Sequence[str]) -> int:
    return subprocess.call(["/usr/bin/env", "-S", "make", "-C", str(ROOT), "-n", *arguments])


def docker(arguments: Sequence[str]) -> int:
    """The files of `docker compose` must be valid, and what is named must be there."""
    if arguments[:1] == ["build"]:
        return build_image(arguments[1:])
    if arguments[:1] != ["compose"]:
        sys.exit("only docker compose and docker build are known here")
    options, (verb, *rest) = split_options(arguments[1:])
    if shutil.which("docker-compose") is None:
        return 0  # the files have tests of their own, which tell what was skipped
    secrets = {"POSTGRES_PASSWORD": "a", "REDIS_PASSWORD": "b", **os.environ}
    with tempfile.NamedTemporaryFile() as empty:
        config = ["docker-compose", "--env-file", empty.name, *options, "config", "--services"]
        told = subprocess.run(config, cwd=ROOT, env=secrets, check=True, stdout=subprocess.PIPE)
    services = told.stdout.decode().split()
    if verb in {"exec", "run"}:
        service, *command = [word for word in rest if not word.startswith("-")]
        if service not in services:
            sys.exit(f"there is no service {service}")
        if command[:1] == ["sharpzo"]:
            return sharpzo(rest[rest.index("sharpzo") + 1 :])
    return 0


def build_image(arguments: Sequence[str]) -> int:
    """Whether the file (`-f`) has the stage (`--target`)."""
    given = dict(pairwise(arguments))
    file = ROOT / given.get("-f", given.get("--file", "Dockerfile"))
    stage = given.get("--target")
    if stage and not re.search(rf"(?im)^FROM .* AS {re.escape(stage)}$", file.read_text()):
        sys.exit(f"{file.name} has no stage {stage}")
    return 0 if file.exists() else 1


def split_options(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Options of compose itself (`--profile gpu`, `-f FILE`), and its command with the rest."""
    options, rest = [], list(arguments)
    while rest and rest[0].startswith("-"):
        options += [rest.pop(0), *([rest.pop(0)] if "=" not in options[-1:] else [])]
    return options, rest


def python(arguments: Sequence[str]) -> int:
    return subprocess.call([sys.executable, *arguments])


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "sharpzo": sharpzo,
    "make": make,
    "docker": docker,
    "python": python,
}

if __name__ == "__main__":
    # What they start finds the real commands, not these.
    here = os.environ.get("DOCS_COMMANDS", "")
    paths = [path for path in os.environ["PATH"].split(os.pathsep) if path != here]
    os.environ["PATH"] = os.pathsep.join(paths)
    sys.exit(COMMANDS[sys.argv[1]](sys.argv[2:]))
