"""Completion by the protocol of the shells, and in the shells that are here."""

from __future__ import annotations

import http.server
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from sharpzo_cli.demo.server import free_port

if TYPE_CHECKING:
    from pathlib import Path

    from sharpzo_cli.demo.server import Running

PATIENT = {"SHARPZO_COMPLETION_SECONDS": "60"}  # a busy machine is no reason to offer nothing
ATTACKS = ["$(touch hit)", "`touch hit`", "\\$(touch hit)", '"; touch hit; "', "'; touch hit; '"]
ATTACKS += ["a:b)) ; touch hit ; ((", "\x1b[31m", "[red]x[/red]", "%F{red}", "a\nb"]
IDS = [f"job_{number:026}" for number in range(len(ATTACKS))]


def completed(line: str, **environment: str) -> list[str]:
    """What bash is offered at the end of a line."""
    words = line.split(" ")
    asked = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    ran = subprocess.run(
        [sys.executable, "-m", "sharpzo_cli"],
        env={**os.environ, **asked, **PATIENT, "_SHARPZO_COMPLETE": "complete_bash", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stderr == ""
    return ran.stdout.split("\n")[:-1] if ran.stdout.strip() else []


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("sharpzo jo", ["jobs"]),
        ("sharpzo jobs wat", ["watch"]),
        ("sharpzo tune photos --preset f", ["fast", "food101", "fgvc"]),
        ("sharpzo tune photos --backbone ti", ["tiny"]),
        ("sharpzo tune photos --backbone ViT-B-16-pl", ["ViT-B-16-plus", "ViT-B-16-plus-240"]),
        ("sharpzo jobs list --status ca", ["cancelling", "cancelled"]),
        ("sharpzo export p.safetensors --format ", ["npy", "onnx"]),
        ("sharpzo tune pho", []),  # the shell offers files
    ],
)
def test_words_that_are_known_are_offered(line: str, offered: list[str]) -> None:
    assert completed(line) == offered


def test_ids_of_the_service_are_offered(
    running: Running, dataset_id: str, url: str, tmp_path: Path
) -> None:
    config: dict[str, Any] = {"shots": 4, "total_steps": 4, "change_point": 2}
    config |= {"prompt": {"intrinsic_dim": 8}, "cma": {"population_size": 4}}
    client = running.client
    job = client.jobs.create(dataset_id, config=config, name="offered")
    prompt = str(client.jobs.wait(job.id, poll=0.1).prompt_id)
    client.aliases.set("offered@best", prompt)
    assert job.id in completed("sharpzo jobs show job_")
    assert completed(f"sharpzo jobs watch {job.id[:-1]}") == [job.id]
    assert dataset_id in completed("sharpzo jobs submit ")
    assert completed("sharpzo prompts show off") == ["offered"]
    assert completed(f"sharpzo prompts show {prompt}") == [prompt]
    assert completed("sharpzo prompts rollback be") == ["best"]
    assert completed("sharpzo jobs submit x --backbone ") == ["tiny"]
    away = f"http://127.0.0.1:{free_port()}"
    assert completed("sharpzo jobs show job_", SHARPZO_URL=away) == []
    assert job.id in completed(f"sharpzo jobs show --url {url} job_", SHARPZO_URL=away)


@contextmanager
def made_up_service(names: list[str], seconds: float = 0.0) -> Iterator[str]:
    """Something that says it is a service, and answers after a time."""
    gone = threading.Event()
    jobs = [
        {"id": key, "status": "running", "name": name}
        for key, name in zip(IDS, names, strict=False)
    ]
    jobs += [{"id": name, "status": "running", "name": "x"} for name in names]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            gone.wait(seconds)
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps({"data": jobs, "has_more": False}).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        gone.set()
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_service_that_takes_its_time_is_not_waited_for() -> None:
    with made_up_service(ATTACKS, 600) as url:  # longer than a test may take
        asked = {"SHARPZO_URL": url, "SHARPZO_COMPLETION_SECONDS": "0.2"}
        assert completed("sharpzo jobs show job_", **asked) == []
        asked["SHARPZO_COMPLETION_SECONDS"] = ""  # as long as it is by default
        assert completed("sharpzo jobs show job_", **asked) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"SHARPZO_API_KEY": "\x1b[31m"},
        {"SHARPZO_URL": "nonsense"},
        {"SHARPZO_COMPLETION_SECONDS": "soon"},
    ],
)
def test_what_is_wrong_in_the_environment_is_not_told(url: str, wrong: dict[str, str]) -> None:
    assert completed("sharpzo jobs show job_", **wrong) == []  # and nothing on standard error


def test_nothing_but_plain_words_is_offered() -> None:
    with made_up_service(ATTACKS) as url:
        assert completed("sharpzo jobs show ", SHARPZO_URL=url) == IDS


SHELLS = {
    "bash": """
source <({script})
COMP_WORDS=(sharpzo jobs show j) COMP_CWORD=3
_sharpzo_completion sharpzo
printf '%s\\n' "${COMPREPLY[@]}"
""",
    "zsh": """
compdef() { }
eval "$({script})"
_arguments() { local action="${1#*: :}"; eval ws\\=\\( "${action[3,-3]}" \\); print -rl -- $ws }
words=(sharpzo jobs show j); CURRENT=4
_sharpzo_completion
""",
    "fish": """
{script} | source
complete -C "sharpzo jobs show j"
""",
}


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_runs_nothing_of_what_it_is_offered(shell: str, tmp_path: Path) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "sharpzo"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m sharpzo_cli "$@"\n')
    command.chmod(0o755)
    script = SHELLS[shell].replace("{script}", f"env _SHARPZO_COMPLETE=source_{shell} sharpzo")
    (tmp_path / "script").write_text(script)
    options = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]
    with made_up_service(ATTACKS) as url:
        ran = subprocess.run(
            [program, *options, "script"],
            cwd=tmp_path,
            env={
                **os.environ,
                **PATIENT,
                "HOME": str(tmp_path),
                "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                "SHARPZO_URL": url,
            },
            capture_output=True,
            text=True,
            check=False,
        )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert [line for line in IDS if line not in ran.stdout] == []
    assert not (tmp_path / "hit").exists()
    assert "\x1b" not in ran.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell_is_told(shell: str) -> None:
    script = subprocess.check_output(
        [sys.executable, "-m", "sharpzo_cli"],
        env={**os.environ, "_SHARPZO_COMPLETE": f"source_{shell}"},
        text=True,
    )
    assert f"_SHARPZO_COMPLETE=complete_{shell}" in script
