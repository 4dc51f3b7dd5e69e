from __future__ import annotations

import json
import signal
import subprocess
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pytest

from sharpzo_cli import main as entry

if TYPE_CHECKING:
    from pathlib import Path

COMMANDS = ["demo", "serve", "worker", "migrate", "tune", "classify", "evaluate", "export"]
COMMANDS += ["keys", "datasets", "jobs", "prompts"]
HEAVY = {
    "torch", "numpy", "PIL", "matplotlib", "jinja2", "httpx", "yaml", "fastapi", "uvicorn",
    "celery", "sqlalchemy", "sharpzo_client.client", "sharpzo_client.models", "service", "worker",
}  # fmt: skip


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom sharpzo_cli.main import main\n"
        f"code = main({arguments!r})\n"
        f"print('LOADED', sorted({HEAVY!r} & set(sys.modules)), code)"
    )
    shown = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert "Usage: sharpzo" in shown
    assert "LOADED [] 0" in shown


def test_the_version_is_told(sharpzo: Any) -> None:
    assert sharpzo("--version").out == f"sharpzo {version('sharpzo')}\n"


def test_all_commands_are_listed_in_panels_on_one_line_each(sharpzo: Any) -> None:
    ran = sharpzo("--help")
    assert ran.code == 0
    assert [name for name in COMMANDS if f"  {name} " not in ran.out] == []
    panels = [line for line in ran.out.splitlines() if line.endswith(":")]
    assert panels == ["Options:", "On this machine:", "Through a service:", "Run a service:"]
    for group in ("", "datasets", "jobs", "prompts", "keys"):
        assert "..." not in sharpzo(*group.split(), "--help").out.partition("COMMAND [ARGS]...")[2]


def test_options_of_tune_and_of_jobs_submit_are_the_same_words(sharpzo: Any) -> None:
    for command in (["tune"], ["jobs", "submit"]):
        shown = sharpzo(*command, "--help").out
        for option in ("--shots", "--seed", "--passes", "--head <auto|none|gda|linear>"):
            assert option in shown


