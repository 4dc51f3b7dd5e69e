"""Nothing here unpickles: neither by its source, nor while a job runs and images are classified."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.figures import ROOT
from tests.fuzz.api import filled_server
from tests.service.conftest import png

PACKAGES = (
    "sharpzo_engine",
    "sharpzo_core",
    "service",
    "worker",
    "sharpzo_client",
    "sharpzo_cli",
)
MODULES = frozenset(
    {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
)
#: Functions that unpickle, run code, or write what an archive says.
FUNCTIONS = frozenset(
    {
        "torch.load",
        "np.load",
        "numpy.load",
        "yaml.load",
        "yaml.unsafe_load",
        "eval",
        "exec",
        "compile",
        "os.system",
        "os.popen",
    }
)
#: A loader that knows safe types alone; a test of the command line proves it.
SAFE = frozenset({"yaml.load(text, Loader=Loader)"})
METHODS = frozenset({"extractall", "extract", "pickle_dumps", "pickle_loads", "unpack_archive"})


def faults(source: str) -> Iterator[str]:
    """What a file imports or calls that it must not."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            names = []
        yield from (f"line {node.lineno}: {n}" for n in names if n.split(".")[0] in MODULES)  # type: ignore[attr-defined]
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            method = called.rpartition(".")[2] if "." in called else ""
            if (called in FUNCTIONS or method in METHODS) and ast.unparse(node) not in SAFE:
                yield f"line {node.lineno}: {called}()"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_source_unpickles_or_unpacks(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    found = [f"{file}: {fault}" for file in files for fault in faults(file.read_text())]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "def f():\n    import joblib.memory",
        "torch.load('x')",
        "tar.extractall()",
        "eval('1')",
    ],
)
def test_the_search_finds_what_it_looks_for(source: str) -> None:
    assert len(list(faults(source))) == 1


TRAP = """
import os, sys, traceback

def _see(event, arguments):
    if event == "pickle.find_class":
        caller = traceback.extract_stack(limit=2)[0].filename
        with open(os.environ["PICKLE_TRAP"], "a") as log:
            log.write(f"{os.getpid()} {caller} {arguments[0]}.{arguments[1]}\\n")

sys.addaudithook(_see)
with open(os.environ["PICKLE_TRAP"], "a") as log:
    log.write(f"{os.getpid()} armed {' '.join(sys.argv[:3])}\\n")
"""


@pytest.mark.slow
def test_no_process_unpickles_what_others_wrote(
    tmp_path: Path, small_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole job, a batch and an evaluation, in processes that tell of every class unpickled.

    A worker's pool speaks pickle with its own child, over a pipe that nobody else can open.
    """
    log, trap = tmp_path / "pickled", tmp_path / "trap"
    trap.mkdir()
    (trap / "sitecustomize.py").write_text(TRAP)
    monkeypatch.setenv("PICKLE_TRAP", str(log))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(trap), str(ROOT)]))
    with filled_server(tmp_path, small_backbone) as target:
        address = f"{target.url}/v1/prompts/{target.objects['prompt_id'][0]}/classify"
        answer = httpx2.post(
            address, timeout=60, headers=target.headers, files={"images": ("a.png", png())}
        )
        assert answer.status_code == 200, answer.text
    lines = [line.split(" ", 2) for line in log.read_text().splitlines()]
    armed = {pid for pid, what, _ in lines if what == "armed"}
    assert len(armed) >= 4  # two servers, a worker and its child
    strange = [
        rest for _, caller, *rest in lines if caller != "armed" and "/billiard/" not in caller
    ]
    assert strange == []