def test_kinds_of_head_are_those_of_the_engine() -> None:
    from typing import get_args

    from sharpzo_cli.options import HeadKind
    from sharpzo_engine.config import TuningConfig

    assert set(get_args(HeadKind)) == set(get_args(TuningConfig.model_fields["head"].annotation))


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["tune"],
        ["tune", "DATASET", "--nonsense"],
        ["tune", "nowhere"],
        ["tune", "SQUARES", "--preset", "nonsense"],
        ["tune", "SQUARES", "--set", "nonsense"],
        ["tune", "SQUARES", "--set", "=1"],
        ["tune", "SQUARES", "--set", "zo.=1"],
        ["tune", "SQUARES", "--set", "seed=[1"],
        ["tune", "SQUARES", "--set", "seed=yes"],
        ["tune", "SQUARES", "--set", "nonsense=1"],
        ["tune", "SQUARES", "--set", "shots=0"],
        ["tune", "SQUARES", "--set", "shots=99"],
        ["tune", "SQUARES", "--shots", "0"],
        ["tune", "SQUARES", "--shots", "99"],
        ["tune", "SQUARES", "--passes", "1"],
        ["tune", "SQUARES", "--head", "none of these"],
        ["tune", "SQUARES", "--config", "nowhere.json"],
        ["tune", "SQUARES", "--config", "SQUARES"],
        ["tune", "SQUARES", "--backbone", "nonsense"],
        ["tune", "SQUARES", "--backbone", "local-dir:/nowhere"],
        ["tune", "SQUARES", "--device", "abacus"],
        ["tune", "SQUARES", "--resume"],
        ["tune", "SQUARES", "--out", "SQUARES"],
        ["classify", "nowhere.safetensors", "a.png"],
        ["classify", "README", "README"],
        ["classify", "README", "nowhere.png"],
        ["classify", "README", "README", "--top-k", "0"],
        ["evaluate", "nowhere.safetensors", "SQUARES"],
        ["evaluate", "README", "SQUARES", "--split", "nonsense"],
        ["evaluate", "README", "SQUARES"],
        ["export", "nowhere.safetensors"],
        ["export", "README"],
        ["export", "README", "--format", "pickle"],
        ["export", "README", "--format", "onnx", "--out", "README"],
        ["serve", "--port", "99999"],
        ["serve", "--host", "0.0.0.0"],
    ],
    ids=" ".join,
)
def test_wrong_use_is_one_line_and_exit_2(
    sharpzo: Any,
    squares: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README").write_text("not a prompt, not an image")
    replaced = [str(squares) if word == "SQUARES" else word for word in arguments]
    if arguments[0] == "tune" and "--backbone" not in arguments:
        replaced += ["--backbone", "local-dir:nowhere"]
    ran = sharpzo(*replaced)
    assert ran.code == 2, ran
    assert ran.out == ""
    line = ran.err.splitlines()[-1]
    assert line.startswith("error: ")
    assert line.endswith(")")
    assert "Traceback" not in ran.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README"]


def test_a_wrong_setting_names_its_variable(
    sharpzo: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SHARPZO_LEASE_SECONDS", "soon")
    ran = sharpzo("migrate", "--data-dir", tmp_path)
    assert ran.code == 2
    assert "SHARPZO_LEASE_SECONDS" in ran.error


@pytest.mark.parametrize("place", [0, -1])
def test_a_traceback_is_shown_only_with_debug(sharpzo: Any, place: int) -> None:
    arguments = ["tune", "nowhere"]
    assert "Traceback" not in sharpzo(*arguments).err
    arguments.insert(place, "--debug")
    ran = sharpzo(*arguments)
    assert ran.code == 2
    assert "Traceback" in ran.err
    assert ran.err.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize(
    ("module", "extra", "arguments"),
    [
        ("cma", "engine", ["tune", "SQUARES"]),
        ("yaml", "engine", ["tune", "SQUARES", "--set", "seed=.5"]),
        ("uvicorn", "service", ["serve"]),
        ("sklearn", "demo", ["demo"]),
    ],
)
def test_a_missing_extra_is_named(
    squares: Path, tmp_path: Path, module: str, extra: str, arguments: list[str]
) -> None:
    given = [str(squares) if word == "SQUARES" else word for word in arguments]
    code = (
        f"import sys; sys.modules[{module!r}] = None\n"
        f"from sharpzo_cli.main import main; sys.exit(main({given!r}))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 1
    assert ran.stdout == ""
    assert ran.stderr.splitlines() == [
        f"error: {module} is not installed (pip install 'sharpzo[{extra}]')"
    ]
    assert list(tmp_path.iterdir()) == []


def test_something_unforeseen_is_still_one_line(
    sharpzo: Any, squares: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: object) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("sharpzo_cli.values.Hyperparameters.over", explode)
    ran = sharpzo("tune", squares)
    assert ran.code == 1
    assert ran.error == "error: RuntimeError: two lines (unexpected; --debug shows where)"


def test_ctrl_c_is_quiet(sharpzo: Any, squares: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sharpzo_cli.values.Hyperparameters.over", interrupt)
    ran = sharpzo("tune", squares)
    assert (ran.code, ran.out, ran.err) == (entry.INTERRUPTED, "", "")


def test_migrate_makes_a_database(sharpzo: Any, tmp_path: Path) -> None:
    for _ in range(2):
        assert sharpzo("migrate", "--data-dir", tmp_path / "new").code == 0
    assert (tmp_path / "new" / "sharpzo.db").stat().st_size > 0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=1", {"a": 1}),
        ("zo.learning_rate=1e-3", {"zo": {"learning_rate": 0.001}}),
        ("a=2.5E4", {"a": 25000.0}),
        ("a=.5", {"a": 0.5}),
        ("a=-1.", {"a": -1.0}),
        ("a=auto", {"a": "auto"}),
        ("a=none", {"a": "none"}),
        ("a=null", {"a": None}),
        ("a=True", {"a": True}),
        ("a=yes", {"a": True}),
        ("a=z-score", {"a": "z-score"}),
        ("a= b ", {"a": "b"}),
        ("a=true", {"a": True}),
        ("prompt.context=a photo of a", {"prompt": {"context": "a photo of a"}}),
        ("a=b=c", {"a": "b=c"}),
        ('a={"b": [1, 2]}', {"a": {"b": [1, 2]}}),
    ],
)
def test_values_of_set(text: str, value: object) -> None:
    from sharpzo_cli.values import parse_assignment

    assert parse_assignment(text) == value


def test_words_and_json_need_no_yaml(monkeypatch: pytest.MonkeyPatch) -> None:
    from sharpzo_cli.values import Hyperparameters

    monkeypatch.setitem(sys.modules, "yaml", None)
    values = ("head=none", "zo.learning_rate=1e-3", "prompt.context=a photo of a", "seed=2")
    assert Hyperparameters(values=values).merged() == {
        "head": "none",
        "zo": {"learning_rate": 0.001},
        "prompt": {"context": "a photo of a"},
        "seed": 2,
    }
    with pytest.raises(ModuleNotFoundError, match="yaml"):
        Hyperparameters(values=("seed=.5",)).merged()


def test_options_override_set_over_the_file_over_the_preset(tmp_path: Path) -> None:
    from sharpzo_cli.values import Hyperparameters

    (tmp_path / "c.yaml").write_text("seed: 3\nzo:\n  learning_rate: 1e-2\n  queries: 4\n")
    values = ("zo.queries=8", "popsize=12", "shots=12")
    options = {"shots": 8, "max_forward_passes": None, "head": "gda"}
    config = Hyperparameters(tmp_path / "c.yaml", values, options).over("fast")
    assert (config.seed, config.zo.learning_rate, config.zo.queries) == (3, 0.01, 8)
    assert (config.shots, config.head) == (8, "gda")
    assert config.cma.population_size == 12
    preset = Hyperparameters().over("fast")
    assert config.total_steps == preset.total_steps
    assert config.max_forward_passes == preset.max_forward_passes
    (tmp_path / "c.json").write_text(json.dumps({"seed": 4}))
    assert Hyperparameters(tmp_path / "c.json").over("default").seed == 4
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert Hyperparameters(tmp_path / "empty.yaml").over("default").seed == 1


@pytest.mark.parametrize(
    "content", ["- 1\n", "1: 2\n", "{", "!!python/object:os.system {}", "\x00"]
)
def test_a_config_of_something_else_is_named(sharpzo: Any, tmp_path: Path, content: str) -> None:
    (tmp_path / "c.yaml").write_text(content)
    ran = sharpzo("tune", tmp_path, "--config", tmp_path / "c.yaml")
    assert ran.code == 2
    assert "c.yaml" in ran.error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_an_import_gives_our_exit_code(number: int) -> None:
    # Importing a dataclass runs `exec` of a text, where CPython remembers a KeyboardInterrupt.
    script = f"""
import os, signal, sys
from sharpzo_cli.interrupts import ctrl_c_interrupts, interrupt
signal.signal(signal.SIGTERM, interrupt)
try:
    with ctrl_c_interrupts():
        exec("os.kill(os.getpid(), {number:d})\\nwhile True: pass")
except KeyboardInterrupt:
    sys.exit(130)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 130
